//! `perigee deployments`: the deployments of a node as a table.

use std::io::{self, Write};

use clap::Args;
use serde::Deserialize;

use super::client::{Client, Failure, NodeArguments, print, printable};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    node: NodeArguments,
}

#[derive(Deserialize)]
struct Answer {
    deployments: Vec<Deployment>,
}

#[derive(Deserialize)]
struct Deployment {
    id: String,
    name: String,
    url: Option<String>,
    #[serde(default)]
    aliases: Vec<String>,
    created: Option<String>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let client = Client::new(&arguments.node)?;
    let answer: Answer = client.get("/v1/deployments")?;
    if answer.deployments.is_empty() {
        // For people only: a script that reads stdout finds nothing, which is what there is.
        let _ = writeln!(io::stderr(), "no deployments yet; make one with: perigee deploy DIR");
        return Ok(());
    }
    let mut rows = vec![["ID", "NAME", "URL", "ALIASES", "CREATED"].map(String::from)];
    rows.extend(answer.deployments.iter().map(row));
    print(out, &table(&rows))
}

fn row(deployment: &Deployment) -> [String; 5] {
    let aliases = deployment.aliases.join(",");
    [
        cell(&deployment.id),
        cell(&deployment.name),
        cell(deployment.url.as_deref().unwrap_or_default()),
        cell(&aliases),
        cell(deployment.created.as_deref().unwrap_or_default()),
    ]
}

/// Never empty, so that the columns can be told apart by `awk` too.
fn cell(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { printable(text) }
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::client::testing::ask;

    #[test]
    fn refusal_is_the_nodes_message() {
        let body = r#"{"error":{"code":"UNAUTHORIZED","message":"a token is needed"}}"#;
        let (ended, out, _) = ask(&["deployments"], 401, body);
        assert_eq!(ended.unwrap_err().to_string(), "a token is needed");
        assert_eq!(out, "");
    }

    #[test]
    fn none_is_nothing_on_stdout() {
        let (ended, out, request) = ask(&["deployments"], 200, r#"{"deployments":[]}"#);
        ended.unwrap();
        assert_eq!(out, "");
        assert_eq!(request.target, "GET /v1/deployments");
    }

    #[test]
    fn columns_are_aligned_and_no_cell_is_empty() {
        let body = r#"{"deployments":[
            {"id":"hello-abc","name":"hello","url":"http://hello.now",
             "aliases":["localhost","h.localhost"],"created":"2019-11-06T08:49:37Z","kind":"project"},
            {"id":"s","name":"sh\u001bop","url":null,"aliases":[],"created":"2019-11-07T08:49:37Z","kind":"upstream"}
        ]}"#;
        let (ended, out, _) = ask(&["deployments"], 200, body);
        ended.unwrap();
        let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines,
            [
                ["ID", "NAME", "URL", "ALIASES", "CREATED"],
                ["hello-abc", "hello", "http://hello.now", "localhost,h.localhost", "2019-11-06T08:49:37Z"],
                ["s", "sh\\u{1b}op", "-", "-", "2019-11-07T08:49:37Z"],
            ]
        );
        let columns: Vec<_> = out.lines().map(|line| line.find("20").or(line.find("CREATED"))).collect();
        assert_eq!(columns, [columns[0]; 3], "{out}");
        assert!(out.lines().all(|line| line == line.trim_end()), "{out}");
    }
}
