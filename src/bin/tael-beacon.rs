//! `tael-beacon`: the same as `tael beacon`, and nothing else.

fn main() -> std::process::ExitCode {
    tael::cli::beacon::main()
}
