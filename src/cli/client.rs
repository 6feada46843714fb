//! A client of a node's admin interface: where the node is, how to prove oneself to it, and what its answers mean.
//! Plain HTTP only: the admin address is a loopback or private one, and whoever needs more brings a tunnel.

use std::{
    fmt, fs,
    io::{self, Read, Write},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use http::{HeaderValue, Method, header, uri::Authority};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use ureq::{AsSendBody, SendBody};

const DEFAULT_ADDRESS: &str = "127.0.0.1:9180";

/// An answer is a table or an explanation; more than this is not from a node.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A purge waits for the nodes of other regions, so not all of this is suspicious.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// A deployment is unpacked and put into the global store before it is answered.
const DEPLOY_WAIT: Duration = Duration::from_secs(600);

/// Characters that RFC 3986 calls unreserved stay as they are, in a path segment and in a query value.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The flags that every client command has.
#[derive(Debug, Args)]
pub struct NodeArguments {
    /// The node's admin address
    #[arg(long, value_name = "ADDR", env = "PERIGEE_ADMIN", default_value = DEFAULT_ADDRESS)]
    admin: String,
    // Absent on purpose: a flag for the token itself, which every user of the machine could read in the process list.
    /// A file that holds the admin token; without it, the token is PERIGEE_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Why a command could not be carried out.
#[derive(Debug)]
pub enum Failure {
    /// A mistake in what was asked, found before any node was.
    Input(String),
    /// Nobody listens there.
    NoNode { address: String, cause: String },
    /// Somebody listens, and the exchange broke off.
    Lost { address: String, cause: String },
    /// The node said no.
    Refused { message: String },
    /// Whoever answered does not speak the admin interface.
    NotUnderstood { address: String, status: u16 },
    /// Our own output could not be written.
    Output(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Input(mistake) => f.write_str(mistake),
            Failure::NoNode { address, cause } => write!(
                f,
                "no node answers at {address} ({cause}): a node must be running (perigee serve -c FILE), \
                 and --admin or PERIGEE_ADMIN must name its admin address"
            ),
            Failure::Lost { address, cause } => {
                write!(f, "the exchange with the node at {address} broke off: {cause}")
            }
            Failure::Refused { message } => f.write_str(message),
            Failure::NotUnderstood { address, status } => {
                write!(f, "what answers at {address} is not a node's admin interface (status {status})")
            }
            Failure::Output(error) => write!(f, "cannot write the output: {error}"),
        }
    }
}

/// A connection to one node.
#[derive(Debug)]
pub struct Client {
    agent: ureq::Agent,
    address: Authority,
    authorization: Option<HeaderValue>,
}

impl Client {
    pub fn new(arguments: &NodeArguments) -> Result<Client, Failure> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // The token goes to the address that was named, not to a proxy or to where a redirect points.
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("perigee/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_await_100(Some(Duration::from_millis(250)))
            .timeout_per_write(Some(ANSWER_WAIT))
            .timeout_recv_body(Some(ANSWER_WAIT))
            .build();
        Ok(Client {
            agent: config.new_agent(),
            address: address(&arguments.admin)?,
            authorization: authorization(arguments)?,
        })
    }

    pub fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, Failure> {
        self.exchange(self.request(Method::GET, target), (), ANSWER_WAIT)
    }

    pub fn delete<T: DeserializeOwned>(&self, target: &str) -> Result<T, Failure> {
        self.exchange(self.request(Method::DELETE, target), (), ANSWER_WAIT)
    }

    pub fn send<T: DeserializeOwned>(&self, method: Method, target: &str, body: &Value) -> Result<T, Failure> {
        let request = self.request(method, target).header(header::CONTENT_TYPE, "application/json");
        self.exchange(request, body.to_string().as_bytes(), ANSWER_WAIT)
    }

    /// Streams a tar of known length. The length lets the node refuse before it reads; the expectation lets us hear that
    /// (else the refusal drowns in a reset connection). A node that knows no 100 costs a quarter of a second.
    pub fn upload<T: DeserializeOwned>(&self, target: &str, length: u64, tar: &mut dyn Read) -> Result<T, Failure> {
        let request = self
            .request(Method::POST, target)
            .header(header::CONTENT_TYPE, "application/x-tar")
            .header(header::CONTENT_LENGTH, length)
            .header(header::EXPECT, "100-continue");
        self.exchange(request, SendBody::from_reader(tar), DEPLOY_WAIT)
    }

    fn request(&self, method: Method, target: &str) -> http::request::Builder {
        let uri = format!("http://{}{target}", self.address);
        let request = http::Request::builder().method(method).uri(uri);
        match &self.authorization {
            Some(authorization) => request.header(header::AUTHORIZATION, authorization),
            None => request,
        }
    }

    fn exchange<T: DeserializeOwned>(
        &self,
        request: http::request::Builder,
        body: impl AsSendBody,
        wait: Duration,
    ) -> Result<T, Failure> {
        let request = request.body(body).map_err(|error| Failure::Input(error.to_string()))?;
        let request = self.agent.configure_request(request).timeout_recv_response(Some(wait)).build();
        let mut response = self.agent.run(request).map_err(|error| self.failure(error))?;
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let body = body.map_err(|error| self.failure(error))?;
        self.read_answer(response.status(), &body)
    }

    fn read_answer<T: DeserializeOwned>(&self, status: http::StatusCode, body: &[u8]) -> Result<T, Failure> {
        let not_understood = || Failure::NotUnderstood { address: self.address.to_string(), status: status.as_u16() };
        if status.is_success() {
            return serde_json::from_slice(body).map_err(|_| not_understood());
        }
        let refusal: Refusal = serde_json::from_slice(body).map_err(|_| not_understood())?;
        let Reason { code, message } = refusal.error;
        let message = if message.is_empty() { code } else { message };
        // Lines stay lines: a node tells one mistake in each.
        let lines: Vec<String> = message.lines().map(printable).collect();
        Err(Failure::Refused { message: lines.join("\n") })
    }

    fn failure(&self, error: ureq::Error) -> Failure {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, InvalidData, UnexpectedEof};
        let address = self.address.to_string();
        match error {
            ureq::Error::Io(error) => match error.kind() {
                BrokenPipe | ConnectionAborted | ConnectionReset | InvalidData | UnexpectedEof => {
                    Failure::Lost { address, cause: error.to_string() }
                }
                io::ErrorKind::ConnectionRefused => Failure::NoNode { address, cause: "connection refused".to_owned() },
                // Nobody by that name, no way there: some of these have no kind of their own in std.
                _ => Failure::NoNode { address, cause: error.to_string() },
            },
            ureq::Error::ConnectionFailed
            | ureq::Error::HostNotFound
            | ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                Failure::NoNode { address, cause: error.to_string() }
            }
            error => Failure::Lost { address, cause: error.to_string() },
        }
    }
}

