//! A coding agent's hook in a binary of its own, which starts faster than the whole `estoppel`.

use std::process::ExitCode;

fn main() -> ExitCode {
    estoppel_hook::client::main(std::env::args_os().skip(1))
}
