//! `selvedge-lab`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    selvedge_lab::run(std::env::args_os().collect())
}
