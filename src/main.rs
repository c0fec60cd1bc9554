//! `tael`: all commands.

fn main() -> std::process::ExitCode {
    tael::cli::main()
}
