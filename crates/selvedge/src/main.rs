//! The program `selvedge`: see `selvedge help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    selvedge::cli::run(std::env::args_os())
}
