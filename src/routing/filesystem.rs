//! The outputs of a deployment by URL path: what exists, which output stands for a folder, and what a folder holds.
//!
//! A table in memory, made once when a deployment is loaded. A request path is only ever looked up in it and never joined to a folder, so no
//! spelling of `..` can leave the deployment. The path is decoded once, strictly, and whatever has two readings is refused instead of guessed at.

use std::collections::{BTreeMap, HashMap};

/// One thing that answers requests: an index into the deployment's static files or into its functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Index into the deployment's static files.
    Static(u32),
    /// Index into the deployment's functions.
    Function(u32),
}

/// What a lookup found: the output, and the path under which the deployment knows it (`/about/index.html` for `/about`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'o> {
    /// The output.
    pub output: Output,
    /// Its output path, decoded, with a leading `/`.
    pub path: &'o str,
}

/// One line of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListEntry {
    /// The file's or the folder's name, without a slash.
    pub name: String,
    /// Whether it is a folder.
    pub is_dir: bool,
    /// Whether it is a function, shown with a λ.
    pub is_function: bool,
}

/// URL path to output. Immutable; made by [`OutputsBuilder`].
#[derive(Debug, Default)]
pub struct Outputs {
    /// Every path that answers, without the outer slashes, and the place of its entry.
    by_path: HashMap<Box<str>, u32>,
    /// Folder (without the outer slashes) to the entry that stands for it.
    indexes: HashMap<Box<str>, u32>,
    /// Folder to its lines, sorted: folders first, then by name.
    folders: BTreeMap<Box<str>, Vec<ListEntry>>,
    entries: Vec<(Output, Box<str>)>,
}

impl Outputs {
    /// The output for a raw (percent-encoded) path: the exact name, then the index of the folder. One trailing slash is ignored.
    pub fn find(&self, raw_path: &str) -> Option<Found<'_>> {
        let name = decode(raw_path)?;
        let place = self.by_path.get(name.as_str()).or_else(|| self.indexes.get(name.as_str()))?;
        let (output, path) = self.entries.get(*place as usize)?;
        Some(Found { output: *output, path })
    }

    /// The folder that a raw path names, decoded, with both slashes (`/docs/`), if anything is listed in it.
    pub fn directory(&self, raw_path: &str) -> Option<String> {
        let name = decode(raw_path)?;
        let known = self.folders.contains_key(name.as_str());
        known.then(|| if name.is_empty() { "/".to_owned() } else { format!("/{name}/") })
    }

    /// The lines of a folder, folders first. `dir` is decoded already (as [`Outputs::directory`] gives it); its slashes do not matter.
    pub fn list(&self, dir: &str) -> Option<Vec<ListEntry>> {
        self.folders.get(trim(dir)).cloned()
    }

    /// How many outputs there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing can be served.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Gathers outputs. The paths given to it are decoded.
#[derive(Debug, Default)]
pub struct OutputsBuilder {
    by_path: HashMap<Box<str>, u32>,
    shown: Vec<(Box<str>, bool)>,
    entries: Vec<(Output, Box<str>)>,
}

impl OutputsBuilder {
    /// Nothing yet.
    pub fn new() -> OutputsBuilder {
        OutputsBuilder::default()
    }

    /// Adds an output that is listed under its own path. A path that is taken keeps its first output, which is returned.
    pub fn add(&mut self, path: &str, output: Output) -> Option<Output> {
        self.add_shown(path, output, path)
    }

    /// Adds an output that is listed under another path: the function `/api/date` as `/api/date.js`.
    pub fn add_shown(&mut self, path: &str, output: Output, shown: &str) -> Option<Output> {
        let name = trim(path);
        if let Some(place) = self.by_path.get(name) {
            return self.entries.get(*place as usize).map(|(output, _)| *output);
        }
        self.by_path.insert(name.into(), self.entries.len() as u32);
        self.entries.push((output, format!("/{name}").into()));
        self.shown.push((trim(shown).into(), matches!(output, Output::Function(_))));
        None
    }

