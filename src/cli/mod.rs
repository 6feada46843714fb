//! The command line: which command, with what. `serve` and `check` are main's to carry out, since they are the node itself;
//! every other command is a client of a running node and does its work over the admin interface.

mod client;

mod alias;
mod deploy;
mod deployments;
mod explain;
mod purge;
mod remove;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use client::Failure;

/// A command line that clap found to be in order.
#[derive(Debug)]
pub struct Cli {
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node in the foreground; the same as `perigee -c FILE`
    Serve {
        /// The node's configuration
        #[arg(short, long, value_name = "FILE")]
        conf: PathBuf,
    },
    /// Validate a configuration: exit status 0, or 1 with every mistake on stderr
    Check {
        /// The configuration to validate
        #[arg(short, long, value_name = "FILE")]
        conf: PathBuf,
    },
    #[command(flatten)]
    Client(ClientCommand),
}

/// The commands that talk to a running node.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Deploy a folder; the last line of stdout is the deployment's URL
    Deploy(deploy::Arguments),
    /// List the deployments
    Deployments(deployments::Arguments),
    /// Point a host at a deployment (promote and roll back are this)
    Alias(alias::Arguments),
    /// Remove a deployment
    Remove(remove::Arguments),
    /// Invalidate cached answers (serve stale, refresh behind), or delete them
    Purge(purge::Arguments),
    /// Say why a URL is answered as it is: deployment, route, cache key, rule, tiers
    Explain(explain::Arguments),
}

/// Reads the process's command line. Help, version and mistakes are clap's: printed, and the process exits (2 for mistakes).
pub fn parse() -> Cli {
    Arguments::parse().into()
}

/// Carries out a client command: exit status 0, or 1 with the reason on stderr.
pub fn run(command: &ClientCommand) -> ExitCode {
    match dispatch(command, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            // Whoever read our output has had enough (`perigee deployments | head -1`); there is nobody to tell.
            ExitCode::FAILURE
        }
        Err(failure) => {
            // Like this, and not by `eprintln`, because a stderr that is gone is no reason to panic.
            let _ = writeln!(io::stderr(), "perigee: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: &ClientCommand, out: &mut dyn Write) -> Result<(), Failure> {
    match command {
        ClientCommand::Deploy(arguments) => deploy::run(arguments, out),
        ClientCommand::Deployments(arguments) => deployments::run(arguments, out),
        ClientCommand::Alias(arguments) => alias::run(arguments, out),
        ClientCommand::Remove(arguments) => remove::run(arguments, out),
        ClientCommand::Purge(arguments) => purge::run(arguments, out),
        ClientCommand::Explain(arguments) => explain::run(arguments, out),
    }
}

/// The command line as clap sees it: `-c FILE` alone stands for `serve -c FILE`.
#[derive(Debug, Parser)]
#[command(name = "perigee", version, about)]
#[command(arg_required_else_help = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Run a node with this configuration
    #[arg(short, long, value_name = "FILE", required = true)]
    conf: Option<PathBuf>,
}

impl From<Arguments> for Cli {
    fn from(arguments: Arguments) -> Cli {
        let command = match (arguments.command, arguments.conf) {
            (Some(command), _) => command,
            (None, Some(conf)) => Command::Serve { conf },
            (None, None) => unreachable!("clap requires one of them"),
        };
        Cli { command }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn parse_from(line: &str) -> Result<Command, ErrorKind> {
        let words = std::iter::once("perigee").chain(line.split_whitespace());
        Arguments::try_parse_from(words).map(|arguments| Cli::from(arguments).command).map_err(|error| error.kind())
    }

    #[test]
    fn clap_finds_no_contradiction() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn wrong_lines_are_refused() {
        use ErrorKind::*;
        let check = |line: &str, expected: ErrorKind| match parse_from(line) {
            Err(kind) => assert_eq!(kind, expected, "line: {line:?}"),
            Ok(command) => panic!("{line:?} is taken for {command:?}"),
        };
        check("", DisplayHelpOnMissingArgumentOrSubcommand);
        check("serve", MissingRequiredArgument);
        check("check", MissingRequiredArgument);
        check("fly", InvalidSubcommand);
        check("-c a.yaml deployments", ArgumentConflict);
        check("serve -c a.yaml --admin 127.0.0.1:1", UnknownArgument);
        check("deploy", MissingRequiredArgument);
        check("alias localhost", MissingRequiredArgument);
        check("remove", MissingRequiredArgument);
        check("purge", MissingRequiredArgument);
        check("purge --delete", MissingRequiredArgument);
        check("purge --deployment a --deployment b", ArgumentConflict);
        check("explain", MissingRequiredArgument);
        check("explain -H nonsense http://localhost/", ValueValidation);
        check("explain -X G(T http://localhost/", ValueValidation);
        check("--help", DisplayHelp);
        check("--version", DisplayVersion);
    }

    #[test]
    fn a_configuration_alone_means_serve() {
        let check = |line: &str| match parse_from(line) {
            Ok(Command::Serve { conf }) => assert_eq!(conf, Path::new("a.yaml")),
            other => panic!("{line:?}: {other:?}"),
        };
        check("-c a.yaml");
        check("--conf a.yaml");
        check("serve -c a.yaml");
        assert!(matches!(parse_from("check -c a.yaml"), Ok(Command::Check { .. })));
    }

    #[test]
    fn client_commands_take_their_flags() {
        for line in [
            "deploy .",
            "deploy examples/hello --alias a.localhost --alias b.localhost --name hello",
            "deployments --admin 127.0.0.1:9180",
            "alias shop.localhost shop-abc123def --token-file token",
            "remove shop-abc123def",
            "purge --all",
            "purge --url http://a/ --url http://b/ --delete",
            "purge --deployment shop-abc123def --url http://a/",
            "explain http://localhost/",
            "explain -X POST -H accept:text/html -H cookie:a=b --json http://localhost/",
        ] {
            assert!(matches!(parse_from(line), Ok(Command::Client(_))), "line: {line:?}");
        }
    }
}
