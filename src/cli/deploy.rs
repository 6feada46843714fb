//! `perigee deploy DIR`: packs a folder into a tar and streams it to a node.
//! Two steps, so that a mistake in the folder is found before a byte is sent: gather every file and what is wrong with any of
//! them, then send. The sizes are known by then, so the request has a length and the node can refuse it at once.

use std::{
    fs::{self, File},
    io::{self, Cursor, IsTerminal, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
    vec,
};

use clap::Args;
use serde::Deserialize;
use walkdir::{DirEntry, WalkDir};

use crate::conf::{self, NAME_CHARS_MAX, units};

use super::client::{Client, Failure, NodeArguments, encode, print, printable};

/// What version control and the Finder leave in a folder; never a part of a site.
const SKIPPED: [&str; 4] = [".git", ".hg", ".svn", ".DS_Store"];

const TAR_BLOCK: u64 = 512;

#[derive(Debug, Args)]
pub struct Arguments {
    /// A project, or a folder that holds .vercel/output, or that output itself
    dir: PathBuf,
    /// A host that shall point at the deployment; may be repeated
    #[arg(long = "alias", value_name = "HOST")]
    aliases: Vec<String>,
    /// The deployment's name [default: the folder's]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    node: NodeArguments,
}

#[derive(Deserialize)]
struct Deployed {
    id: String,
    url: String,
    #[serde(default)]
    aliases: Vec<String>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let client = Client::new(&arguments.node)?;
    let dir = arguments.dir.display();
    let root = fs::canonicalize(&arguments.dir).map_err(|error| Failure::Input(format!("{dir}: {error}")))?;
    let name = name(arguments.name.as_deref(), &root)?;
    let entries = gather(&root)?;

    let mut archive = Archive::new(entries);
    let files = if archive.files == 1 { "file" } else { "files" };
    let content = units::readable(archive.content_bytes);
    note(&format!("{dir} as {name}: {} {files}, {content}", archive.files));
    let answer = client.upload(&target(&name, &arguments.aliases), archive.length, &mut archive);
    archive.progress.finish();
    let deployed: Deployed = match (answer, archive.failure) {
        // The node saw a broken body and may have said so; what broke it is on our side.
        (_, Some(failure)) => return Err(Failure::Input(failure)),
        (answer, None) => answer?,
    };
    note(&format!("deployed {}", printable(&deployed.id)));
    for alias in &deployed.aliases {
        note(&format!("alias {}", printable(alias)));
    }
    print(out, &format!("{}\n", printable(&deployed.url)))
}

/// One file on its way into the archive.
#[derive(Debug)]
struct Entry {
    source: PathBuf,
    /// Its header in the tar, with the name that it has there.
    head: Vec<u8>,
    bytes: u64,
}

impl Entry {
    fn new(root: &Path, file: &DirEntry) -> Result<Entry, String> {
        let metadata = file.metadata().map_err(|error| error.to_string())?;
        let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
        let modified = metadata.modified().ok();
        let modified = modified.and_then(|modified| modified.duration_since(UNIX_EPOCH).ok());

        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(metadata.len());
        header.set_mode(mode);
        header.set_mtime(modified.unwrap_or_default().as_secs());
        // Who owns the file here means nothing there.
        header.set_uid(0);
        header.set_gid(0);

        // The builder knows how to put a long name; it is given no content, which follows from the file itself.
        let name = file.path().strip_prefix(root).map_err(|error| error.to_string())?;
        let mut builder = tar::Builder::new(Vec::new());
        builder
            .append_data(&mut header, name, io::empty())
            .map_err(|error| format!("{}: {error}", file.path().display()))?;
        let head = std::mem::take(builder.get_mut());
        Ok(Entry { source: file.path().to_owned(), head, bytes: metadata.len() })
    }

    fn padding(&self) -> u64 {
        self.bytes.next_multiple_of(TAR_BLOCK) - self.bytes
    }

    fn length(&self) -> u64 {
        self.head.len() as u64 + self.bytes + self.padding()
    }
}

/// Every file below `root`, which is canonical, in the order of their names; or every reason why not.
fn gather(root: &Path) -> Result<Vec<Entry>, Failure> {
    if !root.is_dir() {
        return Err(Failure::Input(format!("{} is not a folder", root.display())));
    }
    let mut entries = Vec::new();
    let mut mistakes = Vec::new();
    let mut walk = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter();
    while let Some(found) = walk.next() {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                mistakes.push(walk_mistake(&error));
                continue;
            }
        };
        let is_dir = found.file_type().is_dir();
        if found.depth() > 0 && is_skipped(&found) {
            if is_dir {
                walk.skip_current_dir();
            }
        } else if let Some(mistake) = mistake(root, &found) {
            mistakes.push(mistake);
            if is_dir {
                walk.skip_current_dir();
            }
        } else if !is_dir {
            match Entry::new(root, &found) {
                Ok(entry) => entries.push(entry),
                Err(mistake) => mistakes.push(mistake),
            }
        }
    }
    if entries.is_empty() && mistakes.is_empty() {
        mistakes.push(format!("{} holds no files", root.display()));
    }
    if mistakes.is_empty() { Ok(entries) } else { Err(Failure::Input(mistakes.join("\n"))) }
}

