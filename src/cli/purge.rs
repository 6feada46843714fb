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
    /// All answers that carry this tag (Vercel-Cache-Tag, Cache-Tag, Surrogate-Key)
    #[arg(long = "tag", value_name = "TAG", group = "what")]
    tags: Vec<String>,
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
    /// `none`, `reached`, or `unreachable`.
    #[serde(default)]
    region: String,
    nodes: Vec<Acknowledgement>,
    warning: Option<String>,
}

#[derive(Deserialize)]
struct Acknowledgement {
    node: String,
    acknowledged: bool,
    #[serde(default)]
    after_ms: u64,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let client = Client::new(&arguments.node)?;
    let answer: Answer = client.send(Method::POST, "/v1/purge", &body(arguments))?;

    let mut report = String::new();
    for Acknowledgement { node, acknowledged, after_ms } in &answer.nodes {
        // Writing to a string does not fail.
        let _ = match acknowledged {
            true => writeln!(report, "{}: purged ({after_ms} ms)", printable(node)),
            false => writeln!(report, "{}: NOT purged: no answer", printable(node)),
        };
    }
    if let Some(warning) = &answer.warning {
        let _ = writeln!(report, "warning: {}", printable(warning));
    }
    print(out, &report)?;
    let silent = answer.nodes.iter().filter(|node| !node.acknowledged).count();
    let failure = match (answer.nodes.len(), silent) {
        (0, _) => "no node acknowledged the purge".to_owned(),
        _ if answer.region == "unreachable" => {
            "the store of the region does not answer: the other nodes purge when it is back".to_owned()
        }
        (_, 0) => return Ok(()),
        (nodes, silent) => {
            format!("{silent} of {nodes} nodes did not acknowledge the purge; they purge when they are back")
        }
    };
    Err(Failure::Refused { message: failure })
}

fn body(arguments: &Arguments) -> Value {
    let mode = if arguments.delete { "delete" } else { "invalidate" };
    let mut body = json!({"urls": arguments.urls, "tags": arguments.tags, "all": arguments.all, "mode": mode});
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
            r#"{"node":"sfo1-a","acknowledged":true,"after_ms":2},{"node":"sfo1-b","acknowledged":false,"after_ms":1000}"#,
            "sfo1-a: purged (2 ms)\nsfo1-b: NOT purged: no answer\n",
            "1 of 2 nodes did not acknowledge the purge; they purge when they are back",
        );
    }

    #[test]
    fn a_region_out_of_reach_is_a_failure_and_told_as_one() {
        let body = r#"{"region":"unreachable","nodes":[{"node":"a","acknowledged":true}],"warning":"not kept"}"#;
        let (ended, out, _) = ask(&["purge", "--tag", "x"], 202, body);
        assert_eq!(out, "a: purged (0 ms)\nwarning: not kept\n");
        assert_eq!(
            ended.unwrap_err().to_string(),
            "the store of the region does not answer: the other nodes purge when it is back"
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
            let answer = r#"{"region":"none","nodes":[{"node":"sfo1-a","acknowledged":true,"after_ms":3}]}"#;
            let (ended, out, request) = ask(words, 200, answer);
            ended.unwrap();
            assert_eq!(out, "sfo1-a: purged (3 ms)\n");
            assert_eq!(request.target, "POST /v1/purge");
            assert_eq!(request.json(), expected, "{words:?}");
        };
        check(&["purge", "--all"], json!({"urls": [], "tags": [], "all": true, "mode": "invalidate"}));
        check(
            &["purge", "--url", "http://a/?b", "--url", "http://c/", "--delete"],
            json!({"urls": ["http://a/?b", "http://c/"], "tags": [], "all": false, "mode": "delete"}),
        );
        check(
            &["purge", "--tag", "a", "--tag", "b c"],
            json!({"urls": [], "tags": ["a", "b c"], "all": false, "mode": "invalidate"}),
        );
        check(
            &["purge", "--deployment", "d"],
            json!({"urls": [], "tags": [], "all": false, "mode": "invalidate", "deployment": "d"}),
        );
    }
}
