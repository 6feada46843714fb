//! What the tests share: a node in this process, an origin that counts its calls, and a client that sees every byte.
#![allow(dead_code)]

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use perigee::clock::Clock;
use perigee::conf::Conf;
use perigee::proxy::{Edge, Proxy};
use pingora_core::apps::ServerApp;
use pingora_core::protocols::l4::stream::Stream;
use pingora_proxy::http_proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A node with real sockets, in this process so that its clock can be moved.
pub struct Node {
    pub edge: Arc<Edge>,
    pub address: SocketAddr,
    pub clock: Clock,
    pub dir: Arc<tempfile::TempDir>,
    _stop: watch::Sender<bool>,
}

impl Node {
    /// `yaml`: what follows region, data, domain and listen, which are given. `{dir}` stands for the test's own folder.
    pub async fn start(yaml: &str) -> Node {
        Node::start_in(Arc::new(tempfile::tempdir().expect("a folder")), yaml).await
    }

    pub async fn start_in(dir: Arc<tempfile::TempDir>, yaml: &str) -> Node {
        let clock = Clock::default();
        let conf = conf(dir.path(), yaml);
        let server_conf = Arc::new(perigee::server::pingora_conf(&conf));
        let runtime = tokio::runtime::Handle::current();
        let building = clock.clone();
        let edge = tokio::task::spawn_blocking(move || Edge::build(conf, building, runtime).expect("an edge"))
            .await
            .expect("no panic");
        tokio::spawn(edge.clone().keep_time());
        let proxy = Arc::new(http_proxy(&server_conf, Proxy(edge.clone())));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (proxy, stopped) = (proxy.clone(), stopped.clone());
                tokio::spawn(async move {
                    let mut stream: Option<pingora_core::protocols::Stream> = Some(Box::new(Stream::from(tcp)));
                    while let Some(open) = stream.take() {
                        stream = proxy.process_new(open, &stopped).await;
                    }
                });
            }
        });
        Node { edge, address, clock, dir, _stop: stop }
    }

    /// A node in front of an origin, reached as `shop.test`.
    pub async fn before(origin: &Origin) -> Node {
        Node::before_with(origin, "").await
    }

    pub async fn before_with(origin: &Origin, yaml: &str) -> Node {
        let yaml = format!(
            "{yaml}\ndeployments:\n  - upstream: http://{}\n    name: shop\n    aliases: [shop.test]\n",
            origin.address
        );
        Node::start(&yaml).await
    }

    /// A node with a project, reached as `site.test`. `files`: path and text.
    pub async fn with_project(files: &[(&str, &str)]) -> Node {
        Node::with_project_and(files, "").await
    }

    pub async fn with_project_and(files: &[(&str, &str)], yaml: &str) -> Node {
        let dir = Arc::new(tempfile::tempdir().expect("a folder"));
        write_files(&dir.path().join("site"), files);
        let yaml = format!("{yaml}\ndeployments:\n  - path: {{dir}}/site\n    aliases: [site.test]\n");
        Node::start_in(dir, &yaml).await
    }

    pub async fn get(&self, host: &str, path: &str) -> Answer {
        self.request("GET", host, path, &[], b"").await
    }

    pub async fn get_with(&self, host: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
        self.request("GET", host, path, fields, b"").await
    }

    pub async fn request(&self, method: &str, host: &str, path: &str, fields: &[(&str, &str)], body: &[u8]) -> Answer {
        request(self.address, method, host, path, fields, body).await
    }

    /// As many requests at once, in one burst.
    pub async fn burst(&self, count: usize, host: &str, path: &str) -> Vec<Answer> {
        self.burst_with(count, host, path, &[]).await
    }

    pub async fn burst_with(&self, count: usize, host: &str, path: &str, fields: &[(&str, &str)]) -> Vec<Answer> {
        let fields: Vec<(String, String)> = fields.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let tasks: Vec<_> = (0..count)
            .map(|_| {
                let (address, host, path, fields) = (self.address, host.to_owned(), path.to_owned(), fields.clone());
                tokio::spawn(async move {
                    let fields: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                    request(address, "GET", &host, &path, &fields, b"").await
                })
            })
            .collect();
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.expect("no panic"));
        }
        answers
    }

    /// Waits until something is so; fails after ten seconds.
    pub async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        until(what, is_so).await;
    }
}

