//! `perigee alias HOST DEPLOYMENT`: points a host at a deployment. Promote and roll back are the same act, so there is no
//! command for either; the answer names the previous deployment, which is what a roll back needs.

use std::io::Write;

use clap::Args;
use http::Method;
use serde::Deserialize;

use super::client::{Client, Failure, NodeArguments, encode, print, printable};

#[derive(Debug, Args)]
pub struct Arguments {
    /// The host name that visitors ask for
    host: String,
    /// The id of the deployment that shall answer
    deployment: String,
    #[command(flatten)]
    node: NodeArguments,
}

#[derive(Deserialize)]
struct Pointed {
    alias: String,
    deployment: String,
    previous: Option<String>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let client = Client::new(&arguments.node)?;
    let target = format!("/v1/aliases/{}", encode(&arguments.host));
    let body = serde_json::json!({"deployment": arguments.deployment});
    let pointed: Pointed = client.send(Method::PUT, &target, &body)?;
    print(out, &describe(&pointed))
}

fn describe(pointed: &Pointed) -> String {
    let previous = match &pointed.previous {
        None => String::new(),
        Some(previous) if *previous == pointed.deployment => " (as before)".to_owned(),
        Some(previous) => format!(" (was {})", printable(previous)),
    };
    format!("{} -> {}{previous}\n", printable(&pointed.alias), printable(&pointed.deployment))
}

#[cfg(test)]
mod tests {
    use super::super::client::testing::ask;

    #[test]
    fn unknown_deployment_is_the_nodes_message() {
        let body = r#"{"error":{"code":"DEPLOYMENT_NOT_FOUND","message":"no deployment x"}}"#;
        let (ended, out, _) = ask(&["alias", "a.localhost", "x"], 404, body);
        assert_eq!(ended.unwrap_err().to_string(), "no deployment x");
        assert_eq!(out, "");
    }

    #[test]
    fn host_is_pointed_and_the_previous_named() {
        let check = |previous: &str, expected: &str| {
            let body = format!(r#"{{"alias":"a.localhost","deployment":"d2","previous":{previous}}}"#);
            let (ended, out, request) = ask(&["alias", "a.localhost", "d2"], 200, &body);
            ended.unwrap();
            assert_eq!(out, expected);
            assert_eq!(request.target, "PUT /v1/aliases/a.localhost");
            assert_eq!(request.json(), serde_json::json!({"deployment": "d2"}));
        };
        check("null", "a.localhost -> d2\n");
        check("\"d1\"", "a.localhost -> d2 (was d1)\n");
        check("\"d2\"", "a.localhost -> d2 (as before)\n");
    }

    #[test]
    fn host_cannot_leave_its_place_in_the_path() {
        let body = r#"{"alias":"a","deployment":"d"}"#;
        let (_, _, request) = ask(&["alias", "../deployments/d?x#y", "d"], 200, body);
        assert_eq!(request.target, "PUT /v1/aliases/..%2Fdeployments%2Fd%3Fx%23y");
    }
}
