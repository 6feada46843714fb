//! The command line: which command, and its exit status.

use std::process::ExitCode;

use perigee::cli::{self, Command};
use perigee::server;

fn main() -> ExitCode {
    match cli::parse().command {
        Command::Serve { conf } => server::run(&conf),
        Command::Check { conf } => server::check(&conf),
        Command::Client(command) => cli::run(&command),
    }
}