/// Waits until something is so; fails after ten seconds.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(10), "did not come about: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn conf(dir: &Path, yaml: &str) -> Conf {
    let dir = dir.display();
    let text = format!(
        "region: sfo1\nnode: test-a\nthreads: 2\ndata: {dir}/data\ndomain: now.test\nlisten: {{http: [\"127.0.0.1:0\"], admin: off}}\n{}",
        yaml.replace("{dir}", &dir.to_string())
    );
    Conf::parse(Path::new("test.yaml"), &text).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

pub fn write_files(folder: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
}

/// What came back, whole or not.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// 0: nothing that could be read.
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body ended as its framing said that it would.
    pub complete: bool,
    pub took: Duration,
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// What `x-now-cache` says.
    pub fn cache(&self) -> &str {
        self.field("x-now-cache").unwrap_or("-")
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub async fn request(
    address: SocketAddr,
    method: &str,
    host: &str,
    path: &str,
    fields: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" || method == "PUT" {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    raw(address, &bytes, method == "HEAD").await
}

/// Sends bytes as they are and reads one answer.
pub async fn raw(address: SocketAddr, bytes: &[u8], head: bool) -> Answer {
    let began = Instant::now();
    let mut answer = exchange(address, bytes, head).await.unwrap_or_default();
    answer.took = began.elapsed();
    answer
}

async fn exchange(address: SocketAddr, bytes: &[u8], head: bool) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    // The other side may answer and close before it has read all of it.
    let sent = stream.write_all(bytes).await;
    let mut received = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut received)).await;
    if received.is_empty() {
        sent?;
        read.map_err(io::Error::other)??;
    }
    Ok(parse(&received, head))
}

fn parse(mut bytes: &[u8], head: bool) -> Answer {
    let mut answer = Answer::default();
    loop {
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { return answer };
        let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
        bytes = &bytes[end + 4..];
        let mut lines = text.split("\r\n");
        answer.status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|s| s.parse().ok()).unwrap_or(0);
        answer.fields = lines
            .filter_map(|line| line.split_once(':').map(|(n, v)| (n.trim().to_ascii_lowercase(), v.trim().to_owned())))
            .collect();
        if !(100..200).contains(&answer.status) {
            break;
        }
    }
    if head || answer.status == 304 || answer.status == 204 {
        answer.complete = bytes.is_empty();
    } else if let Some(length) = answer.field("content-length").and_then(|v| v.parse::<usize>().ok()) {
        answer.complete = bytes.len() == length;
        answer.body = bytes.to_vec();
    } else if answer.field("transfer-encoding").is_some() {
        let (body, complete) = dechunk(bytes);
        (answer.body, answer.complete) = (body, complete);
    } else {
        answer.body = bytes.to_vec();
        answer.complete = true;
    }
    answer
}

fn dechunk(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = bytes.windows(2).position(|w| w == b"\r\n") else { return (body, false) };
        let size = usize::from_str_radix(String::from_utf8_lossy(&bytes[..end]).trim(), 16).unwrap_or(usize::MAX);
        bytes = &bytes[end + 2..];
        if size == 0 {
            return (body, bytes == b"\r\n");
        }
        if bytes.len() < size + 2 {
            body.extend_from_slice(&bytes[..bytes.len().min(size)]);
            return (body, false);
        }
        body.extend_from_slice(&bytes[..size]);
        bytes = &bytes[size + 2..];
    }
}

/// How an origin answers.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Before the header is sent.
    pub delay: Duration,
    /// Between the two halves of the body.
    pub pause: Duration,
    pub framing: Framing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Length,
    Chunked,
    /// Neither length nor chunks: the end of the connection is the end of the body.
    Close,
    /// Announces the whole and sends half.
    CutLength,
    CutChunked,
    /// Resets the connection without a word.
    Reset,
    /// Says nothing for as long as the connection is open.
    Hang,
}

impl Reply {
    pub fn ok(body: impl Into<Vec<u8>>) -> Reply {
        Reply {
            status: 200,
            fields: Vec::new(),
            body: body.into(),
            delay: Duration::ZERO,
            pause: Duration::ZERO,
            framing: Framing::Length,
        }
    }

    pub fn cached(body: impl Into<Vec<u8>>, cache_control: &str) -> Reply {
        Reply::ok(body).field("cache-control", cache_control)
    }

    pub fn status(mut self, status: u16) -> Reply {
        self.status = status;
        self
    }

