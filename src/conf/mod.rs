//! The configuration as the program sees it: every value valid, every default filled in, never changed once made.
//! `raw` has the YAML as written. What a value means, which are allowed and which go together is decided here, in one pass that reports
//! every mistake of a file, because an operator who is told one mistake a start needs as many starts as there are mistakes.

mod raw;
pub mod units;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use raw::{Place, Placed, Reader, Section};
use units::{GB, KB, MB};

/// A name and the unique id behind it (`NAME-UID`) must fit one DNS label of 63 characters.
pub const NAME_CHARS_MAX: usize = 52;
/// `NAME-UID.` before the domain takes up to 64 of the 253 characters of a host name.
const DOMAIN_CHARS_MAX: usize = 253 - 64;
const HOST_CHARS_MAX: usize = 253;
const LABEL_CHARS_MAX: usize = 63;
const REGION_CHARS_MAX: usize = 16;
const NODE_CHARS_MAX: usize = 64;
const THREADS_MAX: usize = 1024;
/// A configuration is a few KB; one of more than this is some other file.
const FILE_BYTES_MAX: u64 = MB;
const TOKEN_BYTES_MAX: u64 = 4 * KB;

/// One configuration file, checked. Swapped whole on reload.
#[derive(Clone, PartialEq)]
pub struct Conf {
    pub file: PathBuf,
    /// Lower-case letters and digits, 1 to 16.
    pub region: String,
    /// Letters, digits, `.`, `_` and `-`, 1 to 64.
    pub node: String,
    pub threads: usize,
    pub listen: Listen,
    /// Visible ASCII. What the admin address asks for in `Authorization`; `None` asks for nothing.
    pub admin_token: Option<String>,
    /// As written: relative to the current directory, like every path here.
    pub data: PathBuf,
    /// Deployment URLs are `NAME-UID.DOMAIN`.
    pub domain: String,
    pub deployments: Vec<DeploymentSource>,
    pub cache: Cache,
    pub functions: Functions,
    pub headers: Headers,
    /// How long SIGTERM waits for requests in flight.
    pub grace: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// At least one. Port 0 lets the system pick.
    pub http: Vec<SocketAddr>,
    /// `None` turns the admin interface off.
    pub admin: Option<SocketAddr>,
}

/// A deployment that the file asks for. Whether its folder is there and holds something is found out when it is deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentSource {
    pub source: Source,
    /// Lower-case letters, digits and hyphens, 1 to 52; no other deployment of the file has it.
    pub name: String,
    /// Lower-case host names, without port; no other deployment of the file has one of them.
    pub aliases: Vec<String>,
    /// In the file, for later messages.
    pub line: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A project or a build output.
    Path(PathBuf),
    /// An HTTP origin, `http://host[:port]` or with `https`, lower case and without a slash at the end.
    Upstream(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Bytes, of this process.
    pub memory: u64,
    /// `None` turns the cache on disk off.
    pub node: Option<NodeCache>,
    /// `None`: a region of one node.
    pub regional: Option<Regional>,
    /// How long a request waits for another that fetches the same.
    pub lock_timeout: Duration,
}

/// The cache on disk that the processes of a node share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCache {
    pub path: PathBuf,
    /// Bytes, of all processes together.
    pub size: u64,
}

/// The store that the nodes of a region share.
#[derive(Clone, PartialEq, Eq)]
pub struct Regional {
    /// `redis://` or `rediss://`, at least one: the server, sentinels, or nodes of a cluster.
    pub urls: Vec<String>,
    pub mode: RegionalMode,
    pub username: Option<String>,
    pub password: Option<String>,
    /// Trusted instead of what the system trusts, for `rediss://`.
    pub ca_pem: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegionalMode {
    Single,
    Sentinel { master: String },
    Cluster,
}

/// By hand, so that no password reaches a log.
impl fmt::Debug for Regional {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Regional").field("servers", &self.urls.len()).field("mode", &self.mode).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Functions {
    /// Bytes an instance.
    pub memory: u64,
    /// Of one invocation.
    pub max_duration: Duration,
    /// Bytes.
    pub request_body: u64,
    /// Bytes of a function's files together.
    pub bundle: u64,
    /// An instance without work for this long is ended.
    pub idle: Duration,
    /// At most, of all functions together.
    pub instances: usize,
    /// Invocations that wait for an instance, at most, a function. The next one gets 503.
    pub queue: usize,
    /// How long a new instance may take until it accepts its first invocation.
    pub start_timeout: Duration,
    /// The Node.js program; one without a slash is looked up in PATH.
    pub node: PathBuf,
}

/// The families of platform headers that answers carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// `x-now-*`, always sent.
    pub now: bool,
    /// `x-vercel-*` twins.
    pub vercel: bool,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            http: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))],
            admin: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9180))),
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { memory: 256 * MB, node: None, regional: None, lock_timeout: Duration::from_secs(3) }
    }
}

impl Default for Functions {
    fn default() -> Self {
        Self {
            memory: 3008 * MB,
            max_duration: Duration::from_secs(300),
            request_body: 5 * MB,
            bundle: 50 * MB,
            idle: Duration::from_secs(60),
            instances: 100,
            queue: 1000,
            start_timeout: Duration::from_secs(10),
            node: "node".into(),
        }
    }
}

impl Default for Headers {
    fn default() -> Self {
        Self { now: true, vercel: false }
    }
}

/// Everything wrong with one file, in the order of the file. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

/// Displays as `FILE:LINE:COLUMN: KEY: found FOUND, EXPECTED`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub file: PathBuf,
    /// From 1; 0 if the mistake has no place in the file.
    pub line: usize,
    pub column: usize,
    /// Like `deployments[1].upstream`; empty if the mistake is that of the whole file.
    pub key: String,
    pub found: String,
    /// What would be right, as the end of a sentence that begins with `found`.
    pub expected: String,
}

impl Mistakes {
    pub fn all(&self) -> &[Mistake] {
        &self.0
    }
}

impl std::error::Error for Mistakes {}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (at, mistake) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "\n" };
            write!(f, "{separator}{mistake}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " found {}, {}", self.found, self.expected)
    }
}

/// By hand, so that the token reaches no log.
impl fmt::Debug for Conf {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Conf")
            .field("file", &self.file)
            .field("region", &self.region)
            .field("node", &self.node)
            .field("threads", &self.threads)
            .field("listen", &self.listen)
            .field("data", &self.data)
            .field("domain", &self.domain)
            .field("deployments", &self.deployments)
            .field("cache", &self.cache)
            .field("functions", &self.functions)
            .field("headers", &self.headers)
            .field("grace", &self.grace)
            .finish_non_exhaustive()
    }
}

impl Conf {
    pub fn load(file: &Path) -> Result<Conf, Mistakes> {
        let text = read_text(file, FILE_BYTES_MAX).map_err(|error| {
            Mistakes(vec![Mistake {
                file: file.into(),
                line: 0,
                column: 0,
                key: String::new(),
                found: format!("no file that can be read ({error})"),
                expected: "give one with `-c FILE`".into(),
            }])
        })?;
        Conf::parse(file, &text)
    }

