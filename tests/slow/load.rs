//! Clients and an origin that cost little: threads that block, connections that are kept, bytes that are prepared. The node gets the cores.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const HOST: &str = "shop.test";

/// A configuration with the origin behind `HOST`. `cache`: what stands in the braces after `cache:`.
pub fn shop(origin: SocketAddr, cache: &str) -> String {
    format!("cache: {{{cache}}}\ndeployments:\n  - {{upstream: \"http://{origin}\", name: shop, aliases: [{HOST}]}}")
}

/// A client with one connection.
pub struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
    received: Vec<u8>,
}

/// An answer that came as its framing said that it would.
#[derive(Debug, Clone)]
pub struct Got {
    pub status: u16,
    /// What `x-now-cache` says.
    pub cache: String,
    pub body: Vec<u8>,
    pub took: Duration,
}

impl Got {
    pub fn is_hit(&self) -> bool {
        self.cache == "HIT"
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or("not text")
    }
}

impl Client {
    /// Connects with the first request.
    pub fn of(address: SocketAddr) -> Client {
        Client { address, stream: None, received: Vec::new() }
    }

    /// Asks once: an error is a failed request.
    pub fn get(&mut self, path: &str) -> io::Result<Got> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
    }

    pub fn post(&mut self, path: &str, body: &str) -> io::Result<Got> {
        self.send(&format!("POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    }

    fn send(&mut self, request: &str) -> io::Result<Got> {
        let began = Instant::now();
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(30)))?;
                stream
            }
        };
        (&stream).write_all(request.as_bytes())?;
        let head = read_head(&stream, &mut self.received)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let body = match (field(&head, "content-length"), field(&head, "transfer-encoding")) {
            (Some(length), _) => {
                let length = length.parse().map_err(io::Error::other)?;
                read_to(&stream, &mut self.received, length)?;
                self.received.drain(..length).collect()
            }
            (None, Some(_)) => read_chunks(&stream, &mut self.received)?,
            (None, None) => return Err(io::Error::other(format!("no framing: {head}"))),
        };
        let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        let cache = field(&head, "x-now-cache").unwrap_or("-").to_owned();
        if field(&head, "connection").is_none_or(|value| !value.eq_ignore_ascii_case("close")) {
            self.stream = Some(stream);
        }
        Ok(Got { status, cache, body, took: began.elapsed() })
    }
}

/// Reads more; an error at the end of the stream.
fn read_more(mut stream: &TcpStream, received: &mut Vec<u8>) -> io::Result<()> {
    let before = received.len();
    received.resize(before + 16 * 1024, 0);
    let read = stream.read(&mut received[before..]);
    received.truncate(before + read.as_ref().copied().unwrap_or(0));
    if read? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

fn read_to(stream: &TcpStream, received: &mut Vec<u8>, bytes: usize) -> io::Result<()> {
    while received.len() < bytes {
        read_more(stream, received)?;
    }
    Ok(())
}

/// Takes a head; `None` when the connection ended before its first byte.
fn read_head(stream: &TcpStream, received: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = find(received, "\r\n\r\n") {
            let head = received.drain(..end + 4).collect();
            return String::from_utf8(head).map(Some).map_err(io::Error::other);
        }
        match read_more(stream, received) {
            Err(_) if received.is_empty() => return Ok(None),
            read => read?,
        }
    }
}

fn read_chunks(stream: &TcpStream, received: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = find(received, "\r\n") else {
            read_more(stream, received)?;
            continue;
        };
        let size = std::str::from_utf8(&received[..end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let size = size.ok_or_else(|| io::Error::other("not a chunk"))?;
        read_to(stream, received, end + 2 + size + 2)?;
        body.extend_from_slice(&received[end + 2..end + 2 + size]);
        received.drain(..end + 2 + size + 2);
        if size == 0 {
            return Ok(body);
        }
    }
}

/// Where a text begins. Looks at ASCII in front of it only; the standard library's search is fast in a debug build as well.
fn find(bytes: &[u8], text: &str) -> Option<usize> {
    let ascii = &bytes[..bytes.len().min(16 * 1024)];
    let known = match std::str::from_utf8(ascii) {
        Ok(known) => known,
        Err(error) => std::str::from_utf8(&ascii[..error.valid_up_to()]).unwrap_or_default(),
    };
    known.find(text)
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.split("\r\n").filter_map(|line| line.split_once(':'));
    fields.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// What an origin sends: a whole answer with its length.
pub fn answer(fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{fields}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Starts an origin, a thread a connection, for as long as this process runs. `answer` makes of a target what is sent; it may sleep.
pub fn origin(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let mut received = Vec::new();
                while let Ok(Some(head)) = read_head(&stream, &mut received) {
                    let target = head.split(' ').nth(1).unwrap_or_default();
                    if (&stream).write_all(&answer(target)).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Keeps a pace: so many times a second, without making up for more than a moment that was missed.
pub struct Pace {
    next: Instant,
    step: Duration,
}

impl Pace {
    pub fn per_second(times: u32) -> Pace {
        Pace { next: Instant::now(), step: Duration::from_secs(1) / times }
    }

    pub fn keep(&mut self) {
        let now = Instant::now();
        std::thread::sleep(self.next.saturating_duration_since(now));
        self.next = (self.next + self.step).max(now.checked_sub(Duration::from_millis(20)).unwrap_or(now));
    }
}

/// p50, p99 and the largest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
    pub count: usize,
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
        let Times { p50, p99, max, count } = *self;
        write!(f, "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms of {count}", ms(p50), ms(p99), ms(max))
    }
}

pub fn times(all: impl IntoIterator<Item = Duration>) -> Times {
    let mut all: Vec<Duration> = all.into_iter().collect();
    all.sort_unstable();
    let at =
        |part: usize| all.get((all.len() * part / 100).min(all.len().saturating_sub(1))).copied().unwrap_or_default();
    Times { p50: at(50), p99: at(99), max: at(100), count: all.len() }
}
