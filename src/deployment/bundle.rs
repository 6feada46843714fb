//! Finds the files that a Node function's entrypoint can load, for the limit on a function's size.
//!
//! The rule is textual and rather counts too much: a program is not parsed, its string literals are looked up.
//! Starting at the entry, a literal in a loaded source file (JavaScript, TypeScript) counts
//! - as a **file**, if it starts with `./` or `../` and names one from the folder of the source, if it is joined to
//!   `__dirname` or `import.meta.dirname` and does, or if it names one from the root of the project;
//! - as a **package**, if it is imported or required and its first part (two parts for `@scope/name`) is a folder in a
//!   `node_modules` on the way up. Other literals bring no packages: compiled TypeScript is full of the word "next", and
//!   Next alone is over the limit.
//!
//! A file brings what its own literals name. A package brings its whole folder without nested `node_modules`, and the
//! installed packages among its dependencies, optional and peer ones included; its sources are not read. Names are
//! completed as Node does it (`.js`, `index.js`, `main` of a package.json). The nearest package.json of a source is
//! loaded too, because Node looks into it for `type`.
//!
//! Files are known by their real path, so what several links lead to (pnpm) is counted once. Nothing outside of the
//! root is loaded, not even through a link.
//!
//! Not seen: names put together at run time (`./lang/${name}.json`), packages named in options, `imports` of a
//! package.json, `paths` of a tsconfig.json, folders that are read as a whole. `includeFiles` is for these.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

/// What a function consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    /// Real paths, relative to the root, with `/` between the parts.
    pub files: BTreeSet<String>,
    /// The sum of their lengths; a sparse file counts as long as it claims to be.
    pub bytes: u64,
}

/// Finds what `entry` can load. `include` are further files or folders, which may be missing; a missing entry is an error.
pub fn trace(root: &Path, entry: &str, include: &[String]) -> io::Result<Bundle> {
    let mut tracer = Tracer::new(root.canonicalize()?);
    let entry_file = normalize(Path::new(entry)).and_then(|path| tracer.real(&path));
    let entry_file = entry_file
        .filter(|path| tracer.is_file(path))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{entry} is not a file of the project")))?;
    tracer.load(entry_file);
    for path in include {
        tracer.include(path);
    }
    tracer.follow();
    Ok(tracer.bundle)
}

/// A longer literal is data, not a name.
const LITERAL_BYTES_MAX: usize = 512;
/// A larger source is generated, and what it imports stands at its beginning.
const SOURCE_BYTES_MAX: u64 = 10 * 1024 * 1024;

const EXTENSIONS: [&str; 6] = ["js", "mjs", "cjs", "json", "ts", "node"];
const SOURCES: [&str; 8] = ["js", "mjs", "cjs", "ts", "mts", "cts", "jsx", "tsx"];
/// TypeScript imports its own files under the names that they will have once compiled.
const COMPILED: [(&str, &str); 3] = [("js", "ts"), ("mjs", "mts"), ("cjs", "cts")];

/// All paths are relative to `root`; those in `sources` and `packages` are real ones.
struct Tracer {
    root: PathBuf,
    bundle: Bundle,
    seen: HashSet<PathBuf>,
    sources: Vec<PathBuf>,
    packages: Vec<PathBuf>,
    /// Names in the folders that are asked often: a bundled source has 100,000 literals that name nothing.
    listings: HashMap<PathBuf, HashSet<OsString>>,
}

impl Tracer {
    fn new(root: PathBuf) -> Self {
        Self {
            root,
            bundle: Bundle::default(),
            seen: HashSet::new(),
            sources: Vec::new(),
            packages: Vec::new(),
            listings: HashMap::new(),
        }
    }

    /// Works until no loaded file names another one. Ends, because nothing is queued twice.
    fn follow(&mut self) {
        loop {
            if let Some(source) = self.sources.pop() {
                self.scan(&source);
            } else if let Some(package) = self.packages.pop() {
                self.load_package(&package);
            } else {
                return;
            }
        }
    }

