//! `tael-message`: the same as `tael message`, and nothing else.

fn main() -> std::process::ExitCode {
    tael::cli::message::main()
}
