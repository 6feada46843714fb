//! `perigee purge`: says what is to go, and prints who did it. A purge counts only where it was acknowledged, so one silent
//! node makes the command fail.

use std::{fmt::Write as _, io::Write};

use clap::{ArgGroup, Args};
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, Failure, NodeArguments, print, printable};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true))]
pub struct Arguments {
    /// The answers to this URL
    #[arg(long = "url", value_name = "URL", group = "what")]
    urls: Vec<String>,
    /// Everything of this deployment
    #[arg(long, value_name = "ID", group = "what")]
    deployment: Option<String>,
    /// Everything
    #[arg(long, group = "what")]
    all: bool,
    /// Delete, instead of serving stale and refreshing behind
    #[arg(long)]
    delete: bool,
    #[command(flatten)]
    node: NodeArguments,
}

#[derive(Deserialize)]
struct Answer {
    nodes: Vec<Acknowledgement>,
}

#[derive(Deserialize)]
struct Acknowledgement {
    node: String,
    purged: Option<u64>,
    error: Option<String>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let client = Client::new(&arguments.node)?;
    let answer: Answer = client.send(Method::POST, "/v1/purge", &body(arguments))?;

    let mut report = String::new();
    let mut silent = 0;
    for acknowledgement in &answer.nodes {
        let node = printable(&acknowledgement.node);
        let outcome = match (acknowledgement.purged, &acknowledgement.error) {
            (Some(purged), None) => format!("{purged} purged"),
            (_, error) => {
                silent += 1;
                format!("NOT purged: {}", printable(error.as_deref().unwrap_or("no answer")))
            }
        };
        // Writing to a string does not fail.
        let _ = writeln!(report, "{node}: {outcome}");
    }
    print(out, &report)?;
    match (answer.nodes.len(), silent) {
        (0, _) => Err(Failure::Refused { message: "no node acknowledged the purge".to_owned() }),
        (_, 0) => Ok(()),
        (nodes, silent) => {
            Err(Failure::Refused { message: format!("{silent} of {nodes} nodes did not acknowledge the purge") })
        }
    }
}

fn body(arguments: &Arguments) -> Value {
    let mode = if arguments.delete { "delete" } else { "invalidate" };
    let mut body = json!({"urls": arguments.urls, "all": arguments.all, "mode": mode});
    if let Some(deployment) = &arguments.deployment {
        body["deployment"] = json!(deployment);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::super::client::testing::ask;
    use super::*;

    #[test]
    fn silence_is_a_failure() {
        let check = |nodes: &str, printed: &str, failure: &str| {
            let body = format!("{{\"nodes\":[{nodes}]}}");
            let (ended, out, _) = ask(&["purge", "--all"], 200, &body);
            assert_eq!(out, printed, "{nodes}");
            assert_eq!(ended.unwrap_err().to_string(), failure, "{nodes}");
        };
        check("", "", "no node acknowledged the purge");
        check(
            r#"{"node":"sfo1-a","purged":2},{"node":"sfo1-b"}"#,
            "sfo1-a: 2 purged\nsfo1-b: NOT purged: no answer\n",
            "1 of 2 nodes did not acknowledge the purge",
        );
        check(
            r#"{"node":"sfo1-a","purged":0,"error":"timed out"}"#,
            "sfo1-a: NOT purged: timed out\n",
            "1 of 1 nodes did not acknowledge the purge",
        );
    }

    #[test]
    fn refusal_is_the_nodes_message() {
        let body = r#"{"error":{"code":"BAD_REQUEST","message":"x is not a URL"}}"#;
        let (ended, out, _) = ask(&["purge", "--url", "x"], 400, body);
        assert_eq!(ended.unwrap_err().to_string(), "x is not a URL");
        assert_eq!(out, "");
    }

    #[test]
    fn what_is_asked_is_what_is_sent() {
        let check = |words: &[&str], expected: Value| {
            let answer = r#"{"nodes":[{"node":"sfo1-a","purged":3}]}"#;
            let (ended, out, request) = ask(words, 200, answer);
            ended.unwrap();
            assert_eq!(out, "sfo1-a: 3 purged\n");
            assert_eq!(request.target, "POST /v1/purge");
            assert_eq!(request.json(), expected, "{words:?}");
        };
        check(&["purge", "--all"], json!({"urls": [], "all": true, "mode": "invalidate"}));
        check(
            &["purge", "--url", "http://a/?b", "--url", "http://c/", "--delete"],
            json!({"urls": ["http://a/?b", "http://c/"], "all": false, "mode": "delete"}),
        );
        check(
            &["purge", "--deployment", "d"],
            json!({"urls": [], "all": false, "mode": "invalidate", "deployment": "d"}),
        );
    }
}