fn is_skipped(found: &DirEntry) -> bool {
    SKIPPED.iter().any(|skipped| found.file_name() == *skipped)
}

/// Why this cannot be a part of the deployment. Only links need their target looked up: all else is where it seems to be.
fn mistake(root: &Path, found: &DirEntry) -> Option<String> {
    let path = found.path().display();
    if found.depth() > 0 && found.path_is_symlink() {
        match fs::canonicalize(found.path()) {
            Ok(target) if target.starts_with(root) => {}
            Ok(target) => {
                return Some(format!(
                    "{path} is a link to {}, outside the folder; copy it in, or remove the link",
                    target.display()
                ));
            }
            Err(error) => return Some(format!("{path}: {error}")),
        }
    }
    let kind = found.file_type();
    let is_known = kind.is_file() || kind.is_dir();
    (!is_known).then(|| format!("{path} is neither a file nor a folder; remove it"))
}

fn walk_mistake(error: &walkdir::Error) -> String {
    let path = error.path().unwrap_or(Path::new("?")).display();
    match (error.loop_ancestor(), error.io_error()) {
        (Some(_), _) => format!("{path} is a link to a folder that holds it; remove the link"),
        (None, Some(io)) if io.kind() == io::ErrorKind::NotFound => {
            format!("{path} is a link to nothing; remove it, or make what it points to")
        }
        (None, Some(io)) => format!("{path}: {io}"),
        (None, None) => error.to_string(),
    }
}

/// The tar as a stream of known length; files are opened one at a time, when their turn comes.
struct Archive {
    /// Of the whole stream.
    length: u64,
    files: usize,
    content_bytes: u64,
    entries: vec::IntoIter<Entry>,
    current: Box<dyn Read>,
    has_closed: bool,
    /// What went wrong with a file while it was being sent; an `io::Error` alone could be the connection's.
    failure: Option<String>,
    source: PathBuf,
    progress: Progress,
}

impl Archive {
    fn new(entries: Vec<Entry>) -> Archive {
        let length = entries.iter().map(Entry::length).sum::<u64>() + 2 * TAR_BLOCK;
        Archive {
            length,
            files: entries.len(),
            content_bytes: entries.iter().map(|entry| entry.bytes).sum(),
            entries: entries.into_iter(),
            current: Box::new(io::empty()),
            has_closed: false,
            failure: None,
            source: PathBuf::new(),
            progress: Progress::new(length),
        }
    }

    /// Goes on to the next file, or to the two empty blocks that end a tar; false at the end.
    fn advance(&mut self) -> io::Result<bool> {
        if let Some(entry) = self.entries.next() {
            self.source.clone_from(&entry.source);
            let padding = entry.padding();
            let content = Exactly(File::open(&entry.source)?.take(entry.bytes));
            let zeroes = io::repeat(0).take(padding);
            self.current = Box::new(Cursor::new(entry.head).chain(content).chain(zeroes));
            return Ok(true);
        }
        let closes = !self.has_closed;
        self.has_closed = true;
        self.current = Box::new(io::repeat(0).take(if closes { 2 * TAR_BLOCK } else { 0 }));
        Ok(closes)
    }

    fn read_on(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.current.read(buffer)?;
            if read > 0 || buffer.is_empty() || !self.advance()? {
                return Ok(read);
            }
        }
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.read_on(buffer) {
            Ok(read) => {
                self.progress.add(read as u64);
                Ok(read)
            }
            Err(error) => {
                self.failure = Some(format!("{}: {error}", self.source.display()));
                Err(error)
            }
        }
    }
}

/// As many bytes as its header says: a file that grew is cut, and one that shrank is an error, since both would make the
/// rest of the tar unreadable.
struct Exactly(io::Take<File>);

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        if read == 0 && self.0.limit() > 0 && !buffer.is_empty() {
            return Err(io::Error::other("became shorter while it was being sent"));
        }
        Ok(read)
    }
}

/// A percentage on a terminal; silent where stderr is a file.
struct Progress {
    total: u64,
    sent: u64,
    percent_shown: Option<u64>,
    is_shown: bool,
}

