//! `perigee explain URL`: asks a node why it answers as it does. The node decides what there is to say; this prints any JSON
//! so that a person can read it, and does not know its keys.

use std::{fmt::Write as _, io::Write};

use clap::Args;
use http::{HeaderName, HeaderValue, Method};
use serde_json::Value;

use super::client::{Client, Failure, NodeArguments, encode, print, printable};

#[derive(Debug, Args)]
pub struct Arguments {
    /// The URL as a visitor asks for it
    url: String,
    /// The request's method
    #[arg(short = 'X', long, value_name = "METHOD", default_value = "GET")]
    method: Method,
    /// A header field of the request; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = field)]
    headers: Vec<String>,
    /// Print the node's JSON as it is
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: NodeArguments,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let client = Client::new(&arguments.node)?;
    let answer: Value = client.get(&target(arguments))?;
    if arguments.json {
        return print(out, &format!("{answer}\n"));
    }
    let mut text = lines(&answer).join("\n");
    text.push('\n');
    print(out, &text)
}

fn target(arguments: &Arguments) -> String {
    let url = encode(&arguments.url);
    let method = encode(arguments.method.as_str());
    let mut target = format!("/v1/explain?url={url}&method={method}");
    for header in &arguments.headers {
        // Writing to a string does not fail.
        let _ = write!(target, "&header={}", encode(header));
    }
    target
}

/// Checks a field here, where the mistake can be shown, and gives it the one form that the node reads.
fn field(written: &str) -> Result<String, String> {
    let (name, value) = written.split_once(':').ok_or("write it as 'name: value'")?;
    let name: HeaderName = name.trim().parse().map_err(|_| "the name is not one of a header")?;
    let value = value.trim();
    HeaderValue::from_str(value).map_err(|_| "the value holds a control character")?;
    Ok(format!("{name}: {value}"))
}

/// One value a line: `key: value`, the values of one object aligned, what is nested indented by two.
fn lines(value: &Value) -> Vec<String> {
    match value {
        Value::Object(members) if !members.is_empty() => {
            let inline_keys = members.iter().filter(|(_, value)| inline(value).is_some());
            let width = inline_keys.map(|(key, _)| key.chars().count()).max().unwrap_or(0);
            let member = |(key, value): (&String, &Value)| match inline(value) {
                Some(text) => vec![format!("{:<1$} {text}", format!("{key}:"), width + 1)],
                None => {
                    let nested = lines(value).into_iter().map(|line| format!("  {line}"));
                    std::iter::once(format!("{key}:")).chain(nested).collect()
                }
            };
            members.iter().flat_map(member).collect()
        }
        Value::Array(elements) if !elements.is_empty() => {
            elements.iter().flat_map(|element| bulleted(lines(element))).collect()
        }
        value => vec![inline(value).unwrap_or_default()],
    }
}

fn bulleted(lines: Vec<String>) -> impl Iterator<Item = String> {
    let bullets = std::iter::once("- ").chain(std::iter::repeat("  "));
    bullets.zip(lines).map(|(bullet, line)| format!("{bullet}{line}"))
}

/// The value as the rest of its key's line, if it has only one part.
fn inline(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("none".to_owned()),
        Value::Bool(yes) => Some(if *yes { "yes" } else { "no" }.to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(printable(text)),
        Value::Array(elements) if elements.is_empty() => Some("none".to_owned()),
        Value::Object(members) if members.is_empty() => Some("none".to_owned()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::testing::ask;
    use super::*;

    #[test]
    fn fields_are_checked_and_put_into_one_form() {
        let check = |written: &str, expected: Option<&str>| {
            assert_eq!(field(written).ok().as_deref(), expected, "field: {written:?}");
        };
        check("accept", None);
        check(": x", None);
        check("a b: x", None);
        check("a: x\r\nb: y", None);
        check("Accept:text/html", Some("accept: text/html"));
        check("x-empty:", Some("x-empty: "));
        check("Referer: http://a/", Some("referer: http://a/"));
    }

    #[test]
    fn refusal_is_the_nodes_message() {
        let body = r#"{"error":{"code":"BAD_REQUEST","message":"no host in /x"}}"#;
        let (ended, out, _) = ask(&["explain", "/x"], 400, body);
        assert_eq!(ended.unwrap_err().to_string(), "no host in /x");
        assert_eq!(out, "");
    }

    #[test]
    fn the_request_is_sent_whole() {
        let words = ["explain", "-X", "POST", "-H", "Accept: a&b", "-H", "cookie:c=d", "http://a/?b=c&d#é"];
        let (ended, _, request) = ask(&words, 200, "{}");
        ended.unwrap();
        assert_eq!(
            request.target,
            "GET /v1/explain?url=http%3A%2F%2Fa%2F%3Fb%3Dc%26d%23%C3%A9&method=POST\
             &header=accept%3A%20a%26b&header=cookie%3A%20c%3Dd"
        );
    }

    #[test]
    fn an_answer_is_readable() {
        let body = r#"{"url":"http://a/","status":null,"tiers":{"L1":"absent","regional":{"state":"fresh","age_s":3}},
            "rules":["first\nline",{"name":"second","won":true,"why":[]}],"variants":[[1,2],[]]}"#;
        let (ended, out, _) = ask(&["explain", "http://a/"], 200, body);
        ended.unwrap();
        assert_eq!(
            out,
            "url:    http://a/\n\
             status: none\n\
             tiers:\n\
             \x20 L1: absent\n\
             \x20 regional:\n\
             \x20   state: fresh\n\
             \x20   age_s: 3\n\
             rules:\n\
             \x20 - first\\nline\n\
             \x20 - name: second\n\
             \x20   won:  yes\n\
             \x20   why:  none\n\
             variants:\n\
             \x20 - - 1\n\
             \x20   - 2\n\
             \x20 - none\n"
        );
    }

    #[test]
    fn raw_json_keeps_its_order() {
        let body = r#"{"z":1,"a":{"y":[true,null]}}"#;
        let (ended, out, _) = ask(&["explain", "--json", "http://a/"], 200, body);
        ended.unwrap();
        assert_eq!(out, format!("{body}\n"));
    }
}