    /// `file` only names the text in messages. Reads the host name, the number of cores and the token's file besides.
    pub fn parse(file: &Path, text: &str) -> Result<Conf, Mistakes> {
        let tree = raw::tree(file, text)?;
        let mut reader = Reader::new(file, text);
        let root = reader.root(&tree);
        let region = reader.required(&root, "region", "sfo1", region);
        let node = reader.value(&root, "node", node).unwrap_or_else(host_name);
        let threads = reader
            .value(&root, "threads", |text| count(text, 1, THREADS_MAX))
            .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX));
        let listen = listen(&mut reader, &root);
        let admin_token = admin_token(&mut reader, &root, listen.admin);
        let data = reader.value(&root, "data", path).unwrap_or_else(|| "./data".into());
        let domain = reader.value(&root, "domain", domain).unwrap_or_else(|| "now.localhost".into());
        let deployments = deployments(&mut reader, &root);
        let cache = cache(&mut reader, &root, &data);
        let functions = functions(&mut reader, &root);
        let headers = headers(&mut reader, &root);
        let grace = reader
            .value(&root, "grace", |text| units::duration(text, Duration::ZERO..=Duration::from_secs(3600)))
            .unwrap_or(Duration::from_secs(30));
        reader.finish(region.map(|region| Conf {
            file: file.into(),
            region,
            node,
            threads,
            listen,
            admin_token,
            data,
            domain,
            deployments,
            cache,
            functions,
            headers,
            grace,
        }))
    }

    /// The keys that differ in `new` and that a reload cannot apply: they have made sockets, threads, folders and the cache already.
    pub fn needs_restart(&self, new: &Conf) -> Vec<&'static str> {
        [
            ("region", self.region != new.region),
            ("node", self.node != new.node),
            ("threads", self.threads != new.threads),
            ("listen.http", self.listen.http != new.listen.http),
            ("listen.admin", self.listen.admin != new.listen.admin),
            ("data", self.data != new.data),
            ("domain", self.domain != new.domain),
            ("cache.memory", self.cache.memory != new.cache.memory),
            ("cache.node", self.cache.node != new.cache.node),
            ("cache.regional", self.cache.regional != new.cache.regional),
            ("cache.lock_timeout", self.cache.lock_timeout != new.cache.lock_timeout),
            ("grace", self.grace != new.grace),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

fn listen(reader: &mut Reader, root: &Section) -> Listen {
    let defaults = Listen::default();
    let section = reader.section(root, "listen");
    let http = reader.values(&section, "http", address);
    // "off" must be told from "nothing valid was written", which is the default and hides no mistake.
    let admin = reader.placed(&section, "admin", |text| match text {
        "off" => Ok(None),
        _ => address(text).map(Some).map_err(|expected| format!("{expected}, or off")),
    });
    if let (Some([]), Some((_, place))) = (http.as_deref(), section.get("http"))
        && !reader.has_mistake_within(&place)
    {
        reader.mistake(&place, "an empty list", "where at least one address belongs, like [\"127.0.0.1:8080\"]");
    }
    let admin_address = admin.as_ref().map_or(defaults.admin, |admin| admin.value);
    let http = http.unwrap_or_default();
    for (at, one) in http.iter().enumerate() {
        if http[..at].iter().any(|other| collide(one.value, other.value)) {
            reader.mistake(&one.place, raw::quoted(&one.written), "which is taken by an address before it; remove one");
        } else if let Some(admin) = admin_address.filter(|admin| collide(one.value, *admin)) {
            reader.mistake(
                &one.place,
                raw::quoted(&one.written),
                format!("which collides with listen.admin ({admin}); move one of them to another port"),
            );
        }
    }
    let http: Vec<_> = http.into_iter().map(|placed| placed.value).collect();
    Listen { http: if http.is_empty() { defaults.http } else { http }, admin: admin_address }
}

/// Whether two sockets want the same port of the same address. Port 0 is a different one each time.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let overlap =
        a.ip() == b.ip() || a.is_ipv4() == b.is_ipv4() && (a.ip().is_unspecified() || b.ip().is_unspecified());
    a.port() == b.port() && a.port() != 0 && overlap
}

/// Who reaches the admin address can deploy code and empty the cache, so that only this machine may do without a token.
fn admin_token(reader: &mut Reader, root: &Section, admin: Option<SocketAddr>) -> Option<String> {
    let section = reader.section(root, "admin");
    if section.get("token").is_some() {
        let token = reader.optional_section(&section, "token")?;
        return reader.required(&token, "file", "conf/admin.token", |text| token_in(&path(text)?));
    }
    let public = admin.filter(|admin| !admin.ip().to_canonical().is_loopback());
    if let Some(public) = public {
        let place = reader.section(root, "listen").get("admin").map_or_else(Place::default, |(_, place)| place);
        reader.mistake(
            &place,
            format!("\"{public}\" without a token"),
            "which lets other machines deploy and purge; write an address of 127.0.0.1, or add `admin: {token: {file: PATH}}`",
        );
    }
    None
}

fn token_in(file: &Path) -> Result<String, String> {
    let text = read_text(file, TOKEN_BYTES_MAX).map_err(|error| format!("which cannot be read ({error})"))?;
    let token = text.trim();
    if token.is_empty() {
        return Err("which is empty; write a token into it, for example with `openssl rand -hex 32`".into());
    }
    // It travels in a header field.
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("which holds more than one word of visible ASCII; write one token into it".into());
    }
    Ok(token.into())
}

fn deployments(reader: &mut Reader, root: &Section) -> Vec<DeploymentSource> {
    let mut name_lines = HashMap::new();
    let mut alias_lines = HashMap::new();
    let mut deployments = Vec::new();
    for section in reader.sections(root, "deployments") {
        let source = source(reader, &section);
        let name = name(reader, &section, source.as_ref());
        let aliases = reader.values(&section, "aliases", host).unwrap_or_default();
        if let Some(name) = &name {
            claim(reader, name, &mut name_lines, "a name that must be there once; give one of them another `name`");
        }
        for alias in &aliases {
            claim(reader, alias, &mut alias_lines, "an alias that points to one deployment only; remove one");
        }
        if let (Some(source), Some(name)) = (source, name) {
            deployments.push(DeploymentSource {
                source: source.value,
                name: name.value,
                aliases: aliases.into_iter().map(|alias| alias.value).collect(),
                line: section.place.line,
            });
        }
    }
    deployments
}

/// Notes where a value that must be unique was first, and refuses it the second time.
fn claim(reader: &mut Reader, claimed: &Placed<String>, lines: &mut HashMap<String, usize>, why: &str) {
    let line = claimed.place.line;
    if let Some(first) = lines.get(&claimed.value) {
        let found = format!("\"{}\" on line {line} as well as on line {first}", claimed.value);
        reader.mistake(&claimed.place, found, why);
    } else {
        lines.insert(claimed.value.clone(), line);
    }
}

fn source(reader: &mut Reader, section: &Section) -> Option<Placed<Source>> {
    let is_path = section.get("path").is_some();
    match (is_path, section.get("upstream")) {
        (true, Some((_, place))) => {
            reader.mistake(
                &place,
                "both `path` and `upstream`",
                "where exactly one belongs; make two deployments of it",
            );
            None
        }
        (false, None) => {
            let expected = "where exactly one belongs; write for example `path: examples/hello`";
            reader.mistake(&section.place, "neither `path` nor `upstream`", expected);
            None
        }
        (true, None) => reader.placed(section, "path", |text| path(text).map(Source::Path)),
        (false, Some(_)) => reader.placed(section, "upstream", |text| upstream(text).map(Source::Upstream)),
    }
}