    fn include(&mut self, path: &str) {
        let Some(path) = normalize(Path::new(path)).and_then(|path| self.real(&path)) else {
            return;
        };
        if self.root.join(&path).is_dir() {
            self.load_folder(&path, Nested::Kept);
        } else {
            self.load(path);
        }
    }

    /// Counts a file, and queues it for scanning if it is a source. `file` is a real path.
    fn load(&mut self, file: PathBuf) {
        if self.count(&file) && has_extension(&file, &SOURCES) {
            self.sources.push(file);
        }
    }

    /// Whether the file is new.
    fn count(&mut self, file: &Path) -> bool {
        let Ok(metadata) = fs::metadata(self.root.join(file)) else {
            return false;
        };
        if !metadata.is_file() || !self.seen.insert(file.to_path_buf()) {
            return false;
        }
        self.bundle.bytes = self.bundle.bytes.saturating_add(metadata.len());
        self.bundle.files.insert(slashed(file));
        true
    }

    fn scan(&mut self, source: &Path) {
        let folder = source.parent().unwrap_or(Path::new("")).to_path_buf();
        self.load_nearest_manifest(&folder);

        let mut text = Vec::new();
        let opened = File::open(self.root.join(source));
        // What cannot be read cannot be loaded either; that is for the function to say.
        if opened.and_then(|file| file.take(SOURCE_BYTES_MAX).read_to_end(&mut text)).is_err() {
            return;
        }
        let names: HashSet<(&str, Use)> = literals(&text).collect();
        for (name, used) in names {
            self.load_named(&folder, name, used);
        }
        for (base, path) in joins(&text) {
            let base = match base {
                Base::Folder => folder.as_path(),
                Base::Root => Path::new(""),
            };
            self.load_at(&base.join(path));
        }
    }

    fn load_named(&mut self, folder: &Path, name: &str, used: Use) {
        // A module may be named with a query: './worker.js?v=2'.
        let plain = name.split(['?', '#']).next().unwrap_or_default();
        if is_relative(plain) {
            self.load_at(&folder.join(plain));
            return;
        }
        if !looks_like_a_name(plain) {
            return;
        }
        if used == Use::Imported
            && let Some(name) = package_name(plain)
            && let Some(package) = self.find_package(folder, name)
        {
            self.queue_package(package);
        }
        let first = plain.split('/').next().unwrap_or_default();
        if !self.lists(Path::new(""), first) {
            return;
        }
        if plain.contains('/') {
            self.load_at(Path::new(plain));
        } else if let Some(file) = self.real(Path::new(plain)) {
            // A single word is completed to nothing: "api" is not `api/index.js`.
            self.load(file);
        }
    }

    /// Loads what Node would find under a path.
    fn load_at(&mut self, path: &Path) {
        let Some(path) = normalize(path) else {
            return;
        };
        if let Some(file) = self.resolve(&path) {
            self.load(file);
        }
    }

    /// Node's order: the file itself, with an extension, then as a folder.
    fn resolve(&mut self, path: &Path) -> Option<PathBuf> {
        if let Some(found) = self.resolve_file(path) {
            return Some(found);
        }
        if !self.is_listed(path) {
            return None;
        }
        let folder = self.real(path).filter(|folder| self.root.join(folder).is_dir())?;
        let main = self.manifest(&folder).and_then(|manifest| {
            let main = manifest.get("main")?.as_str()?;
            normalize(&folder.join(main))
        });
        if let Some(main) = main {
            self.load_nearest_manifest(&folder);
            let found = self.resolve_file(&main);
            if let Some(found) = found.or_else(|| self.resolve_file(&main.join("index"))) {
                return Some(found);
            }
        }
        self.resolve_file(&folder.join("index"))
    }

