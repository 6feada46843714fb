//! `perigee remove DEPLOYMENT`: whether a deployment that aliases still point at may go is the node's decision.

use std::io::Write;

use clap::Args;
use serde::Deserialize;

use super::client::{Client, Failure, NodeArguments, encode, print, printable};

#[derive(Debug, Args)]
pub struct Arguments {
    /// The deployment's id
    deployment: String,
    #[command(flatten)]
    node: NodeArguments,
}

#[derive(Deserialize)]
struct Answer {
    removed: String,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let client = Client::new(&arguments.node)?;
    let target = format!("/v1/deployments/{}", encode(&arguments.deployment));
    let answer: Answer = client.delete(&target)?;
    print(out, &format!("removed {}\n", printable(&answer.removed)))
}

#[cfg(test)]
mod tests {
    use super::super::client::testing::ask;

    #[test]
    fn removing_twice_is_the_nodes_message() {
        let body = r#"{"error":{"code":"DEPLOYMENT_NOT_FOUND","message":"no deployment x"}}"#;
        let (ended, out, _) = ask(&["remove", "x"], 404, body);
        assert_eq!(ended.unwrap_err().to_string(), "no deployment x");
        assert_eq!(out, "");
    }

    #[test]
    fn removed_deployment_is_named() {
        let (ended, out, request) = ask(&["remove", "a/b"], 200, r#"{"removed":"a/b"}"#);
        ended.unwrap();
        assert_eq!(out, "removed a/b\n");
        assert_eq!(request.target, "DELETE /v1/deployments/a%2Fb");
    }
}