/// As one segment of a path, or one value of a query.
pub fn encode(text: &str) -> impl fmt::Display {
    utf8_percent_encode(text, ENCODED)
}

/// What a node says ends up in a terminal, which obeys control characters; so it gets them spelled out.
pub fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable
}

/// Writes a command's result, which is all that goes to stdout.
pub fn print(out: &mut dyn Write, text: &str) -> Result<(), Failure> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
}

#[derive(Deserialize)]
struct Refusal {
    error: Reason,
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

fn address(written: &str) -> Result<Authority, Failure> {
    let mistake = |what: &str| {
        let written = printable(written);
        Failure::Input(format!("admin address {written:?} {what}; write HOST:PORT, as in {DEFAULT_ADDRESS}"))
    };
    let trimmed = match written.trim() {
        // An empty PERIGEE_ADMIN is an absent one.
        "" => DEFAULT_ADDRESS,
        trimmed => trimmed,
    };
    if trimmed.starts_with("https://") {
        return Err(mistake("asks for TLS, which this client does not speak"));
    }
    let bare = trimmed.strip_prefix("http://").unwrap_or(trimmed);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    let authority: Authority = bare.parse().map_err(|_| mistake("is not an address"))?;
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(mistake("is not an address"));
    }
    if authority.port_u16().is_none() {
        return Err(mistake("has no port"));
    }
    Ok(authority)
}