fn name(reader: &mut Reader, section: &Section, source: Option<&Placed<Source>>) -> Option<Placed<String>> {
    if section.get("name").is_some() {
        return reader.placed(section, "name", deployment_name);
    }
    let source = source?;
    let Source::Path(path) = &source.value else {
        reader.missing(section, "name", "shop");
        return None;
    };
    let name = name_of_folder(path);
    if name.is_none() {
        let expected = "which gives the deployment no name; add one, for example `name: hello`";
        reader.mistake(&source.place, raw::quoted(&source.written), expected);
    }
    Some(Placed { value: name?, place: source.place.clone(), written: source.written.clone() })
}

/// The name of a deployment that was given none: that of the project's folder, also if its build output is what is deployed.
pub fn name_of_folder(path: &Path) -> Option<String> {
    // `.` has no name in itself. This reads the current directory and nothing else.
    let absolute = std::path::absolute(path).ok()?;
    let project = if absolute.ends_with(".vercel/output") { absolute.ancestors().nth(2)? } else { &absolute };
    let name = clean_name(&project.file_name()?.to_string_lossy());
    (!name.is_empty()).then_some(name)
}

/// Lower case, and one hyphen in place of everything else that a host name cannot have.
pub fn clean_name(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars().map(|c| c.to_ascii_lowercase()) {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            _ if name.ends_with('-') || name.is_empty() => {}
            _ => name.push('-'),
        }
    }
    name.truncate(NAME_CHARS_MAX);
    name.trim_end_matches('-').into()
}

fn cache(reader: &mut Reader, root: &Section, data: &Path) -> Cache {
    let defaults = Cache::default();
    let section = reader.section(root, "cache");
    Cache {
        memory: reader.value(&section, "memory", |text| units::size(text, MB..=1024 * GB)).unwrap_or(defaults.memory),
        node: node_cache(reader, &section, data),
        regional: regional(reader, &section),
        lock_timeout: reader
            .value(&section, "lock_timeout", |text| {
                units::duration(text, Duration::from_millis(1)..=Duration::from_secs(60))
            })
            .unwrap_or(defaults.lock_timeout),
    }
}

fn node_cache(reader: &mut Reader, cache: &Section, data: &Path) -> Option<NodeCache> {
    if let Some((node, _)) = cache.get("node")
        && reader.is_single(node)
    {
        reader.value(cache, "node", |text| match text {
            "off" => Ok(()),
            _ => Err("which is neither a mapping like {path: ./data/cache, size: 10GB} nor off".into()),
        });
        return None;
    }
    let section = reader.section(cache, "node");
    Some(NodeCache {
        path: reader.value(&section, "path", path).unwrap_or_else(|| data.join("cache")),
        // 64 MB take the largest body that is cached at all.
        size: reader.value(&section, "size", |text| units::size(text, 64 * MB..=1024 * GB)).unwrap_or(10 * GB),
    })
}

fn regional(reader: &mut Reader, cache: &Section) -> Option<Regional> {
    let section = reader.optional_section(cache, "regional")?;
    if section.get("redis").is_none() {
        reader.missing(&section, "redis", "\"redis://127.0.0.1:6379\"");
    }
    let urls = reader.one_or_more(&section, "redis", redis_url).unwrap_or_default();
    // Not by the parser: what that refuses is shown.
    for url in urls.iter().filter(|url| url.value.contains('@')) {
        let expected = "which belongs into a file; name that in cache.regional.password.file";
        reader.mistake(&url.place, "an address with a password in it", expected);
    }
    let sentinel = reader.value(&section, "sentinel", |text| match text {
        "" => Err("which is no name; write that of the master".to_owned()),
        _ => Ok(text.to_owned()),
    });
    let cluster = reader.placed(&section, "cluster", |text| match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("which is neither true nor false".to_owned()),
    });
    if let (Some(_), Some(cluster)) = (&sentinel, cluster.as_ref().filter(|cluster| cluster.value)) {
        reader.mistake(&cluster.place, "both `sentinel` and `cluster`", "where one of them belongs; remove the other");
    }
    let username = reader.value(&section, "username", |text| Ok(text.to_owned()));
    let password = match section.get("password") {
        None => None,
        Some(_) => reader.optional_section(&section, "password").and_then(|password| {
            reader.required(&password, "file", "conf/redis.password", |text| token_in(&path(text)?))
        }),
    };
    let ca_pem = reader.value(&section, "ca", |text| {
        let pem = read_text(&path(text)?, MB).map_err(|error| format!("which cannot be read ({error})"))?;
        match pem.contains("-----BEGIN CERTIFICATE-----") {
            true => Ok(pem.into_bytes()),
            false => Err("which holds no certificate in PEM form".into()),
        }
    });
    let mode = match (sentinel, cluster.is_some_and(|cluster| cluster.value)) {
        (Some(master), _) => RegionalMode::Sentinel { master },
        (None, true) => RegionalMode::Cluster,
        (None, false) => RegionalMode::Single,
    };
    let urls = urls.into_iter().map(|url| url.value).collect();
    Some(Regional { urls, mode, username, password, ca_pem })
}

fn redis_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("redis://").or_else(|| text.strip_prefix("rediss://"));
    let Some(rest) = rest else {
        return Err("which is not redis://HOST:PORT, or rediss:// for TLS".into());
    };
    if rest.contains('@') {
        return Ok(text.to_owned());
    }
    let uri: http::Uri = format!("http://{rest}").parse().map_err(|_| "which is not redis://HOST:PORT".to_owned())?;
    match uri.host() {
        Some(host) if !host.is_empty() => Ok(text.to_owned()),
        _ => Err("which names no host; write redis://HOST:PORT".into()),
    }
}

fn functions(reader: &mut Reader, root: &Section) -> Functions {
    let defaults = Functions::default();
    let section = reader.section(root, "functions");
    let mut size = |name, least, most, default| {
        reader.value(&section, name, |text| units::size(text, least..=most)).unwrap_or(default)
    };
    // Node.js itself needs some 40 MB before it runs a line of ours.
    let memory = size("memory", 64 * MB, 1024 * GB, defaults.memory);
    let request_body = size("request_body", KB, GB, defaults.request_body);
    let bundle = size("bundle", KB, 10 * GB, defaults.bundle);
    let mut duration = |name, least, most, default| {
        let allowed = Duration::from_millis(least)..=Duration::from_secs(most);
        reader.value(&section, name, |text| units::duration(text, allowed)).unwrap_or(default)
    };
    let max_duration = duration("max_duration", 1_000, 3_600, defaults.max_duration);
    let idle = duration("idle", 1_000, 86_400, defaults.idle);
    let start_timeout = duration("start_timeout", 100, 300, defaults.start_timeout);
    let mut number =
        |name, least, most, default| reader.value(&section, name, |text| count(text, least, most)).unwrap_or(default);
    let instances = number("instances", 1, 10_000, defaults.instances);
    let queue = number("queue", 0, 1_000_000, defaults.queue);
    let node = reader.value(&section, "node", path).unwrap_or(defaults.node);
    Functions { memory, max_duration, request_body, bundle, idle, instances, queue, start_timeout, node }
}

fn headers(reader: &mut Reader, root: &Section) -> Headers {
    let families = reader.values(root, "headers", |text| match text {
        "now" | "vercel" => Ok(text.to_owned()),
        _ => Err("which is not a family of headers; write now or vercel".into()),
    });
    let (Some(families), Some((_, place))) = (families, root.get("headers")) else {
        return Headers::default();
    };
    let has = |family: &str| families.iter().any(|placed| placed.value == family);
    if !has("now") && !reader.has_mistake_within(&place) {
        reader.mistake(&place, "a list without `now`", "which is always sent; write [now] or [now, vercel]");
    }
    Headers { now: true, vercel: has("vercel") }
}