    /// Lets a second path answer with the output of a first one. Does nothing if `of` is unknown or `alias` is taken.
    pub fn alias(&mut self, alias: &str, of: &str) {
        if let Some(place) = self.by_path.get(trim(of)).copied() {
            self.by_path.entry(trim(alias).into()).or_insert(place);
        }
    }

    /// The finished table.
    pub fn build(self) -> Outputs {
        let OutputsBuilder { by_path, shown, entries } = self;
        let mut indexes: HashMap<Box<str>, u32> = HashMap::new();
        for (place, (output, path)) in entries.iter().enumerate() {
            let (folder, file) = split_last(trim(path));
            let Some(rank) = index_rank(file, *output) else {
                continue;
            };
            let better = indexes.get(folder).is_none_or(|held| {
                entries.get(*held as usize).is_none_or(|(output, path)| {
                    index_rank(split_last(trim(path)).1, *output).is_none_or(|held| rank < held)
                })
            });
            if better {
                indexes.insert(folder.into(), place as u32);
            }
        }
        let mut folders: BTreeMap<Box<str>, Vec<ListEntry>> = BTreeMap::new();
        for (path, is_function) in &shown {
            let (folder, file) = split_last(path);
            if !file.is_empty() {
                folders.entry(folder.into()).or_default().push(ListEntry {
                    name: file.to_owned(),
                    is_dir: false,
                    is_function: *is_function,
                });
            }
            list_parents(&mut folders, folder);
        }
        for lines in folders.values_mut() {
            lines.sort_by(|one, other| other.is_dir.cmp(&one.is_dir).then_with(|| one.name.cmp(&other.name)));
            lines.dedup();
        }
        Outputs { by_path, indexes, folders, entries }
    }
}

/// Lists a folder in its parent, and that one in its own, up to the root.
fn list_parents(folders: &mut BTreeMap<Box<str>, Vec<ListEntry>>, folder: &str) {
    let mut folder = folder;
    while !folder.is_empty() {
        let (parent, name) = split_last(folder);
        let line = ListEntry { name: name.to_owned(), is_dir: true, is_function: false };
        let lines = folders.entry(parent.into()).or_default();
        if lines.contains(&line) {
            return;
        }
        lines.push(line);
        folder = parent;
    }
}

/// How good a file is as the index of its folder (lower is better), if it is one: `index.html`, then the shorter name.
///
/// A function stands for its folder only as plain `index`: a build's `index.rsc` is a function too, and it is not the page.
fn index_rank(file: &str, output: Output) -> Option<(bool, usize, &str)> {
    let rest = file.strip_prefix("index")?;
    let named = match output {
        Output::Function(_) => rest.is_empty(),
        Output::Static(_) => rest.is_empty() || (rest.starts_with('.') && !rest.ends_with('.') && !rest.contains("..")),
    };
    named.then_some((file != "index.html", file.len(), file))
}

/// A raw path as the table spells it: decoded once, without the outer slashes. `None` when it cannot name an output.
fn decode(raw_path: &str) -> Option<String> {
    let inner = raw_path.strip_prefix('/')?;
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (high, low) = (hex(*rest.first()?)?, hex(*rest.get(1)?)?);
        rest = rest.get(2..)?;
        let decoded = high * 16 + low;
        // An encoded slash is a character of a name and no separator; no output has one in its name.
        if decoded == b'/' {
            return None;
        }
        bytes.push(decoded);
    }
    let name = String::from_utf8(bytes).ok()?;
    if name.contains(['\0', '\\']) {
        return None;
    }
    let odd = !inner.is_empty() && name.split('/').any(|segment| matches!(segment, "" | "." | ".."));
    // `//` is not the root: after the outer slashes nothing is left of it, as nothing is left of `/`.
    (!odd && raw_path != "//").then_some(name)
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|value| value as u8)
}

fn trim(path: &str) -> &str {
    path.trim_matches('/')
}

