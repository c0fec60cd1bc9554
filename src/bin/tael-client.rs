//! `tael-client`: the same as `tael client`, and nothing else.

fn main() -> std::process::ExitCode {
    tael::cli::client::main()
}