fn authorization(arguments: &NodeArguments) -> Result<Option<HeaderValue>, Failure> {
    let token = match &arguments.token_file {
        Some(file) => fs::read_to_string(file)
            .map_err(|error| Failure::Input(format!("token file {}: {error}", file.display())))?,
        None => std::env::var("PERIGEE_TOKEN").unwrap_or_default(),
    };
    let token = token.trim();
    if token.is_empty() {
        return match &arguments.token_file {
            Some(file) => Err(Failure::Input(format!("token file {} is empty", file.display()))),
            None => Ok(None),
        };
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| Failure::Input("the admin token holds a control character".to_owned()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// A node that answers once, for the tests of the commands.
#[cfg(test)]
pub(super) mod testing {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpListener,
        thread::{self, JoinHandle},
    };

    use clap::Parser;
    use serde_json::Value;

    use super::super::{Arguments, Cli, Command, Failure, dispatch};

    pub struct Node {
        pub address: String,
        exchange: JoinHandle<Request>,
    }

    /// What the node was asked.
    pub struct Request {
        /// `GET /v1/deployments`
        pub target: String,
        pub head: String,
        pub body: Vec<u8>,
    }

    impl Request {
        pub fn json(&self) -> Value {
            serde_json::from_slice(&self.body).unwrap()
        }
    }

    impl Node {
        pub fn answering(status: u16, body: &str) -> Node {
            Node::new(format!("HTTP/1.1 {status} Answer\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
        }

        /// Whatever the bytes are; nothing at all hangs up. A refusal (4xx) comes before the body is read.
        pub fn new(answer: String) -> Node {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let exchange = thread::spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(&stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    assert!(reader.read_line(&mut head).unwrap() > 0, "head: {head}");
                }
                let mut body = Vec::new();
                if !answer.starts_with("HTTP/1.1 4") {
                    if head.contains("expect: 100-continue") {
                        (&stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
                    }
                    let length = head
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length: "))
                        .map_or(0, |length| length.parse().unwrap());
                    reader.by_ref().take(length).read_to_end(&mut body).unwrap();
                }
                (&stream).write_all(answer.as_bytes()).unwrap();
                let first = head.lines().next().unwrap();
                let target = first.strip_suffix(" HTTP/1.1").unwrap().to_owned();
                Request { target, head, body }
            });
            Node { address, exchange }
        }

        pub fn request(self) -> Request {
            self.exchange.join().unwrap()
        }
    }

    /// Carries out one command line against an address: how it ended, and what it wrote to stdout.
    pub fn run(words: &[&str], address: &str) -> (Result<(), Failure>, String) {
        let line = [&["perigee"], words, &["--admin", address]].concat();
        let Command::Client(command) = Cli::from(Arguments::try_parse_from(line).unwrap()).command else {
            panic!("not a client command: {words:?}");
        };
        let mut out = Vec::new();
        let ended = dispatch(&command, &mut out);
        (ended, String::from_utf8(out).unwrap())
    }

    /// The same against a node that answers this, once.
    pub fn ask(words: &[&str], status: u16, body: &str) -> (Result<(), Failure>, String, Request) {
        let node = Node::answering(status, body);
        let (ended, out) = run(words, &node.address);
        (ended, out, node.request())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::{testing::Node, *};

    fn client(address: &str) -> Client {
        Client::new(&NodeArguments { admin: address.to_owned(), token_file: None }).unwrap()
    }

    #[test]
    fn addresses_are_a_host_and_a_port() {
        let check = |written: &str, expected: Result<&str, &str>| {
            let found = address(written).map(|address| address.to_string());
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{written:?}"),
                (Err(found), Err(expected)) => {
                    assert!(found.to_string().contains(expected), "{written:?}: {found}");
                }
                (found, expected) => panic!("{written:?}: {found:?} is not {expected:?}"),
            }
        };
        check("https://node:9180", Err("TLS"));
        check("node", Err("no port"));
        check(":9180", Err("not an address"));
        check("me@node:9180", Err("not an address"));
        check("node:9180/v1", Err("not an address"));
        check("node:99999", Err("no port"));
        check("a b:1", Err("not an address"));
        check("", Ok("127.0.0.1:9180"));
        check(" 127.0.0.1:1 ", Ok("127.0.0.1:1"));
        check("http://node:9180/", Ok("node:9180"));
        check("[::1]:9180", Ok("[::1]:9180"));
    }

    #[test]
    fn a_refused_connection_names_the_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let failure = client(&address).get::<Value>("/v1/deployments").unwrap_err();
        assert!(matches!(failure, Failure::NoNode { .. }), "{failure:?}");
        let text = failure.to_string();
        assert!(text.contains(&address) && text.contains("a node must be running"), "{text}");
    }

    #[test]
    fn answers_are_told_apart() {
        let check = |answer: &str, expected: &str| {
            let node = Node::new(answer.to_owned());
            let failure = client(&node.address).get::<Value>("/").unwrap_err();
            let text = failure.to_string();
            assert!(text.contains(expected), "answer: {answer:?}: {text}");
            node.request();
        };
        let answer =
            |status: u16, body: &str| format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        check("", "broke off");
        check("SSH-2.0-OpenSSH\r\n\r\n", "broke off");
        check("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "broke off");
        check(&answer(200, "<html>"), "not a node's admin interface (status 200)");
        check(&answer(404, "not found"), "not a node's admin interface (status 404)");
        check(&answer(404, "{\"error\":\"x\"}"), "not a node's admin interface (status 404)");
        check("HTTP/1.1 302 X\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", "status 302");
        check(
            &answer(401, r#"{"error":{"code":"UNAUTHORIZED","message":"a token is \u001b[1mneeded"}}"#),
            "a token is \\u{1b}[1mneeded",
        );
        check(&answer(500, r#"{"error":{"code":"UNEXPECTED"}}"#), "UNEXPECTED");
    }

    #[test]
    fn the_token_comes_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let arguments = |admin: &str| NodeArguments { admin: admin.to_owned(), token_file: Some(file.clone()) };
        let check = |content: &str, expected: &str| {
            fs::write(&file, content).unwrap();
            let failure = Client::new(&arguments(DEFAULT_ADDRESS)).unwrap_err();
            assert!(failure.to_string().contains(expected), "{content:?}: {failure}");
        };
        let failure = Client::new(&arguments(DEFAULT_ADDRESS)).unwrap_err();
        assert!(failure.to_string().contains("token"), "{failure}");
        check(" \n", "is empty");
        check("a\nb", "control character");

        fs::write(&file, "s3cret\n").unwrap();
        let node = Node::answering(200, "{}");
        let client = Client::new(&arguments(&node.address)).unwrap();
        client.get::<Value>("/v1/deployments").unwrap();
        assert!(!format!("{client:?}").contains("s3cret"));
        let head = node.request().head;
        assert!(head.contains("authorization: Bearer s3cret\r\n"), "{head}");
    }
}