fn split_last(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs() -> Outputs {
        let mut outputs = OutputsBuilder::new();
        let paths = [
            "/index.htm",
            "/index.html",
            "/style.css",
            "/docs/index.md",
            "/docs/index.json5",
            "/docs/index..x",
            "/docs/a b.txt",
            "/empty/x/deep.txt",
            "/100%.txt",
            "/é.txt",
            "/odd/index.",
            "/rsc/page.txt",
        ];
        for (place, path) in paths.iter().enumerate() {
            assert_eq!(outputs.add(path, Output::Static(place as u32)), None);
        }
        assert_eq!(outputs.add_shown("/api/date", Output::Function(0), "/api/date.js"), None);
        outputs.add_shown("/api", Output::Function(1), "/api/index.js");
        outputs.add("/blog/index", Output::Function(2));
        outputs.add("/rsc/index.rsc", Output::Function(3));
        outputs.alias("/api/date.js", "/api/date");
        outputs.alias("/nothing", "/unknown");
        outputs.build()
    }

    fn check(raw_path: &str, expected: Option<&str>) {
        assert_eq!(outputs().find(raw_path).map(|found| found.path.to_owned()).as_deref(), expected, "{raw_path}");
    }

    #[test]
    fn paths_with_two_readings_find_nothing() {
        for path in [
            "",
            "style.css",
            "//",
            "///",
            "//style.css",
            "/style.css//",
            "/docs//index.md",
            "/../style.css",
            "/docs/../style.css",
            "/%2e%2e/style.css",
            "/./style.css",
            "/docs%2findex.md",
            "/docs%2Findex.md",
            "/%2f",
            "/style.css%00",
            "/style.css%",
            "/style.css%2",
            "/style.css%zz",
            "/%ff",
            "/docs\\index.md",
            "/docs%5cindex.md",
            "/nothing",
            "/unknown",
            "/STYLE.css",
            "/style.css?x",
            "/%252e%252e/style.css",
            "*",
        ] {
            check(path, None);
        }
    }

    #[test]
    fn exact_names_then_indexes_answer() {
        check("/", Some("/index.html"));
        check("/index.htm", Some("/index.htm"));
        check("/style.css", Some("/style.css"));
        check("/style.css/", Some("/style.css"));
        check("/%73tyle.css", Some("/style.css"));
        check("/docs", Some("/docs/index.md"));
        check("/docs/", Some("/docs/index.md"));
        check("/docs/a%20b.txt", Some("/docs/a b.txt"));
        check("/100%25.txt", Some("/100%.txt"));
        check("/%C3%A9.txt", Some("/é.txt"));
        check("/api", Some("/api"));
        check("/api/date", Some("/api/date"));
        check("/api/date.js", Some("/api/date"));
        check("/blog", Some("/blog/index"));
        check("/rsc", None);
        check("/odd", None);
        check("/empty", None);
    }

    #[test]
    fn first_output_of_a_path_stays() {
        let mut outputs = OutputsBuilder::new();
        outputs.add("/a", Output::Static(1));
        assert_eq!(outputs.add("/a/", Output::Function(2)), Some(Output::Static(1)));
        assert_eq!(outputs.build().find("/a").map(|found| found.output), Some(Output::Static(1)));
    }

    #[test]
    fn listing_shows_folders_first_and_functions_by_file_name() {
        let outputs = outputs();
        let names = |dir: &str| -> Option<Vec<String>> {
            let mark = |line: ListEntry| {
                format!(
                    "{}{}{}",
                    line.name,
                    if line.is_dir { "/" } else { "" },
                    if line.is_function { " λ" } else { "" }
                )
            };
            outputs.list(dir).map(|lines| lines.into_iter().map(mark).collect())
        };
        assert_eq!(names("/api/"), Some(vec!["date.js λ".into(), "index.js λ".into()]));
        assert_eq!(names("/empty"), Some(vec!["x/".into()]));
        assert_eq!(names("/nope"), None);
        let root = names("/").unwrap_or_default();
        assert_eq!(
            root.iter().take(6).map(String::as_str).collect::<Vec<_>>(),
            ["api/", "blog/", "docs/", "empty/", "odd/", "rsc/"]
        );
        assert_eq!(outputs.directory("/empty"), Some("/empty/".to_owned()));
        assert_eq!(outputs.directory("/"), Some("/".to_owned()));
        assert_eq!(outputs.directory("/style.css"), None);
        assert_eq!(outputs.directory("/empty/../api"), None);
        assert!(OutputsBuilder::new().build().list("/").is_none());
    }
}