    fn resolve_file(&mut self, path: &Path) -> Option<PathBuf> {
        let exact = std::iter::once(path.to_path_buf());
        let name = path.file_name()?;
        let longer = EXTENSIONS.iter().map(|extension| {
            let mut name = name.to_os_string();
            name.push(".");
            name.push(extension);
            path.with_file_name(name)
        });
        let uncompiled = COMPILED
            .iter()
            .filter(|(compiled, _)| has_extension(path, &[compiled]))
            .map(|(_, written)| path.with_extension(written));
        for candidate in exact.chain(longer).chain(uncompiled) {
            if !self.is_listed(&candidate) {
                continue;
            }
            if let Some(real) = self.real(&candidate).filter(|real| self.is_file(real)) {
                return Some(real);
            }
        }
        None
    }

    /// Whether a path may exist, by the listing of its folder.
    fn is_listed(&mut self, path: &Path) -> bool {
        match (path.parent(), path.file_name()) {
            (Some(folder), Some(name)) => self.lists(folder, name),
            _ => true, // The root itself.
        }
    }

    /// Where a path really leads, if that is inside of the root.
    fn real(&self, path: &Path) -> Option<PathBuf> {
        let real = self.root.join(path).canonicalize().ok()?;
        Some(real.strip_prefix(&self.root).ok()?.to_path_buf())
    }

    fn is_file(&self, path: &Path) -> bool {
        self.root.join(path).is_file()
    }

    fn find_package(&mut self, folder: &Path, package: &str) -> Option<PathBuf> {
        let first = package.split('/').next().unwrap_or_default();
        for ancestor in folder.ancestors() {
            if ancestor.ends_with("node_modules") {
                continue;
            }
            let modules = ancestor.join("node_modules");
            if !self.lists(&modules, first) {
                continue;
            }
            let found = self.real(&modules.join(package)).filter(|found| self.root.join(found).is_dir());
            if found.is_some() {
                return found;
            }
        }
        None
    }

    fn queue_package(&mut self, package: PathBuf) {
        // A project that links to itself does not bring itself as a whole.
        if package.as_os_str().is_empty() || !self.seen.insert(package.clone()) {
            return;
        }
        self.packages.push(package);
    }

    fn load_package(&mut self, package: &Path) {
        self.load_folder(package, Nested::LeftOut);
        let Some(manifest) = self.manifest(package) else {
            return;
        };
        for kind in ["dependencies", "optionalDependencies", "peerDependencies"] {
            let Some(dependencies) = manifest.get(kind).and_then(|value| value.as_object()) else {
                continue;
            };
            for name in dependencies.keys().filter_map(|name| package_name(name)) {
                if let Some(found) = self.find_package(package, name) {
                    self.queue_package(found);
                }
            }
        }
    }

    /// Counts all files under a folder. Links are followed as long as they do not lead back up.
    fn load_folder(&mut self, folder: &Path, nested: Nested) {
        let mut folders = vec![folder.to_path_buf()];
        let mut walked = HashSet::new();
        while let Some(folder) = folders.pop() {
            if !walked.insert(folder.clone()) {
                continue;
            }
            let Ok(entries) = fs::read_dir(self.root.join(&folder)) else {
                continue;
            };
            for entry in entries.flatten() {
                if nested == Nested::LeftOut && entry.file_name() == "node_modules" {
                    continue;
                }
                let Some(real) = self.real(&folder.join(entry.file_name())) else {
                    continue;
                };
                if !self.root.join(&real).is_dir() {
                    self.count(&real);
                } else if !folder.starts_with(&real) {
                    folders.push(real);
                }
            }
        }
    }

    fn load_nearest_manifest(&mut self, folder: &Path) {
        let nearest = folder.ancestors().map(|folder| folder.join("package.json")).find(|path| self.is_file(path));
        if let Some(manifest) = nearest.and_then(|path| self.real(&path)) {
            self.count(&manifest);
        }
    }