impl Progress {
    fn new(total: u64) -> Progress {
        Progress { total, sent: 0, percent_shown: None, is_shown: io::stderr().is_terminal() }
    }

    fn add(&mut self, bytes: u64) {
        self.sent += bytes;
        let percent = self.sent * 100 / self.total.max(1);
        if self.is_shown && self.percent_shown != Some(percent) {
            self.percent_shown = Some(percent);
            let (sent, total) = (units::readable(self.sent), units::readable(self.total));
            let _ = write!(io::stderr(), "\rsending {percent} % ({sent} of {total})\x1b[K");
        }
    }

    fn finish(&mut self) {
        if self.percent_shown.is_some() {
            note("");
        }
    }
}

/// To stderr, which may be gone without anyone minding.
fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn target(name: &str, aliases: &[String]) -> String {
    let mut target = format!("/v1/deployments?name={}", encode(name));
    for alias in aliases {
        target.push_str(&format!("&alias={}", encode(alias)));
    }
    target
}

fn name(given: Option<&str>, root: &Path) -> Result<String, Failure> {
    match given {
        Some(given) => {
            let clean = conf::clean_name(given);
            if clean == given && !clean.is_empty() {
                return Ok(clean);
            }
            let example = if clean.is_empty() { "my-site" } else { &clean };
            Err(Failure::Input(format!(
                "--name {given:?} is not a name: at most {NAME_CHARS_MAX} of a-z, 0-9 and single dashes \
                 between them, as in {example}"
            )))
        }
        None => {
            let folder = root.file_name().unwrap_or_default().to_string_lossy();
            let clean = conf::clean_name(&folder);
            if clean.is_empty() {
                let root = root.display();
                return Err(Failure::Input(format!("no name can be made of {root}; give one with --name")));
            }
            Ok(clean)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::symlink};

    use super::super::client::testing::{Node, Request, run};
    use super::*;

    /// A folder `site` in a folder of its own, so that there is an outside.
    struct Site {
        outside: tempfile::TempDir,
        root: PathBuf,
    }

    impl Site {
        fn new(files: &[(&str, &str)]) -> Site {
            let outside = tempfile::tempdir().unwrap();
            let root = outside.path().join("My Site");
            fs::create_dir(&root).unwrap();
            let site = Site { outside, root };
            for (path, content) in files {
                site.write(path, content);
            }
            site
        }

        fn write(&self, path: &str, content: &str) {
            let path = self.root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn link(&self, path: &str, target: &str) {
            symlink(target, self.root.join(path)).unwrap();
        }

        fn mistakes(&self) -> String {
            gather(&fs::canonicalize(&self.root).unwrap()).unwrap_err().to_string()
        }

        fn deploy(&self, words: &[&str], node: Node) -> (Result<(), Failure>, String, Request) {
            let words = [&["deploy", self.root.to_str().unwrap()], words].concat();
            let (ended, out) = run(&words, &node.address);
            (ended, out, node.request())
        }
    }

    fn deployed() -> Node {
        Node::answering(201, r#"{"id":"my-site-abc","url":"http://my-site-abc.now.localhost","aliases":["a"]}"#)
    }

    fn unpack(tar: &[u8]) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(tar).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            files.insert(path, content);
        }
        files
    }

    #[test]
    fn what_cannot_be_deployed_is_refused_with_its_path() {
        let check = |link: &str, target: &str, expected: &str| {
            let site = Site::new(&[("index.html", "hello")]);
            fs::write(site.outside.path().join("secret"), "secret").unwrap();
            site.link(link, target);
            let found = site.mistakes();
            assert!(found.contains(link) && found.contains(expected), "{link} -> {target}: {found}");
        };
        check("passwords", "/etc/passwd", "outside the folder");
        check("secret", "../secret", "outside the folder");
        check("everything", "..", "outside the folder");
        check("gone", "nothing", "link to nothing");
        check("self", ".", "a folder that holds it");
        check("snake", "snake", "snake");
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let site = Site::new(&[("index.html", "hello")]);
        site.link("a", "/etc/passwd");
        site.link("b", "/etc");
        site.link("c", "nothing");
        let _socket = std::os::unix::net::UnixListener::bind(site.root.join("d")).unwrap();
        let found = site.mistakes();
        assert_eq!(found.lines().count(), 4, "{found}");
        assert!(found.contains("neither a file nor a folder"), "{found}");
    }

    #[test]
    fn nothing_to_deploy_is_a_mistake() {
        let check = |words: &[&str], expected: &str| {
            let words = [&["deploy"], words].concat();
            let (ended, out) = run(&words, "127.0.0.1:1");
            let failure = ended.unwrap_err().to_string();
            assert!(failure.contains(expected), "{words:?}: {failure}");
            assert_eq!(out, "");
        };
        let site = Site::new(&[(".git/config", "x"), ("sub/.DS_Store", "x")]);
        let root = site.root.to_str().unwrap();
        check(&[root], "holds no files");
        check(&["/nonexistent"], "/nonexistent: No such file");
        check(&["/etc/passwd"], "is not a folder");
        check(&["/"], "--name");
        check(&[root, "--name", "My Site"], "as in my-site");
        check(&[root, "--name", ""], "as in my-site");
    }

    #[test]
    fn a_refusal_is_heard_before_the_body_is_sent() {
        let site = Site::new(&[]);
        fs::write(site.root.join("big"), vec![0; 8 << 20]).unwrap();
        let body = r#"{"error":{"code":"UNAUTHORIZED","message":"a token is needed"}}"#;
        let (ended, out, request) = site.deploy(&[], Node::answering(401, body));
        assert_eq!(ended.unwrap_err().to_string(), "a token is needed");
        assert_eq!(out, "");
        assert!(request.body.is_empty());
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_and_not_a_short_tar() {
        let site = Site::new(&[("a", "hello"), ("b", "world")]);
        let entries = gather(&fs::canonicalize(&site.root).unwrap()).unwrap();
        let check = |content: Option<&str>, expected: &str| {
            match content {
                Some(content) => site.write("b", content),
                None => fs::remove_file(site.root.join("b")).unwrap(),
            }
            let entries = entries.iter().map(|entry| Entry {
                source: entry.source.clone(),
                head: entry.head.clone(),
                bytes: entry.bytes,
            });
            let mut archive = Archive::new(entries.collect());
            archive.read_to_end(&mut Vec::new()).unwrap_err();
            let failure = archive.failure.unwrap();
            assert!(failure.contains("/b: ") && failure.contains(expected), "{failure}");
        };
        check(Some("wor"), "became shorter");
        check(None, "No such file");
    }

    #[test]
    fn a_folder_arrives_as_it_is() {
        let long = format!("{}/{}.txt", "d".repeat(120), "f".repeat(120));
        let block = "x".repeat(512);
        let site = Site::new(&[
            ("index.html", "hello"),
            ("empty", ""),
            ("api/date.js", &block),
            ("ünïcode.txt", "u"),
            (&long, "long"),
            (".vercel/output/config.json", "{}"),
            ("data/kept", "yes"),
            ("gitignore/.gitignore", "x"),
            (".git/config", "no"),
            ("sub/.git", "gitdir: elsewhere"),
            ("sub/.DS_Store", "no"),
            (".hg/x", "no"),
            (".svn/x", "no"),
        ]);
        site.link("file-link", "index.html");
        site.link("dir-link", "api");
        fs::set_permissions(site.root.join("empty"), fs::Permissions::from_mode(0o700)).unwrap();

        let (ended, out, request) = site.deploy(&["--alias", "a", "--alias", "b c&d"], deployed());
        ended.unwrap();
        assert_eq!(out, "http://my-site-abc.now.localhost\n");
        assert_eq!(request.target, "POST /v1/deployments?name=my-site&alias=a&alias=b%20c%26d");
        assert!(request.head.contains("content-type: application/x-tar\r\n"), "{}", request.head);

        let files = unpack(&request.body);
        let expected: Vec<(&str, &str)> = vec![
            (".vercel/output/config.json", "{}"),
            ("api/date.js", &block),
            ("data/kept", "yes"),
            (&long, "long"),
            ("dir-link/date.js", &block),
            ("empty", ""),
            ("file-link", "hello"),
            ("gitignore/.gitignore", "x"),
            ("index.html", "hello"),
            ("ünïcode.txt", "u"),
        ];
        let files: Vec<(&str, &str)> = files.iter().map(|(p, c)| (&p[..], &c[..])).collect();
        assert_eq!(files, expected);

        let mut archive = tar::Archive::new(&request.body[..]);
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let expected = if entry.path().unwrap() == Path::new("empty") { 0o755 } else { 0o644 };
            assert_eq!(entry.header().mode().unwrap(), expected);
        }
    }

    #[test]
    fn names_are_cleaned() {
        let check = |folder: &str, expected: &str| {
            assert_eq!(conf::clean_name(folder), expected, "folder: {folder:?}");
        };
        check("", "");
        check("---", "");
        check("日本", "");
        check("hello", "hello");
        check("My Site (2)", "my-site-2");
        check(".vercel", "vercel");
        check("a__b--c", "a-b-c");
        check("Über", "ber");
        check(&"a".repeat(60), &"a".repeat(52));
        check(&format!("{}-b", "a".repeat(51)), &"a".repeat(51));
    }
}