fn region(text: &str) -> Result<String, String> {
    let is_code = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if (1..=REGION_CHARS_MAX).contains(&text.len()) && text.bytes().all(is_code) {
        return Ok(text.into());
    }
    Err(format!("which is not a region; write 1 to {REGION_CHARS_MAX} lower-case letters and digits, for example sfo1"))
}

fn node(text: &str) -> Result<String, String> {
    if (1..=NODE_CHARS_MAX).contains(&text.len()) && text.chars().all(is_node_char) {
        return Ok(text.into());
    }
    Err(format!(
        "which is not a node's name; write 1 to {NODE_CHARS_MAX} letters, digits, dots, hyphens and underscores"
    ))
}

fn is_node_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

/// What the system calls this machine, as far as a node's name can hold it.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    let name: String =
        name.unwrap_or_default().trim().chars().filter(|c| is_node_char(*c)).take(NODE_CHARS_MAX).collect();
    if name.is_empty() { "node".into() } else { name }
}

fn count(text: &str, least: usize, most: usize) -> Result<usize, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits && (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("which is not a number of {least} to {most}")),
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("which is not a path".into());
    }
    Ok(text.into())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let example = match text.strip_prefix("localhost:").or(text.strip_prefix(':')).unwrap_or(text).parse::<u16>() {
            Ok(port) => {
                format!("127.0.0.1:{port} (this machine only) or 0.0.0.0:{port} (every machine)")
            }
            Err(_) => "for example 127.0.0.1:8080".into(),
        };
        format!("which is not an IP address with a port; write {example}")
    })
}

fn domain(text: &str) -> Result<String, String> {
    let domain = host(text)?;
    if is_address(&domain) {
        return Err("which cannot have names before it; write a domain, for example now.localhost".into());
    }
    if domain.len() > DOMAIN_CHARS_MAX {
        return Err(format!(
            "which leaves no room for a deployment's name; write at most {DOMAIN_CHARS_MAX} characters"
        ));
    }
    Ok(domain)
}

/// A host as a request names it, without port: a name, an IPv4 address, or an IPv6 address in brackets.
/// The error reads like those of `units`.
pub fn host(text: &str) -> Result<String, String> {
    if is_host(text) {
        return Ok(text.into());
    }
    let lower = text.to_ascii_lowercase();
    let with_port =
        lower.rsplit_once(':').filter(|(host, port)| is_host(host) && port.bytes().all(|b| b.is_ascii_digit()));
    let hint = match with_port {
        Some((host, _)) => format!("write it without the port: {host}"),
        None if is_host(&lower) => format!("write it in lower case: {lower}"),
        None if text.parse::<Ipv6Addr>().is_ok() => format!("write an IPv6 address in brackets: \"[{text}]\""),
        None => "write for example hello.localhost, or its xn-- form if it has other letters than a to z".into(),
    };
    Err(format!("which is not a host name; {hint}"))
}

/// Underscores are no host names by RFC 1123, and Compose makes them all the same.
fn is_host(text: &str) -> bool {
    if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        // Only the canonical spelling, for hosts are compared as text.
        return inner.parse::<Ipv6Addr>().is_ok_and(|address| address.to_string() == inner);
    }
    let is_label = |label: &str| {
        (1..=LABEL_CHARS_MAX).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    // A name whose last label is a number is an IPv4 address to every browser, or nothing.
    let is_numeric = text.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    text.len() <= HOST_CHARS_MAX && text.split('.').all(is_label) && (!is_numeric || text.parse::<Ipv4Addr>().is_ok())
}

fn is_address(host: &str) -> bool {
    host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

/// A deployment's name as someone gave it. The error reads like those of `units`.
pub fn deployment_name(text: &str) -> Result<String, String> {
    let clean = clean_name(text);
    match clean.as_str() {
        "" => Err("which is not a name; write lower-case letters, digits and hyphens, for example shop".into()),
        _ if clean == text => Ok(clean),
        _ => Err(format!(
            "which is not a name of up to {NAME_CHARS_MAX} lower-case letters, digits and single hyphens; write for example {clean}"
        )),
    }
}

fn upstream(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let Some((scheme @ ("http" | "https"), rest)) = lower.split_once("://") else {
        return Err("which is not an http or https origin; write for example http://127.0.0.1:3000".into());
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err(
            "which has a path; an upstream is a whole origin, so write scheme, host and port only, like http://127.0.0.1:3000".into(),
        );
    }
    if authority.contains('@') {
        return Err("which has a user in it; an upstream is scheme, host and port only".into());
    }
    // The colons of an IPv6 address are inside its brackets.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    if !is_host(host) {
        return Err("which has no host name or address; write for example http://127.0.0.1:3000".into());
    }
    if port.is_some_and(|port| count(port, 1, usize::from(u16::MAX)).is_err()) {
        return Err("which has a port that is not a number of 1 to 65535".into());
    }
    Ok(format!("{scheme}://{authority}"))
}