    fn manifest(&self, folder: &Path) -> Option<serde_json::Value> {
        let path = self.real(&folder.join("package.json")).filter(|path| self.is_file(path))?;
        let mut text = Vec::new();
        File::open(self.root.join(path)).ok()?.take(SOURCE_BYTES_MAX).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn lists(&mut self, folder: &Path, name: impl AsRef<OsStr>) -> bool {
        if !self.listings.contains_key(folder) {
            let inside = self.real(folder).and_then(|folder| fs::read_dir(self.root.join(folder)).ok());
            let names = inside.map(|entries| entries.flatten().map(|entry| entry.file_name()).collect());
            self.listings.insert(folder.to_path_buf(), names.unwrap_or_default());
        }
        self.listings.get(folder).is_some_and(|names| names.contains(name.as_ref()))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Nested {
    Kept,
    LeftOut,
}

/// What a literal is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Use {
    Imported,
    Other,
}

/// What a name is joined to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    Folder,
    Root,
}

const JOINED_TO: [(&str, Base); 3] =
    [("__dirname", Base::Folder), ("import.meta.dirname", Base::Folder), ("process.cwd()", Base::Root)];

/// The texts between two equal quotes of one line. Every quote is taken for an opening one: after an apostrophe in a
/// comment or a regular expression nobody knows which are, and what lies between two literals names no file.
fn literals(text: &[u8]) -> impl Iterator<Item = (&str, Use)> {
    let is_quote = |byte: &u8| matches!(byte, b'\'' | b'"' | b'`');
    let quotes = text.iter().enumerate().filter(move |(_, byte)| is_quote(byte));
    quotes.filter_map(|(start, _)| Some((literal_at(text, start)?, used_as(&text[..start]))))
}

/// Whether what stands before a literal imports it. `import.meta.url)` is the end of `createRequire(import.meta.url)`.
fn used_as(before: &[u8]) -> Use {
    const CALLED: [&str; 5] = ["require", "import", "require.resolve", "import.meta.resolve", "import.meta.url)"];
    const PLAIN: [&str; 2] = ["from", "import"];
    let before = without_comment(before);
    let (before, words) = match before.strip_suffix(b"(") {
        Some(before) => (before.trim_ascii_end(), CALLED.as_slice()),
        None => (before, PLAIN.as_slice()),
    };
    let is_import = words.iter().any(|word| before.ends_with(word.as_bytes()));
    if is_import { Use::Imported } else { Use::Other }
}

/// Bundlers are instructed in comments: `import(/* webpackIgnore: true */ 'name')`.
fn without_comment(before: &[u8]) -> &[u8] {
    let before = before.trim_ascii_end();
    let Some(inside) = before.strip_suffix(b"*/") else {
        return before;
    };
    let near = &inside[inside.len().saturating_sub(LITERAL_BYTES_MAX)..];
    let Some(start) = near.windows(2).rposition(|window| window == b"/*") else {
        return before;
    };
    before[..inside.len() - near.len() + start].trim_ascii_end()
}

/// The literal whose opening quote stands at `start`.
fn literal_at(text: &[u8], start: usize) -> Option<&str> {
    let quote = *text.get(start)?;
    let rest = text.get(start + 1..)?;
    let rest = &rest[..rest.len().min(LITERAL_BYTES_MAX + 1)];
    let end = rest.iter().position(|byte| *byte == quote || matches!(byte, b'\n' | b'\r' | b'\\'))?;
    if rest[end] != quote || end == 0 {
        return None;
    }
    std::str::from_utf8(&rest[..end]).ok()
}

/// Names that are put together next to `__dirname` and its like: `join(__dirname, '..', 'a.txt')`, `__dirname + '/a.txt'`
/// and `${__dirname}/a.txt`. Each longer name is there besides the shorter ones, the last one being the true one.
fn joins(text: &[u8]) -> Vec<(Base, String)> {
    let mut found = Vec::new();
    for (marker, base) in JOINED_TO {
        for end in occurrences(text, marker.as_bytes()) {
            let mut rest = skip_space(text, end);
            if text.get(rest) == Some(&b'}') {
                found.extend(template_rest(text, rest + 1).map(|path| (base, path)));
                continue;
            }
            let mut path = String::from(".");
            while let Some(joint @ (b',' | b'+')) = text.get(rest) {
                let start = skip_space(text, rest + 1);
                if !matches!(text.get(start), Some(b'\'' | b'"' | b'`')) {
                    break;
                }
                let Some(part) = literal_at(text, start) else {
                    break;
                };
                if *joint == b',' {
                    path.push('/');
                }
                path.push_str(part);
                if path.len() > LITERAL_BYTES_MAX {
                    break;
                }
                found.push((base, path.clone()));
                rest = skip_space(text, start + part.len() + 2);
            }
        }
    }
    found
}

/// The end of each occurrence.
fn occurrences(text: &[u8], needle: &[u8]) -> Vec<usize> {
    let matches = text.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle);
    matches.map(|(start, _)| start + needle.len()).collect()
}