    pub fn field(mut self, name: &str, value: &str) -> Reply {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn after(mut self, ms: u64) -> Reply {
        self.delay = Duration::from_millis(ms);
        self
    }

    pub fn pausing(mut self, ms: u64) -> Reply {
        self.pause = Duration::from_millis(ms);
        self
    }

    pub fn framing(mut self, framing: Framing) -> Reply {
        self.framing = framing;
        self
    }
}

/// A request as an origin saw it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub method: String,
    /// With the query.
    pub target: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// An HTTP origin that counts.
pub struct Origin {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    replies: HashMap<String, Reply>,
    seen: Vec<Seen>,
}

impl Origin {
    /// Answers 404 to what it was not told about.
    pub async fn start() -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let serving = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = serving.clone();
                tokio::spawn(async move {
                    let _ = serve(stream, shared).await;
                });
            }
        });
        Origin { address, shared }
    }

    /// How it answers for a path (without the query) from now on.
    pub fn on(&self, path: &str, reply: Reply) {
        self.shared.lock().replies.insert(path.to_owned(), reply);
    }

    /// How often a path (without the query) was asked for.
    pub fn calls(&self, path: &str) -> usize {
        self.shared.lock().seen.iter().filter(|seen| path_of(&seen.target) == path).count()
    }

    /// The latest request for a path.
    pub fn last(&self, path: &str) -> Seen {
        self.shared.lock().seen.iter().rev().find(|seen| path_of(&seen.target) == path).cloned().unwrap_or_default()
    }
}

fn path_of(target: &str) -> &str {
    target.split('?').next().unwrap_or(target)
}

async fn serve(mut stream: TcpStream, shared: Arc<Mutex<Shared>>) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let text = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end + 4);
        let mut lines = text.split("\r\n");
        let mut first = lines.next().unwrap_or("").split(' ');
        let mut seen = Seen {
            method: first.next().unwrap_or("").to_owned(),
            target: first.next().unwrap_or("").to_owned(),
            fields: lines
                .filter_map(|line| line.split_once(':').map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())))
                .collect(),
            body: Vec::new(),
        };
        let length: usize = seen.field("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
        while buffer.len() < length {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        seen.body = buffer.drain(..length).collect();
        let head = seen.method == "HEAD";
        let close = seen.field("connection") == Some("close");
        let reply = {
            let mut shared = shared.lock();
            let reply = shared.replies.get(path_of(&seen.target)).cloned();
            let conditional = seen.field("if-none-match").map(str::to_owned);
            shared.seen.push(seen);
            let reply = reply.unwrap_or_else(|| Reply::ok("unknown").status(404));
            let etag = reply.fields.iter().find(|(n, _)| n == "etag").map(|(_, v)| v.clone());
            if conditional.is_some() && conditional == etag {
                Reply { status: 304, body: Vec::new(), ..reply }
            } else {
                reply
            }
        };
        tokio::time::sleep(reply.delay).await;
        if !answer(&mut stream, &reply, head).await? || close {
            return Ok(());
        }
    }
}

/// True when the connection can go on.
async fn answer(stream: &mut TcpStream, reply: &Reply, head: bool) -> io::Result<bool> {
    match reply.framing {
        Framing::Reset => {
            stream.set_zero_linger()?;
            return Ok(false);
        }
        Framing::Hang => {
            let mut rest = [0; 64];
            while stream.read(&mut rest).await? > 0 {}
            return Ok(false);
        }
        _ => {}
    }
    let mut text = format!("HTTP/1.1 {} X\r\n", reply.status);
    for (name, value) in &reply.fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    match reply.framing {
        Framing::Chunked | Framing::CutChunked => text.push_str("transfer-encoding: chunked\r\n"),
        Framing::Close => text.push_str("connection: close\r\n"),
        _ if reply.status == 304 => {}
        _ => text.push_str(&format!("content-length: {}\r\n", reply.body.len())),
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).await?;
    if head || reply.status == 304 {
        return Ok(true);
    }
    let (first, second) = reply.body.split_at(reply.body.len() / 2);
    let chunk = |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
    match reply.framing {
        Framing::Chunked => {
            stream.write_all(&chunk(first)).await?;
            tokio::time::sleep(reply.pause).await;
            stream.write_all(&chunk(second)).await?;
            stream.write_all(b"0\r\n\r\n").await?;
            Ok(true)
        }
        Framing::CutChunked => {
            stream.write_all(&chunk(first)).await?;
            tokio::time::sleep(reply.pause).await;
            Ok(false)
        }
        Framing::CutLength => {
            stream.write_all(first).await?;
            tokio::time::sleep(reply.pause).await;
            Ok(false)
        }
        _ => {
            stream.write_all(first).await?;
            tokio::time::sleep(reply.pause).await;
            stream.write_all(second).await?;
            Ok(reply.framing != Framing::Close)
        }
    }
}