/// Reads a text of at most `bytes_max`. Bounded, because a path may be that of a device.
fn read_text(file: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(file)?.take(bytes_max + 1).read_to_string(&mut text)?;
    if read as u64 > bytes_max {
        return Err(io::Error::other(format!("larger than {}", units::size_text(bytes_max))));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Result<Conf, Mistakes> {
        Conf::parse(Path::new("x.yaml"), yaml)
    }

    fn shipped(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(name)
    }

    /// A file with this besides the required `region`.
    #[track_caller]
    fn conf(yaml: &str) -> Conf {
        parse(&format!("region: sfo1\n{yaml}")).unwrap_or_else(|mistakes| panic!("{yaml}\n{mistakes}"))
    }

    /// A file with these lines after `region: sfo1` has exactly these mistakes, in this order.
    #[track_caller]
    fn check(yaml: &str, expected: &[&str]) {
        let found =
            parse(&format!("region: sfo1\n{yaml}")).map_or_else(|mistakes| mistakes.to_string(), |_| "none".into());
        let found: Vec<_> = found.lines().map(|line| line.trim_start_matches("x.yaml:")).collect();
        assert_eq!(found, expected, "\n{yaml}");
    }

    /// None of these texts is a value, and the error of each has these words.
    #[track_caller]
    fn check_texts<T: fmt::Debug>(parse: fn(&str) -> Result<T, String>, rows: &[(&str, &str)]) {
        for (text, hint) in rows {
            let error = parse(text).expect_err(text);
            assert!(error.contains(hint), "{text:?}: {error}");
        }
    }

    #[test]
    fn refuses_wrong_values() {
        check("threads: 0", &[r#"2:10: threads: found "0", which is not a number of 1 to 1024"#]);
        check("threads: two", &[r#"2:10: threads: found "two", which is not a number of 1 to 1024"#]);
        check(
            "threads: 18446744073709551617",
            &[r#"2:10: threads: found "18446744073709551617", which is not a number of 1 to 1024"#],
        );
        check("threads: [2]", &["2:10: threads: found a list, where a single value belongs"]);
        check("threads:", &["2:8: threads: found nothing, where a single value belongs"]);
        check("threads: 1e1", &[r#"2:10: threads: found "1e1", which is not a number of 1 to 1024"#]);
        check("threads: -1", &[r#"2:10: threads: found "-1", which is not a number of 1 to 1024"#]);
        check(
            "node: a b",
            &[
                r#"2:7: node: found "a b", which is not a node's name; write 1 to 64 letters, digits, dots, hyphens and underscores"#,
            ],
        );
        check(
            r#"node: "a\nb\u001b[31m""#,
            &[
                r#"2:7: node: found "a\nb\u{1b}[31m", which is not a node's name; write 1 to 64 letters, digits, dots, hyphens and underscores"#,
            ],
        );
        check("data: ''", &[r#"2:7: data: found "", which is not a path"#]);
        check(
            "domain: 127.0.0.1",
            &[
                r#"2:9: domain: found "127.0.0.1", which cannot have names before it; write a domain, for example now.localhost"#,
            ],
        );
        check(
            "domain: Now.Localhost",
            &[r#"2:9: domain: found "Now.Localhost", which is not a host name; write it in lower case: now.localhost"#],
        );
        check(
            "cache: {memory: 10 gigs}",
            &[r#"2:17: cache.memory: found "10 gigs", which is not a size; write for example 256MB"#],
        );
        check("cache: {memory: 0}", &[r#"2:17: cache.memory: found "0", which is out of range; write 1MB to 1024GB"#]);
        check(
            "cache: {lock_timeout: 3}",
            &[r#"2:23: cache.lock_timeout: found "3", which has no unit; write 3s or 3ms"#],
        );
        check(
            "cache: {lock_timeout: 2m}",
            &[r#"2:23: cache.lock_timeout: found "2m", which is out of range; write 1ms to 1m"#],
        );
        check(
            "functions: {instances: 10001, queue: -1, idle: 0s, max_duration: 2h, start_timeout: soon, node: [a]}",
            &[
                r#"2:24: functions.instances: found "10001", which is not a number of 1 to 10000"#,
                r#"2:38: functions.queue: found "-1", which is not a number of 0 to 1000000"#,
                r#"2:48: functions.idle: found "0s", which is out of range; write 1s to 1d"#,
                r#"2:66: functions.max_duration: found "2h", which is out of range; write 1s to 1h"#,
                r#"2:85: functions.start_timeout: found "soon", which is not a duration; write for example 500ms, 3s or 5m"#,
                "2:97: functions.node: found a list, where a single value belongs",
            ],
        );
        check(
            "functions: {memory: 1MB, request_body: 0, bundle: 11GB}",
            &[
                r#"2:21: functions.memory: found "1MB", which is out of range; write 64MB to 1024GB"#,
                r#"2:40: functions.request_body: found "0", which is out of range; write 1KB to 1GB"#,
                r#"2:51: functions.bundle: found "11GB", which is out of range; write 1KB to 10GB"#,
            ],
        );
        check(
            "headers: [vercel]",
            &["2:10: headers: found a list without `now`, which is always sent; write [now] or [now, vercel]"],
        );
        check(
            "headers: []",
            &["2:10: headers: found a list without `now`, which is always sent; write [now] or [now, vercel]"],
        );
        check(
            "headers: now",
            &[r#"2:10: headers: found "now", which is not a list; write it in brackets, like ["now"]"#],
        );
        check(
            "headers: [now, x]",
            &[r#"2:16: headers[1]: found "x", which is not a family of headers; write now or vercel"#],
        );
        check(
            "headers: [x]",
            &[r#"2:11: headers[0]: found "x", which is not a family of headers; write now or vercel"#],
        );
        check("grace: 2h", &[r#"2:8: grace: found "2h", which is out of range; write 0s to 1h"#]);
    }

    #[test]
    fn refuses_unknown_later_and_doubled_keys() {
        check("cach: {}", &["2:1: cach: found an unknown key, did you mean `cache`?"]);
        check(
            "cache: {memry: 1, lock-timeout: 1s, xyzzy: 1}",
            &[
                "2:9: cache.memry: found an unknown key, did you mean `memory`?",
                "2:19: cache.lock-timeout: found an unknown key, did you mean `lock_timeout`?",
                "2:37: cache.xyzzy: found an unknown key, known here are memory, node, regional, lock_timeout",
            ],
        );
        check(
            "cache: 256MB",
            &[
                "2:8: cache: found a single value, where a mapping belongs, with keys out of: memory, node, regional, lock_timeout",
            ],
        );
        check(
            "cache: []",
            &[
                "2:8: cache: found a list, where a mapping belongs, with keys out of: memory, node, regional, lock_timeout",
            ],
        );
        check(
            "tls: {redirect_http: true}",
            &["2:1: tls: found a key for a feature that this version does not have yet, remove it"],
        );
        check(
            r#"listen: {https: ["127.0.0.1:8443"], peer: "127.0.0.1:7080"}"#,
            &[
                "2:10: listen.https: found a key for a feature that this version does not have yet, remove it",
                "2:37: listen.peer: found a key for a feature that this version does not have yet, remove it",
            ],
        );
        check(
            "store: file:x\nregions: {}\nsecret: {file: x}",
            &[
                "2:1: store: found a key for a feature that this version does not have yet, remove it",
                "3:1: regions: found a key for a feature that this version does not have yet, remove it",
                "4:1: secret: found a key for a feature that this version does not have yet, remove it",
            ],
        );
        check("region: iad1", &["2:1: region: found a key that is there twice, first on line 1; keep one"]);
        check(
            "1: 2",
            &[
                "2:1: 1: found an unknown key, known here are region, node, threads, listen, admin, data, domain, deployments, cache, functions, headers, grace",
            ],
        );
    }

    #[test]
    fn the_tiers_are_as_written() {
        let conf = conf("data: /d");
        assert_eq!(conf.cache.node, Some(NodeCache { path: "/d/cache".into(), size: 10 * GB }));
        assert_eq!(conf.cache.regional, None);
        let cache = |yaml: &str| parse(&format!("region: sfo1\ncache: {{{yaml}}}")).expect(yaml).cache;
        assert_eq!(cache("node: off").node, None);
        assert_eq!(cache("node: {size: 64MB}").node.map(|node| node.size), Some(64 * MB));
        let regional = |yaml: &str| cache(&format!("regional: {{{yaml}}}")).regional.expect(yaml);
        let one = regional(r#"redis: "redis://h:1""#);
        assert_eq!((one.urls, one.mode), (vec!["redis://h:1".to_owned()], RegionalMode::Single));
        let sentinel = regional(r#"redis: ["redis://a:1", "rediss://b:2"], sentinel: m"#);
        assert_eq!((sentinel.urls.len(), sentinel.mode), (2, RegionalMode::Sentinel { master: "m".into() }));
        assert_eq!(regional(r#"redis: "redis://a:1", cluster: true"#).mode, RegionalMode::Cluster);
    }

    #[test]
    fn says_what_is_wrong_with_the_tiers() {
        check(
            "cache: {node: 5GB}",
            &[
                r#"2:15: cache.node: found "5GB", which is neither a mapping like {path: ./data/cache, size: 10GB} nor off"#,
            ],
        );
        check(
            "cache: {regional: {}}",
            &[
                "2:19: cache.regional.redis: found nothing, where a value must be given; write for example `redis: \"redis://127.0.0.1:6379\"`",
            ],
        );
        check(
            r#"cache: {regional: {redis: ["memcached://h", "redis://:secret@h"]}}"#,
            &[
                r#"2:28: cache.regional.redis[0]: found "memcached://h", which is not redis://HOST:PORT, or rediss:// for TLS"#,
                "2:45: cache.regional.redis[1]: found an address with a password in it, which belongs into a file; name that in cache.regional.password.file",
            ],
        );
        check(
            r#"cache: {regional: {redis: "redis://h", sentinel: m, cluster: true}}"#,
            &[
                "2:62: cache.regional.cluster: found both `sentinel` and `cluster`, where one of them belongs; remove the other",
            ],
        );
    }

    #[test]
    fn reports_every_mistake_in_the_order_of_the_file() {
        check(
            "region: sfo1\nthreads: 0\ncache: {memory: 1, memory: x}\nfoo: 1\ndeployments: [{path: [], name: A}, {upstrem: x}]\ngrace: soon",
            &[
                "2:1: region: found a key that is there twice, first on line 1; keep one",
                r#"3:10: threads: found "0", which is not a number of 1 to 1024"#,
                r#"4:17: cache.memory: found "1", which is out of range; write 1MB to 1024GB"#,
                "4:20: cache.memory: found a key that is there twice, first on line 4; keep one",
                "5:1: foo: found an unknown key, known here are region, node, threads, listen, admin, data, domain, deployments, cache, functions, headers, grace",
                "6:22: deployments[0].path: found a list, where a single value belongs",
                r#"6:32: deployments[0].name: found "A", which is not a name of up to 52 lower-case letters, digits and single hyphens; write for example a"#,
                "6:36: deployments[1]: found neither `path` nor `upstream`, where exactly one belongs; write for example `path: examples/hello`",
                "6:37: deployments[1].upstrem: found an unknown key, did you mean `upstream`?",
                r#"7:8: grace: found "soon", which is not a duration; write for example 500ms, 3s or 5m"#,
            ],
        );
        check(
            "cache: &a {memory: x}\nfunctions: *a",
            &[
                r#"2:20: cache.memory: found "x", which is not a size; write for example 256MB"#,
                r#"3:12: functions.memory: found "x", which is not a size; write for example 256MB"#,
            ],
        );
        check(
            "functions: {<<: {idle: x}, queue: y}",
            &[
                r#"2:17: functions.idle: found "x", which is not a duration; write for example 500ms, 3s or 5m"#,
                r#"2:35: functions.queue: found "y", which is not a number of 0 to 1000000"#,
            ],
        );
    }

    #[test]
    fn refuses_wrong_addresses() {
        check(
            "listen: {http: []}",
            &[r#"2:16: listen.http: found an empty list, where at least one address belongs, like ["127.0.0.1:8080"]"#],
        );
        check(
            "listen: {http: }",
            &["2:14: listen.http: found nothing, which is not a list; write it in brackets, like [one, two]"],
        );
        check(
            r#"listen: {http: "127.0.0.1:8080"}"#,
            &[
                r#"2:16: listen.http: found "127.0.0.1:8080", which is not a list; write it in brackets, like ["127.0.0.1:8080"]"#,
            ],
        );
        check(
            r#"listen: {http: ["8080", ":8080", "localhost:8080", "*:80", "127.0.0.1", "127.0.0.1:99999", 8080]}"#,
            &[
                r#"2:17: listen.http[0]: found "8080", which is not an IP address with a port; write 127.0.0.1:8080 (this machine only) or 0.0.0.0:8080 (every machine)"#,
                r#"2:25: listen.http[1]: found ":8080", which is not an IP address with a port; write 127.0.0.1:8080 (this machine only) or 0.0.0.0:8080 (every machine)"#,
                r#"2:34: listen.http[2]: found "localhost:8080", which is not an IP address with a port; write 127.0.0.1:8080 (this machine only) or 0.0.0.0:8080 (every machine)"#,
                r#"2:52: listen.http[3]: found "*:80", which is not an IP address with a port; write for example 127.0.0.1:8080"#,
                r#"2:60: listen.http[4]: found "127.0.0.1", which is not an IP address with a port; write for example 127.0.0.1:8080"#,
                r#"2:73: listen.http[5]: found "127.0.0.1:99999", which is not an IP address with a port; write for example 127.0.0.1:8080"#,
                r#"2:92: listen.http[6]: found "8080", which is not an IP address with a port; write 127.0.0.1:8080 (this machine only) or 0.0.0.0:8080 (every machine)"#,
            ],
        );
        check(
            r#"listen: {http: ["127.0.0.1:80", "127.0.0.1:80"]}"#,
            &[r#"2:33: listen.http[1]: found "127.0.0.1:80", which is taken by an address before it; remove one"#],
        );
        check(
            r#"listen: {http: ["0.0.0.0:9180"]}"#,
            &[
                r#"2:17: listen.http[0]: found "0.0.0.0:9180", which collides with listen.admin (127.0.0.1:9180); move one of them to another port"#,
            ],
        );
        check(
            "listen: {admin: false}",
            &[
                r#"2:17: listen.admin: found "false", which is not an IP address with a port; write for example 127.0.0.1:8080, or off"#,
            ],
        );
        check(
            r#"listen: {admin: "0.0.0.0:9180"}"#,
            &[
                r#"2:17: listen.admin: found "0.0.0.0:9180" without a token, which lets other machines deploy and purge; write an address of 127.0.0.1, or add `admin: {token: {file: PATH}}`"#,
            ],
        );
        check(
            r#"listen: {admin: "[::]:9180"}"#,
            &[
                r#"2:17: listen.admin: found "[::]:9180" without a token, which lets other machines deploy and purge; write an address of 127.0.0.1, or add `admin: {token: {file: PATH}}`"#,
            ],
        );
        check(
            r#"listen: {admin: "10.0.0.1:9180"}
admin: {}"#,
            &[
                r#"2:17: listen.admin: found "10.0.0.1:9180" without a token, which lets other machines deploy and purge; write an address of 127.0.0.1, or add `admin: {token: {file: PATH}}`"#,
            ],
        );
    }

    #[test]
    fn refuses_wrong_tokens_and_shows_none() {
        check(
            r#"listen: {admin: "10.0.0.1:9180"}
admin: {token: {file: /does/not/exist}}"#,
            &[
                r#"3:23: admin.token.file: found "/does/not/exist", which cannot be read (No such file or directory (os error 2))"#,
            ],
        );
        check(
            "admin: {token: hunter2}",
            &["2:16: admin.token: found a single value, where a mapping belongs, with keys out of: file"],
        );
        check(
            "admin: hunter2",
            &["2:8: admin: found a single value, where a mapping belongs, with keys out of: token"],
        );
        check(
            "admin: {token: }",
            &[
                "2:14: admin.token.file: found nothing, where a value must be given; write for example `file: conf/admin.token`",
            ],
        );
        check(
            "admin: {token: {}}",
            &[
                "2:16: admin.token.file: found nothing, where a value must be given; write for example `file: conf/admin.token`",
            ],
        );
        check(
            "admin: {token: {file: /dev/zero}}",
            &[r#"2:23: admin.token.file: found "/dev/zero", which cannot be read (larger than 4KB)"#],
        );
        check(
            "admin: {token: {file: /dev/null}}",
            &[
                r#"2:23: admin.token.file: found "/dev/null", which is empty; write a token into it, for example with `openssl rand -hex 32`"#,
            ],
        );
    }

    #[test]
    fn refuses_wrong_deployments() {
        check(
            "deployments: x",
            &["2:14: deployments: found a single value, which is not a list; begin each entry with `- `"],
        );
        check(
            "deployments: [x, [], {}, ]",
            &[
                "2:15: deployments[0]: found a single value, where a mapping belongs, with keys out of: path, upstream, name, aliases",
                "2:18: deployments[1]: found a list, where a mapping belongs, with keys out of: path, upstream, name, aliases",
                "2:22: deployments[2]: found neither `path` nor `upstream`, where exactly one belongs; write for example `path: examples/hello`",
            ],
        );
        check(
            r#"deployments: [{path: a, upstream: "http://h", name: b}]"#,
            &[
                "2:35: deployments[0].upstream: found both `path` and `upstream`, where exactly one belongs; make two deployments of it",
            ],
        );
        check(
            "deployments: [{name: b}]",
            &[
                "2:15: deployments[0]: found neither `path` nor `upstream`, where exactly one belongs; write for example `path: examples/hello`",
            ],
        );
        check(
            r#"deployments: [{path: ..}, {path: /}, {path: "--"}]"#,
            &[
                r#"2:22: deployments[0].path: found "..", which gives the deployment no name; add one, for example `name: hello`"#,
                r#"2:34: deployments[1].path: found "/", which gives the deployment no name; add one, for example `name: hello`"#,
                r#"2:45: deployments[2].path: found "--", which gives the deployment no name; add one, for example `name: hello`"#,
            ],
        );
        check(
            r#"deployments: [{upstream: "http://h"}]"#,
            &["2:15: deployments[0].name: found nothing, where a value must be given; write for example `name: shop`"],
        );
        check(
            r#"deployments: [{path: a, name: Hello World}, {path: b, name: "-"}, {path: c, name: a--b}]"#,
            &[
                r#"2:31: deployments[0].name: found "Hello World", which is not a name of up to 52 lower-case letters, digits and single hyphens; write for example hello-world"#,
                r#"2:61: deployments[1].name: found "-", which is not a name; write lower-case letters, digits and hyphens, for example shop"#,
                r#"2:83: deployments[2].name: found "a--b", which is not a name of up to 52 lower-case letters, digits and single hyphens; write for example a-b"#,
            ],
        );
        check(
            "deployments:\n  - path: hello\n  - path: other/hello",
            &[
                r#"4:11: deployments[1].path: found "hello" on line 4 as well as on line 3, a name that must be there once; give one of them another `name`"#,
            ],
        );
        check(
            "deployments:\n  - path: a\n    aliases: [x.localhost, x.localhost]\n  - path: b\n    aliases:\n      - y.localhost\n      - x.localhost",
            &[
                r#"4:28: deployments[0].aliases[1]: found "x.localhost" on line 4 as well as on line 4, an alias that points to one deployment only; remove one"#,
                r#"8:9: deployments[1].aliases[1]: found "x.localhost" on line 8 as well as on line 4, an alias that points to one deployment only; remove one"#,
            ],
        );
        check(
            "deployments: [{path: a, aliases: localhost}]",
            &[
                r#"2:34: deployments[0].aliases: found "localhost", which is not a list; write it in brackets, like ["localhost"]"#,
            ],
        );
    }

    #[test]
    fn syntax_error_is_the_only_mistake() {
        check("foo: [\nbar", &["2:6: found a file that is not valid YAML, unclosed bracket '['"]);
        check(r#"foo: "x"#, &["2:6: found a file that is not valid YAML, unclosed quote"]);
        check("a: b: c", &["2:5: found a file that is not valid YAML, mapping values are not allowed in this context"]);
        check(
            "- a",
            &["2:3: found a file that is not valid YAML, while parsing a block mapping, did not find expected key"],
        );
        check("\tfoo: 1", &["1:9: found a file that is not valid YAML, while scanning a plain scalar, found a tab"]);
        check("foo: *nowhere", &["2:6: found a file that is not valid YAML, reference to unknown value"]);
        check("foo: !bar x", &["2:11: found a file that is not valid YAML, unsupported tag `!bar`"]);
        check(
            "---\nregion: a",
            &["3:1: found a file that is not valid YAML, only single YAML document expected but multiple found"],
        );
        check("{a: b}: c", &["2:1: found a file that is not valid YAML, expected string scalar"]);
        check("region", &["2:1: found a file that is not valid YAML, simple key expected ':'"]);
    }

    #[test]
    fn region_is_required() {
        for (yaml, line) in [("", 1), ("{}", 1), ("# nothing\n\n", 3), ("cache: {memory: 1MB}", 1), ("region:", 1)] {
            let mistakes = parse(yaml).unwrap_err();
            assert_eq!(mistakes.all().len(), 1, "{yaml:?}: {mistakes}");
            assert_eq!((mistakes.all()[0].key.as_str(), mistakes.all()[0].line), ("region", line), "{yaml:?}");
        }
        for text in ["", "SFO1", "sfo-1", "a234567890abcdefg", "sfo1 "] {
            assert!(region(text).is_err(), "{text:?}");
        }
        assert_eq!(parse("region: no").map(|conf| conf.region), Ok("no".into()), "Norway is no boolean");
    }

    #[test]
    fn file_that_cannot_be_read_is_one_mistake() {
        let folder = shipped("");
        for (file, found) in [
            ("/does/not/exist.yaml", "No such file"),
            (folder.to_str().unwrap(), "directory"),
            ("/dev/zero", "larger than 1MB"),
        ] {
            let mistakes = Conf::load(Path::new(file)).unwrap_err();
            let text = mistakes.to_string();
            assert!(text.starts_with(&format!("{file}: found no file that can be read (")), "{text}");
            assert!(text.contains(found) && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn nesting_does_not_overflow_the_stack() {
        for yaml in
            [format!("x: {}{}", "[".repeat(100_000), "]".repeat(100_000)), "x: [".repeat(10_000), "- ".repeat(100_000)]
        {
            assert_eq!(parse(&yaml).unwrap_err().all().len(), 1);
        }
    }

    #[test]
    fn refuses_what_is_no_host() {
        let other = "write for example hello.localhost";
        check_texts(
            host,
            &[
                ("X.Localhost", "lower case: x.localhost"),
                ("X.localhost:8080", "without the port: x.localhost"),
                ("[::1]:80", "without the port: [::1]"),
                ("::1", "in brackets: \"[::1]\""),
                ("[::0001]", other),
                ("*.x", other),
                ("a..b", other),
                ("http://a", other),
                ("a/b", other),
                ("1.2.3", other),
                ("999.1.1.1", other),
                ("", other),
                ("x.", other),
                ("-a", other),
                ("ü.de", other),
                ("a b", other),
                (&"a".repeat(64), other),
                (&"a.".repeat(127), other),
            ],
        );
        for text in [
            "localhost",
            "hello.localhost",
            "127.0.0.1",
            "[::1]",
            "my_app",
            "xn--bcher-kva.example",
            "1.example",
            &"a".repeat(63),
        ] {
            assert_eq!(host(text).as_deref(), Ok(text));
        }
        assert!(domain(&format!("{}now.localhost", "a.".repeat(90))).unwrap_err().contains("no room"));
    }

    #[test]
    fn refuses_what_is_no_upstream() {
        check_texts(
            upstream,
            &[
                ("", "not an http or https origin"),
                ("ftp://h", "not an http or https origin"),
                ("h:80", "not an http or https origin"),
                ("http:/h", "not an http or https origin"),
                ("http://", "no host name"),
                ("http:///x", "a path"),
                ("http://h/x", "a path"),
                ("http://h//", "a path"),
                ("http://h?x", "a path"),
                ("http://h#x", "a path"),
                ("http://u:secret@h", "a user"),
                ("http://::1", "no host name"),
                ("http://h h", "no host name"),
                ("http://:80", "no host name"),
                ("http://h:", "a port"),
                ("http://h:0", "a port"),
                ("http://h:65536", "a port"),
                ("http://h:+80", "a port"),
            ],
        );
        for (text, origin) in [
            ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
            ("HTTPS://Example.COM/", "https://example.com"),
            ("http://[::1]:3000/", "http://[::1]:3000"),
            ("https://[::1]", "https://[::1]"),
            ("http://my_app:65535", "http://my_app:65535"),
        ] {
            assert_eq!(upstream(text).as_deref(), Ok(origin));
        }
    }

    #[test]
    fn password_of_an_upstream_is_not_shown() {
        let secret = "s3cret".repeat(20);
        let mistakes = parse(&format!("region: a\ndeployments: [{{upstream: 'http://user:{secret}@h', name: h}}]"));
        let text = mistakes.unwrap_err().to_string();
        assert!(text.contains("found \"http://...@h\"") && !text.contains("s3cret"), "{text}");
    }

    #[test]
    fn token_is_read_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let yaml =
            format!("region: a\nlisten: {{admin: '0.0.0.0:9180'}}\nadmin: {{token: {{file: '{}'}}}}", file.display());
        for text in ["", " \n", "two words", "two\nlines", "schlüssel", "a\0b"] {
            std::fs::write(&file, text).unwrap();
            let mistakes = parse(&yaml).unwrap_err();
            assert_eq!(mistakes.all().len(), 1, "{text:?}: {mistakes}");
            assert_eq!(mistakes.all()[0].key, "admin.token.file");
        }
        std::fs::write(&file, b"\xff\xfe").unwrap();
        assert!(parse(&yaml).is_err(), "not UTF-8");
        std::fs::write(&file, "  hunter2\n").unwrap();
        let conf = parse(&yaml).unwrap();
        assert_eq!(conf.admin_token.as_deref(), Some("hunter2"));
        assert!(!format!("{conf:?}").contains("hunter2"));
    }

    #[test]
    fn deployments_get_names_and_lines() {
        let conf = conf(
            "deployments:\n  - path: ./My Shop_2/\n  - path: site/.vercel/output\n    aliases: [a.localhost, 127.0.0.1]\n\n  - name: api\n    upstream: http://127.0.0.1:3000/\n",
        );
        let expected = [
            (Source::Path("./My Shop_2/".into()), "my-shop-2", vec![], 3),
            (Source::Path("site/.vercel/output".into()), "site", vec!["a.localhost", "127.0.0.1"], 4),
            (Source::Upstream("http://127.0.0.1:3000".into()), "api", vec![], 7),
        ]
        .map(|(source, name, aliases, line): (_, &str, Vec<&str>, _)| DeploymentSource {
            source,
            name: name.into(),
            aliases: aliases.into_iter().map(Into::into).collect(),
            line,
        });
        assert_eq!(conf.deployments, expected);
    }

    #[test]
    fn names_fit_a_label() {
        for (path, name) in [
            ("hello", Some("hello")),
            ("/srv/Hello--World", Some("hello-world")),
            ("-a-", Some("a")),
            ("ü", None),
            ("..", None),
            ("/", None),
            (".vercel/output", std::env::current_dir().unwrap().file_name().and_then(|name| name.to_str())),
            (".", std::env::current_dir().unwrap().file_name().and_then(|name| name.to_str())),
        ] {
            assert_eq!(name_of_folder(Path::new(path)), name.map(clean_name), "{path}");
        }
        let long = clean_name(&format!("{}-{}", "a".repeat(NAME_CHARS_MAX - 1), "b".repeat(9)));
        assert_eq!(long, "a".repeat(NAME_CHARS_MAX - 1), "no hyphen is left at the cut");
        assert_eq!(deployment_name(&long), Ok(long));
        assert!(deployment_name(&"a".repeat(NAME_CHARS_MAX + 1)).is_err());
    }

    #[test]
    fn listens_where_it_is_told() {
        let listen = |yaml: &str| conf(&format!("listen: {yaml}")).listen;
        assert_eq!(listen("{admin: off}").admin, None);
        assert_eq!(listen("{admin: 'off', http: ['0.0.0.0:9180']}").admin, None, "nothing to collide with");
        assert_eq!(listen("{http: ['127.0.0.1:0', '127.0.0.1:0', '[::1]:80']}").http.len(), 3);
        assert_eq!(listen("{http: ['0.0.0.0:80', '[::]:80']}").http.len(), 2, "one of each family");
        assert_eq!(listen("{admin: '[::1]:1'}").admin, Some(SocketAddr::from((Ipv6Addr::LOCALHOST, 1))));
        assert_eq!(listen("{admin: '[::ffff:127.0.0.1]:1'}").admin.map(|admin| admin.port()), Some(1));
        assert_eq!(listen(""), Listen::default());
    }

    #[test]
    fn empty_sections_mean_their_defaults() {
        assert_eq!(conf("listen:\nadmin:\ndeployments:\ncache: {}\nfunctions: ~\n"), conf(""));
    }

    #[test]
    fn headers_are_families() {
        assert_eq!(conf("").headers, Headers { now: true, vercel: false });
        assert_eq!(conf("headers: [vercel, now]").headers, Headers { now: true, vercel: true });
    }

    #[test]
    fn reference_documents_the_defaults() {
        let file = shipped("reference.yaml");
        let reference = Conf::load(&file).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        assert_eq!(reference, Conf::parse(&file, "region: sfo1").unwrap());
    }

    #[test]
    fn local_is_what_make_run_starts() {
        let file = shipped("local.yaml");
        let local = Conf::load(&file).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let deployments = local.deployments.clone();
        assert_eq!(deployments.len(), 1);
        assert_eq!(deployments[0].source, Source::Path("examples/hello".into()));
        assert_eq!(deployments[0].name, "hello");
        assert_eq!(deployments[0].aliases, ["localhost", "hello.localhost", "127.0.0.1"]);
        assert_eq!(Conf { deployments: Vec::new(), ..local }, Conf::parse(&file, "region: sfo1").unwrap());
    }

    #[test]
    fn the_two_nodes_of_the_example_are_one_region() {
        let [a, b] = ["region/a.yaml", "region/b.yaml"].map(|file| {
            let file = shipped(file);
            Conf::load(&file).unwrap_or_else(|mistakes| panic!("{mistakes}"))
        });
        assert_eq!((&a.region, &a.cache.regional, &a.deployments), (&b.region, &b.cache.regional, &b.deployments));
        assert!(a.node != b.node && a.data != b.data && a.listen != b.listen);
    }

    #[test]
    fn says_which_changes_need_a_restart() {
        let old = conf("node: a\nthreads: 1");
        assert_eq!(old.needs_restart(&old), Vec::<&str>::new());
        let reloaded =
            conf("node: a\nthreads: 1\nheaders: [now, vercel]\nfunctions: {idle: 1s}\ndeployments: [{path: a}]");
        assert_eq!(old.needs_restart(&reloaded), Vec::<&str>::new());
        let all = parse(
            "region: iad1\nnode: b\nthreads: 2\ndata: x\ndomain: x\ngrace: 1s\nlisten: {http: ['127.0.0.1:1'], admin: off}\ncache: {memory: 1MB, lock_timeout: 1s}",
        );
        assert_eq!(
            old.needs_restart(&all.unwrap()),
            [
                "region",
                "node",
                "threads",
                "listen.http",
                "listen.admin",
                "data",
                "domain",
                "cache.memory",
                "cache.node",
                "cache.lock_timeout",
                "grace"
            ]
        );
    }
}