fn skip_space(text: &[u8], from: usize) -> usize {
    let rest = text.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// What follows `${__dirname}` in a template, up to its end.
fn template_rest(text: &[u8], from: usize) -> Option<String> {
    let rest = text.get(from..)?;
    let rest = &rest[..rest.len().min(LITERAL_BYTES_MAX)];
    let end = rest.iter().position(|byte| matches!(byte, b'`' | b'$' | b'\n' | b'\\'))?;
    let name = std::str::from_utf8(&rest[..end]).ok()?;
    (rest[end] == b'`' && name.starts_with('/')).then(|| format!(".{name}"))
}

fn is_relative(name: &str) -> bool {
    name == "." || name == ".." || name.starts_with("./") || name.starts_with("../")
}

/// Whether a literal without dots in front is worth a look at the disk.
fn looks_like_a_name(name: &str) -> bool {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"@._/-+~[]()$%!,=".contains(&byte) || byte >= 0x80;
    !name.is_empty() && !name.starts_with('/') && name.bytes().all(is_fit)
}

/// `express` of `express/lib/router`, `@scope/name` of `@scope/name/part`.
fn package_name(name: &str) -> Option<&str> {
    let parts = if name.starts_with('@') { 2 } else { 1 };
    let end = name.match_indices('/').nth(parts - 1).map_or(name.len(), |(at, _)| at);
    let package = &name[..end];
    let is_whole = package.split('/').count() == parts && package.split('/').all(|part| !part.is_empty());
    (is_whole && !package.starts_with('.')).then_some(package)
}

/// Resolves `.` and `..` by the letter, as Node does before it looks at the disk. `None` if that leaves the root.
fn normalize(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => {
                if !normal.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(normal)
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| extensions.contains(&extension))
}

fn slashed(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    /// Writes the files, traces, and compares. Every file is as long as its text.
    fn check(files: &[(&str, &str)], entry: &str, include: &[&str], expected: &[&str]) {
        check_in(&project(files), entry, include, expected);
    }

    fn check_in(project: &TempDir, entry: &str, include: &[&str], expected: &[&str]) {
        let include: Vec<_> = include.iter().map(|path| (*path).to_string()).collect();
        let bundle = trace(project.path(), entry, &include).expect("the entry exists");
        let expected: BTreeSet<_> = expected.iter().map(|path| (*path).to_string()).collect();
        assert_eq!(bundle.files, expected);
        let length = |path: &String| fs::metadata(project.path().join(path)).expect("a counted file").len();
        assert_eq!(bundle.bytes, bundle.files.iter().map(length).sum::<u64>());
    }

    fn project(files: &[(&str, &str)]) -> TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            fs::write(path, text).expect("a file");
        }
        folder
    }

    #[test]
    fn missing_entry_is_an_error() {
        let project = project(&[("a/b.js", "")]);
        for entry in ["c.js", "a", "../x.js", "/etc/passwd", ""] {
            let error = trace(project.path(), entry, &[]).expect_err(entry);
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        }
        assert!(trace(&project.path().join("gone"), "a/b.js", &[]).is_err());
    }

    #[test]
    fn missing_files_are_passed_over() {
        let text = "require('./gone'); require('nobody'); require('@scope'); require('@scope/'); require('.')";
        check(&[("a.js", text)], "a.js", &["gone", "gone/b.js", "../up", "/etc/passwd"], &["a.js"]);
    }

    #[test]
    fn nothing_outside_of_the_root_is_loaded() {
        let outside = project(&[("secret.js", "x"), ("package/index.js", "x"), ("package/package.json", "{}")]);
        let text = "require('../secret'); require('./link'); require('linked'); require('/etc/passwd'); require('./up/secret')";
        let inside = project(&[("a.js", text), ("node_modules/own/index.js", "")]);
        symlink(outside.path().join("secret.js"), inside.path().join("link.js")).expect("a link");
        symlink(outside.path().join("package"), inside.path().join("node_modules/linked")).expect("a link");
        symlink(outside.path(), inside.path().join("up")).expect("a link");
        symlink(outside.path(), inside.path().join("node_modules/own/out")).expect("a link");
        symlink(outside.path().join("secret.js"), inside.path().join("package.json")).expect("a link");
        check_in(&inside, "a.js", &["up", "link.js"], &["a.js"]);
        fs::write(inside.path().join("a.js"), "require('own')").expect("a file");
        check_in(&inside, "a.js", &[], &["a.js", "node_modules/own/index.js"]);
    }

    #[test]
    fn circles_end() {
        let files = [
            ("a.js", "require('./b'); require('one')"),
            ("b.js", "require('./a'); require('./b'); require('.')"),
            ("index.js", "require('..'); require('self')"),
            ("node_modules/one/package.json", r#"{"dependencies":{"two":"*","one":"*"}}"#),
            ("node_modules/two/package.json", r#"{"peerDependencies":{"one":"*"}}"#),
        ];
        let project = project(&files);
        symlink("..", project.path().join("node_modules/self")).expect("a link");
        symlink("..", project.path().join("node_modules/one/up")).expect("a link");
        symlink("../..", project.path().join("node_modules/one/root")).expect("a link");
        symlink("loop", project.path().join("loop")).expect("a link");
        let expected = ["a.js", "b.js", "index.js", "node_modules/one/package.json", "node_modules/two/package.json"];
        check_in(&project, "a.js", &["loop"], &expected);
    }

    #[test]
    fn broken_manifests_are_passed_over() {
        for manifest in ["", "{", "[]", r#"{"dependencies":[]}"#, r#"{"dependencies":{"":"*","../x":"*","@a":"*"}}"#] {
            let files = [("a.js", "import 'p'"), ("node_modules/p/package.json", manifest), ("x/a.js", "")];
            check(&files, "a.js", &[], &["a.js", "node_modules/p/package.json"]);
        }
    }

    #[test]
    fn names_are_completed_as_node_does() {
        let rows = [
            ("./b", "b"),
            ("./b", "b.js"),
            ("./b", "b.mjs"),
            ("./b", "b.cjs"),
            ("./b", "b.json"),
            ("./b", "b.ts"),
            ("./b", "b.node"),
            ("./b", "b/index.js"),
            ("./b/", "b/index.json"),
            ("./b.js", "b.ts"),
            ("./b.mjs", "b.mts"),
            ("./b.min", "b.min.js"),
            ("./b.js?v=1", "b.js"),
            ("../lib/b", "lib/b.js"),
            ("lib/b", "lib/b.js"),
            ("lib/data.txt", "lib/data.txt"),
            ("data.txt", "data.txt"),
            ("./[name].js", "api/[name].js"),
            ("./two words.txt", "api/two words.txt"),
        ];
        for (name, file) in rows {
            let file =
                if name.starts_with("./") && !file.starts_with("api/") { format!("api/{file}") } else { file.into() };
            check(&[("api/a.js", &format!("f('{name}')")), (&file, "")], "api/a.js", &[], &["api/a.js", &file]);
        }
    }

    #[test]
    fn a_file_goes_before_a_folder_and_main_before_index() {
        let files = [("a.js", "import './b'"), ("b.js", ""), ("b/index.js", "")];
        check(&files, "a.js", &[], &["a.js", "b.js"]);
        let files = [
            ("a.js", "import './b'"),
            ("b/package.json", r#"{"main":"./lib"}"#),
            ("b/lib/index.js", ""),
            ("b/index.js", ""),
        ];
        check(&files, "a.js", &[], &["a.js", "b/lib/index.js", "b/package.json"]);
    }

    #[test]
    fn a_word_is_not_completed_to_a_file_of_the_root() {
        check(&[("api/a.js", "f('lib')"), ("lib.js", ""), ("lib/index.js", "")], "api/a.js", &[], &["api/a.js"]);
    }

    #[test]
    fn literals_are_found_in_any_surroundings() {
        let rows = [
            "require('./b')",
            "import x from \"./b.js\";",
            "import(`./b`)",
            "// don't\nrequire('./b')",
            "/* isn't */ require('./b')",
            "if (/['\"]/.test(x)) require('./b')",
            "x = `it's\n\n`; y = './b'",
            "\u{feff}export*from'./b'",
            "'\\'' + './b'",
        ];
        for text in rows {
            check(&[("a.js", text), ("b.js", "")], "a.js", &[], &["a.js", "b.js"]);
        }
        let long = format!("./{}b", "./".repeat(300));
        for text in ["'./\nb'", "'./b", "`./${b}`", &format!("'{long}'"), "'./\\x62'"] {
            check(&[("a.js", text), ("b.js", "")], "a.js", &[], &["a.js"]);
        }
    }

    #[test]
    fn bytes_that_are_not_text_do_no_harm() {
        let project = project(&[("b.js", "")]);
        fs::write(project.path().join("a.js"), b"\xff'\xfe./b' './b' '\0'").expect("a file");
        check_in(&project, "a.js", &[], &["a.js", "b.js"]);
    }

    #[test]
    fn names_joined_to_the_folder() {
        let rows = [
            "join(__dirname, 'data', 'b.txt')",
            "join(__dirname,'data/b.txt')",
            "path.join(\n  __dirname,\n  '..',\n  \"api\", `data`, 'b.txt',\n)",
            "__dirname + '/data/b.txt'",
            "`${__dirname}/data/b.txt`",
            "join(import.meta.dirname, 'data', 'b.txt')",
            "new URL('./data/b.txt', import.meta.url)",
            "join(process.cwd(), 'api', 'data', 'b.txt')",
            "`${process.cwd()}/api/data/b.txt`",
            "readFileSync('api/data/b.txt')",
        ];
        for text in rows {
            check(&[("api/a.js", text), ("api/data/b.txt", "b")], "api/a.js", &[], &["api/a.js", "api/data/b.txt"]);
        }
        for text in [
            "join(__dirname, name, 'b.txt')",
            "__dirname + '/../../b.txt'",
            "join(__dirname",
            "`${__dirname}/${b}.txt`",
        ] {
            check(&[("api/a.js", text), ("api/b.txt", "")], "api/a.js", &[], &["api/a.js"]);
        }
    }

    #[test]
    fn a_package_comes_whole_with_what_it_depends_on() {
        let files = [
            ("api/a.js", "require('one/lib/part'); require('@s/two'); require('node:fs')"),
            ("package.json", r#"{"dependencies":{"unused":"*"}}"#),
            (
                "node_modules/one/package.json",
                r#"{"dependencies":{"three":"*","gone":"*"},"devDependencies":{"unused":"*"}}"#,
            ),
            ("node_modules/one/lib/part.js", "require('unused')"),
            ("node_modules/one/README.md", "read"),
            ("node_modules/one/node_modules/three/index.js", "nested"),
            ("node_modules/one/node_modules/four/index.js", "nobody asks"),
            ("node_modules/three/index.js", "hidden by the nested one"),
            (
                "node_modules/@s/two/package.json",
                r#"{"optionalDependencies":{"five":"*"},"peerDependencies":{"@s/six":"*"}}"#,
            ),
            ("node_modules/@s/six/index.js", ""),
            ("node_modules/@s/seven/index.js", ""),
            ("api/node_modules/five/index.js", "not on the way up from two"),
            ("node_modules/five/index.js", ""),
            ("node_modules/unused/index.js", ""),
        ];
        let expected = [
            "api/a.js",
            "package.json",
            "node_modules/one/package.json",
            "node_modules/one/lib/part.js",
            "node_modules/one/README.md",
            "node_modules/one/node_modules/three/index.js",
            "node_modules/@s/two/package.json",
            "node_modules/@s/six/index.js",
            "node_modules/five/index.js",
        ];
        check(&files, "api/a.js", &[], &expected);
    }

    #[test]
    fn only_what_is_imported_is_a_package() {
        let imports = [
            "require('next')",
            "require( \"next/headers\" )",
            "__require(`next`)",
            "require.resolve('next')",
            "import next from 'next'",
            "import{a}from'next'",
            "export * from\n  'next'",
            "import 'next'",
            "import('next')",
            "import(/* webpackIgnore: true */ 'next')",
            "createRequire(import.meta.url)('next')",
        ];
        let others = [
            "verb('next')",
            "it['next']()",
            "Promise.resolve('next')",
            "Array.from('next')",
            "/* 'next' */",
            "*/ 'next'",
            "'next'",
        ];
        let files = |text| [("a.js", text), ("node_modules/next/index.js", "")];
        for text in imports {
            check(&files(text), "a.js", &[], &["a.js", "node_modules/next/index.js"]);
        }
        for text in others {
            check(&files(text), "a.js", &[], &["a.js"]);
        }
    }

    #[test]
    fn links_of_pnpm_are_counted_once() {
        let project = project(&[
            ("a.js", "require('one'); require('two')"),
            ("node_modules/.pnpm/one@1/node_modules/one/package.json", r#"{"dependencies":{"two":"*"}}"#),
            ("node_modules/.pnpm/two@1/node_modules/two/index.js", "two"),
        ]);
        let modules = project.path().join("node_modules");
        symlink(".pnpm/one@1/node_modules/one", modules.join("one")).expect("a link");
        symlink(".pnpm/two@1/node_modules/two", modules.join("two")).expect("a link");
        symlink("../../two@1/node_modules/two", modules.join(".pnpm/one@1/node_modules/two")).expect("a link");
        let expected = [
            "a.js",
            "node_modules/.pnpm/one@1/node_modules/one/package.json",
            "node_modules/.pnpm/two@1/node_modules/two/index.js",
        ];
        check_in(&project, "a.js", &[], &expected);
    }

    #[test]
    fn included_files_are_loaded_too() {
        let files = [("a.js", ""), ("b.js", "require('./c')"), ("c.js", ""), ("d/e.txt", ""), ("f.txt", "")];
        check(&files, "a.js", &["b.js", "d", "./a.js"], &["a.js", "b.js", "c.js", "d/e.txt"]);
    }

    #[test]
    fn data_is_not_read_for_names() {
        check(&[("a.js", "'./b.json'"), ("b.json", r#"["./c.js"]"#), ("c.js", "")], "a.js", &[], &["a.js", "b.json"]);
    }

    #[test]
    fn the_nearest_manifest_comes_with_a_source() {
        let files = [("package.json", "{}"), ("api/package.json", "{}"), ("api/v1/a.js", "")];
        check(&files, "api/v1/a.js", &[], &["api/package.json", "api/v1/a.js"]);
    }

    #[test]
    fn a_sparse_file_counts_as_long_as_it_claims() {
        let project = project(&[("a.js", "'./b.bin'")]);
        let file = File::create(project.path().join("b.bin")).expect("a file");
        file.set_len(60 * 1024 * 1024).expect("a length");
        let bundle = trace(project.path(), "a.js", &[]).expect("the entry exists");
        assert_eq!(bundle.bytes, 60 * 1024 * 1024 + 9);
    }

    #[test]
    fn only_the_beginning_of_a_huge_source_is_read() {
        let project = project(&[("b.js", ""), ("c.js", "")]);
        let mut text = b"'./b'".to_vec();
        text.resize(usize::try_from(SOURCE_BYTES_MAX).expect("a small number"), b' ');
        text.extend_from_slice(b"'./c'");
        fs::write(project.path().join("a.js"), text).expect("a file");
        check_in(&project, "a.js", &[], &["a.js", "b.js"]);
    }
}
