//! `cargo xtask`. Another workspace's xtask is the same three lines over the library.

fn main() -> std::process::ExitCode {
    xtask::main()
}
