//! What the tests share: a node in this process, an origin that counts its calls, and a client that sees every byte.
#![allow(dead_code)]

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use perigee::admit;
use perigee::cache::key::Key;
use perigee::cache::purge::{Mode, Scope};
use perigee::clock::Clock;
use perigee::conf::Conf;
use perigee::exchange::Exchange;
use perigee::front::Front;
use perigee::proxy::{Edge, Proxy};
use pingora_core::apps::ServerApp;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::{GetSocketDigest, SocketDigest};
use pingora_http::RequestHeader;
use pingora_proxy::http_proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

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
        tokio::spawn(edge.clone().follow_purges());
        let proxy = Arc::new(Front::new(edge.clone(), http_proxy(&server_conf, Proxy(edge.clone()))));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (proxy, stopped) = (proxy.clone(), stopped.clone());
                tokio::spawn(async move {
                    // As Pingora's own listeners do, so that the client's address is known.
                    let _ = tcp.set_nodelay(true);
                    let digest = SocketDigest::from_raw_fd(tcp.as_raw_fd());
                    let mut stream = Stream::from(tcp);
                    stream.set_socket_digest(digest);
                    let mut stream: Option<pingora_core::protocols::Stream> = Some(Box::new(stream));
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

    /// Begins a GET whose answer can be watched as it comes.
    pub async fn begin(&self, host: &str, path: &str) -> Reading {
        Reading::begin(self.address, host, path).await
    }

    /// Waits until something is so; fails after ten seconds.
    pub async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        until(what, is_so).await;
    }

    /// Waits until nobody is being served and nothing is refreshed any more.
    pub async fn idle(&self) {
        until("nothing in flight", || self.edge.in_flight() == 0).await;
    }

    /// The cache key of a GET for a URL (`http://host/path`).
    pub fn key(&self, url: &str) -> Key {
        let (scheme, rest) = url.split_once("://").expect("a scheme");
        let slash = rest.find('/').expect("a path");
        let mut request = RequestHeader::build("GET", &rest.as_bytes()[slash..], None).expect("a request");
        request.insert_header("host", &rest[..slash]).expect("a host");
        let mut exchange = Exchange::begin(self.edge.registry.world().clone(), &self.edge.pod, self.clock.now());
        exchange.scheme = if scheme == "https" { "https" } else { "http" };
        admit::consider(&request, &mut exchange);
        exchange.key.expect("a request that goes through the cache")
    }

    /// Takes a URL out of service with all its variants.
    pub async fn purge(&self, url: &str, how: Mode) {
        self.purge_scope(Scope::key(&self.key(url).0), how).await;
    }

    /// Takes everything out of service.
    pub async fn purge_all(&self) {
        self.purge_scope(Scope::ALL, Mode::Delete).await;
    }

    pub async fn purge_scope(&self, scope: Scope, how: Mode) {
        let tiers = self.edge.tiers;
        tiers.purges.order(tiers.region.as_ref(), &[scope], how).await;
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

/// The same for what takes a request to find out; fails after twenty seconds.
pub async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < Duration::from_secs(20), "did not come about: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a process runs. One that has ended and that nobody has asked about is not counted.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it, in parentheses, may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
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

/// An answer that is still coming. Dropped, the client has left in the middle.
pub struct Reading {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Reading {
    pub async fn begin(address: SocketAddr, host: &str, path: &str) -> Reading {
        let mut reading = Reading::connect(address).await;
        reading.ask("GET", host, path, "Connection: close\r\n").await;
        reading
    }

    pub async fn connect(address: SocketAddr) -> Reading {
        Reading { stream: TcpStream::connect(address).await.expect("a connection"), received: Vec::new() }
    }

    /// Asks on the open connection; forgets what came before. `lines` are further field lines.
    pub async fn ask(&mut self, method: &str, host: &str, path: &str, lines: &str) {
        self.received.clear();
        let text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n");
        self.stream.write_all(text.as_bytes()).await.expect("sent");
    }

    /// Asks for something short and whose length is told; the connection stays open.
    pub async fn get(&mut self, host: &str, path: &str) -> Answer {
        self.ask("GET", host, path, "").await;
        loop {
            let answer = parse(&self.received, false);
            if answer.complete {
                return answer;
            }
            let read = self.stream.read_buf(&mut self.received).await.expect("more of the answer");
            assert!(read > 0, "ended within {answer:?}");
        }
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("sent");
    }

    /// Reads until this text has come, and forgets everything up to its end.
    pub async fn until_past(&mut self, text: &str) {
        self.until(text).await;
        let at = self.received.windows(text.len()).position(|window| window == text.as_bytes()).expect("it has come");
        self.received.drain(..at + text.len());
    }

    pub fn has(&self, text: &str) -> bool {
        self.received.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// Whether what came says that the connection ends with it.
    pub fn is_last(&self) -> bool {
        parse(&self.received, true).field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// Reads until this text has come; fails after ten seconds, or when the answer ends before.
    pub async fn until(&mut self, text: &str) {
        let has_come = async {
            while !self.received.windows(text.len()).any(|window| window == text.as_bytes()) {
                let read = self.stream.read_buf(&mut self.received).await.expect("more of the answer");
                assert!(read > 0, "ended before {text:?}: {}", String::from_utf8_lossy(&self.received));
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(10), has_come).await;
        assert!(in_time.is_ok(), "did not come: {text:?}");
    }

    pub async fn finish(mut self) -> Answer {
        let read = tokio::time::timeout(Duration::from_secs(60), self.stream.read_to_end(&mut self.received)).await;
        assert!(read.is_ok(), "the answer did not end");
        parse(&self.received, false)
    }
}

/// Keeps an origin from going on until the test opens it. Clones are the same gate.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Semaphore>);

impl Default for Gate {
    fn default() -> Gate {
        Gate(Arc::new(Semaphore::new(0)))
    }
}

impl Gate {
    pub fn open(&self) {
        self.0.close();
    }

    async fn pass(&self) {
        let _ = self.0.acquire().await;
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
    /// What has to be opened before the header is sent, and before the second half of the body.
    pub gate: Option<Gate>,
    pub gate_midway: Option<Gate>,
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
            gate: None,
            gate_midway: None,
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

    pub fn held(mut self, gate: &Gate) -> Reply {
        self.gate = Some(gate.clone());
        self
    }

    pub fn held_midway(mut self, gate: &Gate) -> Reply {
        self.gate_midway = Some(gate.clone());
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
    accepting: Mutex<Option<JoinHandle<()>>>,
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
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = serving.clone();
                // Header and halves are written one by one: each would wait for the word that the one before has come.
                let _ = stream.set_nodelay(true);
                connections.spawn(async move {
                    let _ = serve(stream, shared).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Origin { address, shared, accepting: Mutex::new(Some(accepting)) }
    }

    /// Ends all connections and refuses new ones.
    pub async fn stop(&self) {
        let accepting = self.accepting.lock().take();
        if let Some(accepting) = accepting {
            accepting.abort();
            let _ = accepting.await;
        }
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
        if let Some(gate) = &reply.gate {
            gate.pass().await;
        }
        if !answer(&mut stream, &reply, head).await? || close {
            return Ok(());
        }
    }
}

async fn midway(reply: &Reply) {
    tokio::time::sleep(reply.pause).await;
    if let Some(gate) = &reply.gate_midway {
        gate.pass().await;
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
            midway(reply).await;
            stream.write_all(&chunk(second)).await?;
            stream.write_all(b"0\r\n\r\n").await?;
            Ok(true)
        }
        Framing::CutChunked => {
            stream.write_all(&chunk(first)).await?;
            midway(reply).await;
            Ok(false)
        }
        Framing::CutLength => {
            stream.write_all(first).await?;
            midway(reply).await;
            Ok(false)
        }
        _ => {
            stream.write_all(first).await?;
            midway(reply).await;
            stream.write_all(second).await?;
            Ok(reply.framing != Framing::Close)
        }
    }
}
