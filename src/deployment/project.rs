//! Reads a project as it lies in a folder: `now.json` or `vercel.json`, static files, and the functions under `api/`.
//!
//! Pure: it is given the listing and the configuration's text, and gives a [`Project`] or every mistake at once. Nothing is built here. The routes
//! that the platform's build would have written are made here instead, in its order, so that a project and a build output run on the same router.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde_json::{Map, Value};

use crate::deployment::globs::Glob;
use crate::routing::{ConditionKind, ConditionSpec, Output, Outputs, OutputsBuilder, RouteSpec, Router, ValueSpec};

/// The two names of the configuration, the newer one last.
pub const CONFIG_FILES: [&str; 2] = ["now.json", "vercel.json"];

const ROUTES_MAX: usize = 2048;
const STRING_BYTES_MAX: usize = 4096;
const CONDITIONS_MAX: usize = 16;
const FUNCTION_GLOBS_MAX: usize = 50;
const ALIASES_MAX: usize = 64;
const ENV_BYTES_MAX: usize = 64 << 10;
const NAME_BYTES_MAX: usize = 52;

/// Endings of files that can be functions, the ones that need no compiler first.
const FUNCTION_ENDINGS: [&str; 6] = ["js", "mjs", "cjs", "ts", "mts", "cts"];
/// Endings of functions in languages that have no runtime here.
const FOREIGN_ENDINGS: [&str; 4] = ["go", "py", "rb", "rs"];
/// Files of the root that belong to the project and not to its site.
const PRIVATE_FILES: [&str; 10] = [
    "now.json",
    "vercel.json",
    "package.json",
    "package-lock.json",
    "npm-shrinkwrap.json",
    "yarn.lock",
    "pnpm-lock.yaml",
    "bun.lock",
    "bun.lockb",
    "tsconfig.json",
];
/// Configuration files of frameworks whose projects have to be built first.
const FRAMEWORK_FILES: [&str; 7] = [
    "next.config.",
    "astro.config.",
    "svelte.config.",
    "nuxt.config.",
    "remix.config.",
    "react-router.config.",
    "gatsby-config.",
];

/// A file of the project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceFile<'a> {
    /// Path from the project's folder, with `/`.
    pub path: &'a str,
    /// Its size.
    pub bytes: u64,
}

/// What a project is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Project {
    /// `name`.
    pub name: Option<String>,
    /// `alias`: hosts, lower-cased.
    pub aliases: Vec<String>,
    /// All routes, those of the configuration and those that the files bring.
    pub routes: Vec<RouteSpec>,
    /// The static files, by URL.
    pub statics: Vec<StaticSpec>,
    /// The functions, by output path.
    pub functions: Vec<FunctionSpec>,
    /// `regions`; none: the node's own. `all` stays as it is.
    pub regions: Vec<String>,
    /// `env`.
    pub env: Vec<(String, String)>,
    /// Whether a folder without an index shows what is in it.
    pub listing: bool,
    /// What was read and has no effect here.
    pub warnings: Vec<String>,
}

/// A static file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticSpec {
    /// Its path in URLs, decoded, with the leading `/`.
    pub url: String,
    /// Path from the project's folder.
    pub file: String,
    /// The content type, where the URL does not tell it.
    pub content_type: Option<String>,
}

/// A function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionSpec {
    /// Its output path, such as `/api/date` or `/api/users/[id]`.
    pub path: String,
    /// Its file, such as `api/date.js`.
    pub entry: String,
    /// `memory`, in MB.
    pub memory_mb: Option<u64>,
    /// `maxDuration`, in seconds.
    pub max_duration_s: Option<u64>,
    /// `regions` of the function; none: those of the project.
    pub regions: Vec<String>,
    /// Globs of files that it needs besides what it imports.
    pub include_files: Vec<String>,
    /// Globs of files that it does without.
    pub exclude_files: Vec<String>,
    /// What runs it.
    pub runtime: Runtime,
}

/// What runs a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Runtime {
    /// Node.js.
    #[default]
    Node,
}

/// Something wrong with a project.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProjectMistake {
    /// The file where it is.
    pub file: String,
    /// The place in it, such as `routes[3].src`; empty for the file itself.
    pub key: String,
    /// What was found and what would be right.
    pub reason: String,
}

impl fmt::Display for ProjectMistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ProjectMistake { file, key, reason } = self;
        if key.is_empty() {
            write!(formatter, "{file}: {reason}")
        } else {
            write!(formatter, "{file}: {key}: {reason}")
        }
    }
}

/// What to do about a key that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownKeys {
    /// It is a mistake: the text was written by hand, for us.
    Refused,
    /// It is left alone: the text comes from a build of another age.
    Ignored,
}

/// Reads a project from its listing and its configuration, a file name and the text.
pub fn read(files: &[SourceFile<'_>], config: Option<(&str, &str)>) -> Result<Project, Vec<ProjectMistake>> {
    let (name, text) = config.unwrap_or((CONFIG_FILES[1], "{}"));
    let mut notes = Notes { file: name.to_owned(), mistakes: Vec::new(), warnings: Vec::new() };
    if CONFIG_FILES.iter().all(|name| files.iter().any(|file| file.path == *name)) {
        notes.mistake("", "there is a now.json as well as a vercel.json; keep one of them");
    }
    let config = Config::read(text, &mut notes);
    let functions = find_functions(files, &config, &mut notes);
    let statics = find_statics(files, &config, &functions, &mut notes);
    let routes = all_routes(&config, &functions, &statics, &mut notes);
    if notes.mistakes.is_empty() {
        Ok(Project {
            name: config.name,
            aliases: config.aliases,
            routes,
            statics,
            functions,
            regions: config.regions,
            env: config.env,
            listing: config.listing,
            warnings: notes.warnings,
        })
    } else {
        Err(notes.mistakes)
    }
}

/// The outputs of a project; the places in it are those in `statics` and `functions`.
pub fn outputs(project: &Project) -> Outputs {
    let mut outputs = OutputsBuilder::new();
    for (place, file) in project.statics.iter().enumerate() {
        let folder = file.url.rsplit_once('/').map_or("", |(folder, _)| folder);
        let shown = format!("{folder}/{}", file_name(&file.file));
        outputs.add_shown(&file.url, Output::Static(place as u32), &shown);
    }
    for (place, function) in project.functions.iter().enumerate() {
        outputs.add_shown(&function.path, Output::Function(place as u32), &format!("/{}", function.entry));
    }
    for function in &project.functions {
        // `/api/date.js` and `/api/index` run the function as well. Where cleanUrls redirects them, its routes come first.
        outputs.alias(&function.entry, &function.path);
        outputs.alias(without_ending(&function.entry), &function.path);
    }
    outputs.build()
}

/// What is gathered on the way.
struct Notes {
    file: String,
    mistakes: Vec<ProjectMistake>,
    warnings: Vec<String>,
}

impl Notes {
    fn mistake(&mut self, key: &str, reason: impl Into<String>) {
        let file = self.file.clone();
        self.mistake_in(file, key, reason);
    }

    fn mistake_in(&mut self, file: String, key: &str, reason: impl Into<String>) {
        self.mistakes.push(ProjectMistake { file, key: key.to_owned(), reason: reason.into() });
    }

    fn warning(&mut self, warning: String) {
        self.warnings.push(format!("{}: {warning}", self.file));
    }
}

// ---- the configuration

/// The configuration as it was meant.
#[derive(Default)]
struct Config {
    name: Option<String>,
    aliases: Vec<String>,
    routes: Vec<(RouteSpec, String)>,
    redirects: Vec<(RouteSpec, String)>,
    headers: Vec<(RouteSpec, String)>,
    rewrites: Vec<(RouteSpec, String)>,
    clean_urls: bool,
    trailing_slash: Option<bool>,
    functions: Vec<FunctionRule>,
    regions: Vec<String>,
    env: Vec<(String, String)>,
    output_directory: Option<String>,
    listing: bool,
}

/// An entry of `functions`.
struct FunctionRule {
    key: String,
    glob: Glob,
    memory_mb: Option<u64>,
    max_duration_s: Option<u64>,
    regions: Vec<String>,
    include_files: Vec<String>,
    exclude_files: Vec<String>,
}

const KNOWN_KEYS: [&str; 16] = [
    "version",
    "name",
    "alias",
    "routes",
    "redirects",
    "rewrites",
    "headers",
    "cleanUrls",
    "trailingSlash",
    "functions",
    "regions",
    "env",
    "directoryListing",
    "outputDirectory",
    "builds",
    "$schema",
];

/// Keys that the platform knows and that have nothing to do here.
const IDLE_KEYS: [&str; 19] = [
    "build",
    "public",
    "github",
    "gitlab",
    "git",
    "scope",
    "framework",
    "buildCommand",
    "installCommand",
    "devCommand",
    "ignoreCommand",
    "rootDirectory",
    "crons",
    "images",
    "fluid",
    "bunVersion",
    "functionFailoverRegions",
    "passiveRegions",
    "relatedProjects",
];

impl Config {
    fn read(text: &str, notes: &mut Notes) -> Config {
        let mut config = Config { listing: true, ..Config::default() };
        let value: Value = match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
            Ok(value) => value,
            Err(error) => {
                let what = error.to_string();
                let what = what.split(" at line ").next().unwrap_or_default();
                notes.mistake("", format!("line {} column {}: {what}", error.line(), error.column()));
                return config;
            }
        };
        let Value::Object(keys) = value else {
            notes.mistake("", "is not an object; write {}");
            return config;
        };
        for (key, value) in &keys {
            config.read_key(key, value, notes);
        }
        if keys.contains_key("routes") {
            for key in ["cleanUrls", "trailingSlash", "redirects", "rewrites", "headers"] {
                if keys.contains_key(key) {
                    notes.mistake(key, "may not stand beside `routes`; write it as a route, or `routes` as redirects, rewrites and headers");
                }
            }
        }
        config
    }

    fn read_key(&mut self, key: &str, value: &Value, notes: &mut Notes) {
        match key {
            "version" if value.as_u64() == Some(2) => {}
            "version" => notes.mistake(key, format!("{value} is not a version that runs here; write 2")),
            "name" => self.name = read_name(value, notes),
            "alias" => self.aliases = read_aliases(value, notes),
            "routes" => self.routes = read_user_routes(value, notes),
            "redirects" => self.redirects = read_list(key, value, &["source", "destination", "permanent", "statusCode", "has", "missing"], notes, read_redirect),
            "rewrites" => self.rewrites = read_list(key, value, &["source", "destination", "statusCode", "has", "missing"], notes, read_rewrite),
            "headers" => self.headers = read_list(key, value, &["source", "headers", "has", "missing"], notes, read_headers),
            "cleanUrls" => self.clean_urls = read_bool(key, value, notes).unwrap_or(false),
            "trailingSlash" => self.trailing_slash = read_bool(key, value, notes),
            "functions" => self.functions = read_functions(value, notes),
            "regions" => self.regions = read_regions(key, value, notes),
            "env" => self.env = read_env(value, notes),
            "directoryListing" => self.listing = read_bool(key, value, notes).unwrap_or(true),
            "outputDirectory" => self.output_directory = read_folder(key, value, notes),
            "builds" => notes.mistake(key, "nothing is built here; put functions under api/ and static files under public/, or run `vercel build` and deploy its .vercel/output"),
            "$schema" => {}
            _ if IDLE_KEYS.contains(&key) => notes.warning(format!("{key}: has no effect here")),
            _ => notes.mistake(key, unknown(key, KNOWN_KEYS.iter().chain(&IDLE_KEYS).copied())),
        }
    }
}

fn read_bool(key: &str, value: &Value, notes: &mut Notes) -> Option<bool> {
    let found = value.as_bool();
    if found.is_none() {
        notes.mistake(key, format!("{} is not true or false", shorten(value)));
    }
    found
}

fn read_string<'v>(key: &str, value: &'v Value, notes: &mut Notes) -> Option<&'v str> {
    match value.as_str() {
        None => notes.mistake(key, format!("{} is not a string", shorten(value))),
        Some(text) if text.len() > STRING_BYTES_MAX => {
            notes.mistake(key, format!("is {} bytes long; {STRING_BYTES_MAX} is the limit", text.len()))
        }
        Some(text) => return Some(text),
    }
    None
}

/// A string, or an array of strings.
fn read_strings<'v>(key: &str, value: &'v Value, notes: &mut Notes) -> Vec<&'v str> {
    match value {
        Value::Array(items) => items
            .iter()
            .enumerate()
            .filter_map(|(place, item)| read_string(&format!("{key}[{place}]"), item, notes))
            .collect(),
        Value::String(_) => read_string(key, value, notes).into_iter().collect(),
        _ => {
            notes.mistake(key, format!("{} is not a string or an array of strings", shorten(value)));
            Vec::new()
        }
    }
}

fn read_number(key: &str, value: &Value, low: u64, high: u64, notes: &mut Notes) -> Option<u64> {
    let found = value.as_u64().filter(|number| (low..=high).contains(number));
    if found.is_none() {
        notes.mistake(key, format!("{} is not a whole number from {low} to {high}", shorten(value)));
    }
    found
}

fn read_name(value: &Value, notes: &mut Notes) -> Option<String> {
    let name = read_string("name", value, notes)?;
    let right = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !right {
        notes.mistake(
            "name",
            format!("{} is not a name; write at most {NAME_BYTES_MAX} of a-z, 0-9 and, inside, -", shorten(value)),
        );
    }
    right.then(|| name.to_owned())
}

fn read_aliases(value: &Value, notes: &mut Notes) -> Vec<String> {
    let hosts = read_strings("alias", value, notes);
    if hosts.len() > ALIASES_MAX {
        notes.mistake("alias", format!("{} hosts are more than {ALIASES_MAX}", hosts.len()));
    }
    let mut aliases = Vec::new();
    for host in hosts {
        let host = host.to_ascii_lowercase();
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if host.len() <= 253 && host.split('.').all(label) {
            aliases.push(host);
        } else {
            notes.mistake("alias", format!("{host:?} is not a host name"));
        }
    }
    aliases
}

fn read_regions(key: &str, value: &Value, notes: &mut Notes) -> Vec<String> {
    let mut regions = Vec::new();
    for region in read_strings(key, value, notes) {
        let right = (1..=32).contains(&region.len())
            && region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if right {
            regions.push(region.to_owned());
        } else {
            notes.mistake(key, format!("{region:?} is not a region; write a code such as \"sfo1\", or \"all\""));
        }
    }
    regions
}

fn read_env(value: &Value, notes: &mut Notes) -> Vec<(String, String)> {
    let Some(values) = value.as_object() else {
        notes.mistake("env", format!("{} is not an object of strings", shorten(value)));
        return Vec::new();
    };
    let mut env = Vec::new();
    for (name, value) in values {
        let key = format!("env.{name}");
        let Some(text) = value.as_str() else {
            // The value may be a secret, so that it is not told.
            notes.mistake(&key, "is not a string");
            continue;
        };
        let right = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && !name.is_empty();
        if !right {
            notes.mistake(&key, "is not a name of a variable; write letters, digits and _");
        } else if text.starts_with('@') {
            notes.mistake(&key, "names a secret of the platform, and there is no store of secrets here; give the value with `perigee deploy`'s environment or write it out");
        } else if text.contains('\0') {
            notes.mistake(&key, "has a NUL in its value");
        } else {
            env.push((name.clone(), text.to_owned()));
        }
    }
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > ENV_BYTES_MAX {
        notes.mistake("env", format!("is {bytes} bytes long; {ENV_BYTES_MAX} is the limit"));
    }
    env
}

fn read_folder(key: &str, value: &Value, notes: &mut Notes) -> Option<String> {
    let folder = read_string(key, value, notes)?.trim_start_matches("./").trim_end_matches('/');
    if folder.is_empty() || folder == "." {
        return Some(String::new());
    }
    if folder.starts_with('/')
        || folder.contains('\\')
        || folder.split('/').any(|segment| segment.is_empty() || segment == "..")
    {
        notes.mistake(key, format!("{} is not a folder of the project", shorten(value)));
        return None;
    }
    Some(folder.to_owned())
}

fn read_functions(value: &Value, notes: &mut Notes) -> Vec<FunctionRule> {
    const KEYS: [&str; 6] = ["runtime", "memory", "maxDuration", "regions", "includeFiles", "excludeFiles"];
    const IDLE: [&str; 5] = [
        "supportsCancellation",
        "supportsResponseStreaming",
        "architecture",
        "experimentalTriggers",
        "functionFailoverRegions",
    ];
    let Some(rules) = value.as_object() else {
        notes.mistake("functions", format!("{} is not an object of globs", shorten(value)));
        return Vec::new();
    };
    if rules.len() > FUNCTION_GLOBS_MAX {
        notes.mistake("functions", format!("{} globs are more than {FUNCTION_GLOBS_MAX}", rules.len()));
    }
    let mut read = Vec::new();
    for (source, value) in rules {
        let key = format!("functions[{source:?}]");
        let Some(settings) = value.as_object() else {
            notes.mistake(&key, format!("{} is not an object", shorten(value)));
            continue;
        };
        let glob = match Glob::compile(source) {
            Ok(glob) => glob,
            Err(reason) => {
                notes.mistake(&key, reason);
                continue;
            }
        };
        let mut rule = FunctionRule {
            key: key.clone(),
            glob,
            memory_mb: None,
            max_duration_s: None,
            regions: Vec::new(),
            include_files: Vec::new(),
            exclude_files: Vec::new(),
        };
        for (name, value) in settings {
            let key = format!("{key}.{name}");
            match name.as_str() {
                "runtime" => read_runtime(&key, value, notes),
                "memory" => rule.memory_mb = read_number(&key, value, 128, 10240, notes),
                "maxDuration" => rule.max_duration_s = read_number(&key, value, 1, 1800, notes),
                "regions" => rule.regions = read_regions(&key, value, notes),
                "includeFiles" => rule.include_files = read_globs(&key, value, notes),
                "excludeFiles" => rule.exclude_files = read_globs(&key, value, notes),
                name if IDLE.contains(&name) => notes.warning(format!("{key}: has no effect here")),
                name => notes.mistake(&key, unknown(name, KEYS.iter().chain(&IDLE).copied())),
            }
        }
        read.push(rule);
    }
    read
}

fn read_runtime(key: &str, value: &Value, notes: &mut Notes) {
    let Some(runtime) = read_string(key, value, notes) else {
        return;
    };
    if !["@vercel/node", "@now/node", "now-node", "nodejs"].iter().any(|node| runtime.starts_with(node)) {
        notes.mistake(
            key,
            format!("{runtime:?} does not run here; only Node functions do, leave the key out or write \"nodejs\""),
        );
    }
}

fn read_globs(key: &str, value: &Value, notes: &mut Notes) -> Vec<String> {
    let mut globs = Vec::new();
    for glob in read_strings(key, value, notes) {
        match Glob::compile(glob) {
            Ok(_) => globs.push(glob.to_owned()),
            Err(reason) => notes.mistake(key, reason),
        }
    }
    globs
}

/// What to say about a key that nobody knows.
fn unknown<'k>(key: &str, known: impl Iterator<Item = &'k str>) -> String {
    let nearest = known.map(|other| (distance(key, other), other)).min();
    match nearest {
        Some((steps, other)) if steps <= 1 + other.len() / 4 => {
            format!("is not a known key; did you mean `{other}`?")
        }
        _ => "is not a known key".to_owned(),
    }
}

/// How many letters to change, add or drop, without regard to case.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    // A key of the configuration is not bounded, but nobody misspells more than this.
    for (line, letter) in one.to_lowercase().chars().take(64).enumerate() {
        let mut left = line + 1;
        let mut next = vec![left];
        for (pair, theirs) in row.windows(2).zip(&other) {
            if let [diagonal, above] = pair {
                left = (diagonal + usize::from(letter != *theirs)).min(above + 1).min(left + 1);
                next.push(left);
            }
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}

fn shorten(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { format!("{}…", text.chars().take(59).collect::<String>()) }
}

// ---- routes as they are written

fn read_user_routes(value: &Value, notes: &mut Notes) -> Vec<(RouteSpec, String)> {
    let (specs, mistakes) = read_routes(value, UnknownKeys::Refused);
    for (key, reason) in mistakes {
        notes.mistake(&key, reason);
    }
    if specs.len() > ROUTES_MAX {
        notes.mistake("routes", format!("{} routes are more than {ROUTES_MAX}", specs.len()));
    }
    specs.into_iter().enumerate().map(|(place, spec)| (spec, format!("routes[{place}]"))).collect()
}

/// Reads a list of route objects, of a project's `routes` or of a build output's, with what is wrong with it: key paths and reasons.
///
/// A broken route still takes its place in the list, so that the places in later mistakes are right.
pub fn read_routes(value: &Value, unknown_keys: UnknownKeys) -> (Vec<RouteSpec>, Vec<(String, String)>) {
    let mut notes = Notes { file: String::new(), mistakes: Vec::new(), warnings: Vec::new() };
    let mut specs = Vec::new();
    match value.as_array() {
        Some(routes) => {
            for (place, route) in routes.iter().enumerate() {
                specs.push(read_route(&format!("routes[{place}]"), route, unknown_keys, &mut notes));
            }
        }
        None if value.is_null() => {}
        None => notes.mistake("routes", format!("{} is not an array", shorten(value))),
    }
    (specs, notes.mistakes.into_iter().map(|mistake| (mistake.key, mistake.reason)).collect())
}

fn read_route(at: &str, value: &Value, unknown_keys: UnknownKeys, notes: &mut Notes) -> RouteSpec {
    const KEYS: [&str; 17] = [
        "src",
        "source",
        "dest",
        "destination",
        "headers",
        "status",
        "statusCode",
        "methods",
        "continue",
        "check",
        "handle",
        "has",
        "missing",
        "caseSensitive",
        "important",
        "override",
        "respectOriginCacheControl",
    ];
    const BUILD_KEYS: [&str; 7] =
        ["transforms", "middlewarePath", "middlewareRawSrc", "middleware", "locale", "env", "mitigate"];
    let mut spec = RouteSpec::default();
    let Some(keys) = value.as_object() else {
        notes.mistake(at, format!("{} is not an object", shorten(value)));
        return spec;
    };
    for (one, other) in [("src", "source"), ("dest", "destination"), ("status", "statusCode")] {
        if keys.contains_key(one) && keys.contains_key(other) {
            notes.mistake(&format!("{at}.{other}"), format!("is the same as `{one}`; write one of them"));
        }
    }
    for (name, value) in keys {
        let key = format!("{at}.{name}");
        let mut text = || read_string(&key, value, notes).map(str::to_owned);
        match name.as_str() {
            "src" | "source" => spec.src = text(),
            "dest" | "destination" => spec.dest = text(),
            "handle" => spec.handle = text(),
            "status" | "statusCode" => {
                spec.status = read_number(&key, value, 100, 999, notes).map(|status| status as u16)
            }
            "headers" => spec.headers = read_header_object(&key, value, notes),
            "methods" => spec.methods = read_strings(&key, value, notes).into_iter().map(str::to_owned).collect(),
            "continue" => spec.continue_ = read_bool(&key, value, notes).unwrap_or(false),
            "check" => spec.check = read_bool(&key, value, notes).unwrap_or(false),
            "caseSensitive" => spec.case_sensitive = read_bool(&key, value, notes).unwrap_or(false),
            "important" => spec.important = read_bool(&key, value, notes).unwrap_or(false),
            "has" => spec.has = read_conditions(&key, value, notes),
            "missing" => spec.missing = read_conditions(&key, value, notes),
            "override" | "respectOriginCacheControl" => {}
            _ if unknown_keys == UnknownKeys::Ignored => {}
            name if BUILD_KEYS.contains(&name) => {
                notes.mistake(&key, "is only for routes that a framework's build writes")
            }
            name => notes.mistake(&key, unknown(name, KEYS.iter().copied())),
        }
    }
    spec
}

fn read_header_object(key: &str, value: &Value, notes: &mut Notes) -> Vec<(String, String)> {
    let Some(headers) = value.as_object() else {
        notes.mistake(key, format!("{} is not an object of strings", shorten(value)));
        return Vec::new();
    };
    let mut read = Vec::new();
    for (name, value) in headers {
        let key = format!("{key}[{name:?}]");
        if let Some(value) = read_string(&key, value, notes)
            && check_header(&key, name, value, notes)
        {
            read.push((name.clone(), value.to_owned()));
        }
    }
    read
}

fn check_header(key: &str, name: &str, value: &str, notes: &mut Notes) -> bool {
    // `$` is a letter of header names, so that a template of a name passes as well.
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        notes.mistake(key, format!("{name:?} is not the name of a header"));
        return false;
    }
    if http::HeaderValue::from_str(value).is_err() {
        notes.mistake(key, "is not the value of a header: it may hold visible ASCII, spaces and tabs");
        return false;
    }
    true
}

fn read_conditions(key: &str, value: &Value, notes: &mut Notes) -> Vec<ConditionSpec> {
    let Some(items) = value.as_array() else {
        notes.mistake(key, format!("{} is not an array", shorten(value)));
        return Vec::new();
    };
    if items.len() > CONDITIONS_MAX {
        notes.mistake(key, format!("{} conditions are more than {CONDITIONS_MAX}", items.len()));
    }
    items
        .iter()
        .enumerate()
        .filter_map(|(place, item)| read_condition(&format!("{key}[{place}]"), item, notes))
        .collect()
}

fn read_condition(at: &str, value: &Value, notes: &mut Notes) -> Option<ConditionSpec> {
    let kind = match value.get("type").and_then(Value::as_str) {
        Some("host") => ConditionKind::Host,
        Some("header") => ConditionKind::Header,
        Some("cookie") => ConditionKind::Cookie,
        Some("query") => ConditionKind::Query,
        _ => {
            notes.mistake(
                &format!("{at}.type"),
                format!(
                    "{} is not host, header, cookie or query",
                    value.get("type").map_or_else(|| "nothing".into(), shorten)
                ),
            );
            return None;
        }
    };
    let key = value.get("key").and_then(Value::as_str).map(str::to_owned);
    let value = match value.get("value") {
        None | Some(Value::Null) => None,
        Some(Value::String(source)) => Some(ValueSpec::Regex(source.clone())),
        Some(Value::Object(tests)) => {
            Some(ValueSpec::Tests(tests.iter().map(|(name, operand)| (name.clone(), operands(operand))).collect()))
        }
        Some(other) => {
            notes.mistake(&format!("{at}.value"), format!("{} is not a string or an object", shorten(other)));
            return None;
        }
    };
    Some(ConditionSpec { kind, key, value })
}

fn operands(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(operands).collect(),
        Value::String(text) => vec![text.clone()],
        other => vec![other.to_string()],
    }
}

// ---- redirects, rewrites, headers

type Read = fn(&str, &Map<String, Value>, &Source, &mut Notes) -> Option<RouteSpec>;

/// What an item of redirects, rewrites or headers matches.
struct Source {
    pattern: PathPattern,
    /// Names that `has` captures, after those of the pattern.
    has_names: Vec<String>,
}

/// Reads a list of redirects, rewrites or headers: what they have in common, and with `read` the rest.
fn read_list(list: &str, value: &Value, known: &[&str], notes: &mut Notes, read: Read) -> Vec<(RouteSpec, String)> {
    let Some(items) = value.as_array() else {
        notes.mistake(list, format!("{} is not an array", shorten(value)));
        return Vec::new();
    };
    if items.len() > ROUTES_MAX {
        notes.mistake(list, format!("{} items are more than {ROUTES_MAX}", items.len()));
    }
    let mut specs = Vec::new();
    for (place, item) in items.iter().enumerate() {
        let at = format!("{list}[{place}]");
        let Some(keys) = item.as_object() else {
            notes.mistake(&at, format!("{} is not an object", shorten(item)));
            continue;
        };
        for key in keys.keys().filter(|key| !known.contains(&key.as_str())) {
            notes.mistake(&format!("{at}.{key}"), unknown(key, known.iter().copied()));
        }
        let conditions = |name: &str, notes: &mut Notes| {
            keys.get(name).map(|value| read_conditions(&format!("{at}.{name}"), value, notes)).unwrap_or_default()
        };
        let (has, missing) = (conditions("has", notes), conditions("missing", notes));
        let Some(source) = read_source(&at, keys, &has, notes) else {
            continue;
        };
        let Some(spec) = read(&at, keys, &source, notes) else {
            continue;
        };
        specs.push((RouteSpec { src: Some(source.pattern.regex), case_sensitive: true, has, missing, ..spec }, at));
    }
    specs
}

fn read_source(at: &str, keys: &Map<String, Value>, has: &[ConditionSpec], notes: &mut Notes) -> Option<Source> {
    let key = format!("{at}.source");
    let Some(value) = keys.get("source") else {
        notes.mistake(&key, "is missing");
        return None;
    };
    let text = read_string(&key, value, notes)?;
    if !text.starts_with(['/', '(', ':', '{']) {
        notes.mistake(&key, format!("{text:?} does not start with /"));
        return None;
    }
    if text == "/.well-known" || text.starts_with("/.well-known/") {
        notes.mistake(&key, "/.well-known is not redirected, rewritten or given headers");
        return None;
    }
    match PathPattern::parse(text) {
        Ok(pattern) => Some(Source { pattern, has_names: has.iter().flat_map(captured_names).collect() }),
        Err(reason) => {
            notes.mistake(&key, format!("{text:?}: {reason}"));
            None
        }
    }
}

/// The names that a `has` item gives to a destination.
fn captured_names(condition: &ConditionSpec) -> Vec<String> {
    let mut names = Vec::new();
    match &condition.value {
        None => names.extend(condition.key.as_ref().map(|key| key.chars().filter(char::is_ascii_alphabetic).collect())),
        Some(ValueSpec::Regex(source)) => names.extend(group_names(source)),
        Some(ValueSpec::Tests(tests)) => {
            names.extend(
                tests
                    .iter()
                    .filter(|(name, _)| name == "re")
                    .flat_map(|(_, operands)| operands.iter().flat_map(|source| group_names(source))),
            );
        }
    }
    if condition.kind == ConditionKind::Host {
        names.push("host".to_owned());
    }
    names.retain(|name: &String| !name.is_empty());
    names
}

fn group_names(source: &str) -> Vec<String> {
    let after = source.split("(?<").skip(1).filter(|rest| !rest.starts_with(['=', '!']));
    after.filter_map(|rest| rest.split_once('>')).map(|(name, _)| name.to_owned()).collect()
}

fn read_redirect(at: &str, keys: &Map<String, Value>, source: &Source, notes: &mut Notes) -> Option<RouteSpec> {
    let permanent =
        keys.get("permanent").map(|value| read_bool(&format!("{at}.permanent"), value, notes).unwrap_or(true));
    let status = match keys.get("statusCode") {
        Some(value) => {
            let status = value.as_u64().filter(|status| matches!(status, 301 | 302 | 303 | 307 | 308));
            if status.is_none() {
                notes.mistake(
                    &format!("{at}.statusCode"),
                    format!("{} is not 301, 302, 303, 307 or 308", shorten(value)),
                );
            }
            status? as u16
        }
        None if permanent == Some(false) => 307,
        None => 308,
    };
    let location = read_destination(at, keys, source, Unused::Dropped, notes)?;
    Some(RouteSpec { headers: vec![("Location".to_owned(), location)], status: Some(status), ..RouteSpec::default() })
}

fn read_rewrite(at: &str, keys: &Map<String, Value>, source: &Source, notes: &mut Notes) -> Option<RouteSpec> {
    let status = keys
        .get("statusCode")
        .and_then(|value| read_number(&format!("{at}.statusCode"), value, 100, 999, notes))
        .map(|status| status as u16);
    let dest = read_destination(at, keys, source, Unused::ToQuery, notes)?;
    Some(RouteSpec { dest: Some(dest), check: true, status, ..RouteSpec::default() })
}

fn read_headers(at: &str, keys: &Map<String, Value>, source: &Source, notes: &mut Notes) -> Option<RouteSpec> {
    let Some(items) = keys.get("headers").and_then(Value::as_array) else {
        notes.mistake(&format!("{at}.headers"), "is not an array of {\"key\", \"value\"}");
        return None;
    };
    let mut headers: Vec<(String, String)> = Vec::new();
    for (place, item) in items.iter().enumerate() {
        let at = format!("{at}.headers[{place}]");
        let (Some(key), Some(value)) =
            (item.get("key").and_then(Value::as_str), item.get("value").and_then(Value::as_str))
        else {
            notes.mistake(&at, format!("{} is not {{\"key\": \"…\", \"value\": \"…\"}}", shorten(item)));
            continue;
        };
        let (key, value) = (source.fill_known(key), source.fill_known(value));
        if check_header(&at, &key, &value, notes) {
            headers.retain(|(other, _)| !other.eq_ignore_ascii_case(&key));
            headers.push((key, value));
        }
    }
    Some(RouteSpec { headers, continue_: true, ..RouteSpec::default() })
}

/// What becomes of parameters that a destination does not use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unused {
    Dropped,
    ToQuery,
}

fn read_destination(
    at: &str,
    keys: &Map<String, Value>,
    source: &Source,
    unused: Unused,
    notes: &mut Notes,
) -> Option<String> {
    let key = format!("{at}.destination");
    let Some(value) = keys.get("destination") else {
        notes.mistake(&key, "is missing");
        return None;
    };
    let text = read_string(&key, value, notes)?;
    if !(text.starts_with('/') || is_absolute(text)) {
        notes.mistake(&key, format!("{text:?} does not start with /, http:// or https://"));
        return None;
    }
    source.fill_destination(text, unused).map_err(|reason| notes.mistake(&key, format!("{text:?}: {reason}"))).ok()
}

fn is_absolute(text: &str) -> bool {
    ["http://", "https://"]
        .iter()
        .any(|scheme| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
}

impl Source {
    /// The template for a parameter: `$1` by its place, or `$name` from `has`, which goes first.
    fn template(&self, name: &str) -> Option<String> {
        if self.has_names.iter().any(|known| known == name) {
            return Some(format!("${name}"));
        }
        let place = self.pattern.names.iter().position(|known| known.as_deref() == Some(name))?;
        Some(format!("${}", place + 1))
    }

    /// A destination with its `:name`s as templates.
    fn fill_destination(&self, text: &str, unused: Unused) -> Result<String, String> {
        let (text, fragment) = text.split_once('#').map_or((text, None), |(text, fragment)| (text, Some(fragment)));
        let (text, query) = text.split_once('?').map_or((text, None), |(text, query)| (text, Some(query)));
        let (scheme, path) =
            if is_absolute(text) { text.split_at(text.find("//").map_or(0, |at| at + 2)) } else { ("", text) };
        let mut used = BTreeSet::new();
        let path = self.fill(path, &mut used)?;
        let fragment = fragment.map(|fragment| self.fill(fragment, &mut used)).transpose()?;
        let mut pairs = Vec::new();
        let mut query_names = BTreeSet::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            query_names.insert(pair.split('=').next().unwrap_or_default().to_owned());
            pairs.push(self.fill(pair, &mut BTreeSet::new())?);
        }
        // The platform adds all parameters to a rewrite's query, unless one of them is in the path.
        if unused == Unused::ToQuery && used.is_empty() {
            let names = self.pattern.names.iter().flatten().chain(&self.has_names);
            for name in names {
                if query_names.insert(name.clone()) {
                    pairs.extend(self.template(name).map(|template| format!("{name}={template}")));
                }
            }
        }
        let query = if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) };
        let fragment = fragment.map(|fragment| format!("#{fragment}")).unwrap_or_default();
        Ok(format!("{scheme}{path}{query}{fragment}"))
    }

    fn fill(&self, text: &str, used: &mut BTreeSet<String>) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(':') {
            if let Some(escaped) = before.strip_suffix('\\') {
                out.push_str(escaped);
                out.push(':');
                rest = after;
                continue;
            }
            out.push_str(before);
            let name = name_at(after);
            // A port or a time of day is no parameter, and neither is a lone colon.
            if name.bytes().all(|byte| byte.is_ascii_digit()) {
                out.push(':');
                rest = after;
                continue;
            }
            let template =
                self.template(name).ok_or_else(|| format!("has :{name}, which neither `source` nor `has` captures"))?;
            used.insert(name.to_owned());
            out.push_str(&template);
            rest = after.get(name.len()..).unwrap_or_default();
            if rest.starts_with('(') {
                let (_, after) = take_group(rest)?;
                rest = after;
            }
            rest = rest.strip_prefix(['*', '+', '?']).unwrap_or(rest);
        }
        out.push_str(rest);
        Ok(out)
    }

    /// A header's text with the `:name`s that are known as templates. Others stay: a colon is nothing special in a header.
    fn fill_known(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(':') {
            out.push_str(before);
            let name = name_at(after);
            match self.template(name).filter(|_| !name.is_empty()) {
                Some(template) => {
                    out.push_str(&template);
                    rest = after.get(name.len()..).unwrap_or_default();
                    rest = rest.strip_prefix(['*', '+', '?']).unwrap_or(rest);
                }
                None => {
                    out.push(':');
                    rest = after;
                }
            }
        }
        out.push_str(rest);
        out
    }
}

/// The name of a parameter at the start of a text.
fn name_at(text: &str) -> &str {
    let end = text.find(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_')).unwrap_or(text.len());
    text.get(..end).unwrap_or_default()
}

/// Splits `(…)rest` after the parenthesis that closes the first one.
fn take_group(text: &str) -> Result<(&str, &str), String> {
    let (mut depth, mut escaped, mut in_class) = (0usize, false, false);
    for (at, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ']' => in_class = false,
            _ if in_class => {}
            '[' => in_class = true,
            '(' => {
                depth += 1;
                let inside = text.get(at + 1..).unwrap_or_default();
                let names_itself = inside.starts_with("?<") && !inside.starts_with("?<=") && !inside.starts_with("?<!");
                if depth > 1 && (!inside.starts_with('?') || names_itself) {
                    return Err("has a capturing group inside a group; write (?:…)".to_owned());
                }
                if depth == 1 && inside.starts_with('?') {
                    return Err("has a group that starts with ?".to_owned());
                }
            }
            ')' if depth == 1 => {
                let inside = text.get(1..at).unwrap_or_default();
                if inside.is_empty() {
                    return Err("has an empty group".to_owned());
                }
                return Ok((inside, text.get(at + 1..).unwrap_or_default()));
            }
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Err("has a ( without its )".to_owned())
}

// ---- path-to-regexp

/// A `source`: a path with `:name`, `(regex)`, `{…}` and the modifiers `*`, `+`, `?`, as a regular expression.
#[derive(Debug)]
struct PathPattern {
    regex: String,
    /// The parameters in the order of their groups; a group without a name has none.
    names: Vec<Option<String>>,
}

impl PathPattern {
    fn parse(source: &str) -> Result<PathPattern, String> {
        let mut pattern = PathPattern { regex: "^".to_owned(), names: Vec::new() };
        let mut text = String::new();
        let mut rest = source;
        while let Some(first) = rest.chars().next() {
            let tail = rest.get(first.len_utf8()..).unwrap_or_default();
            match first {
                '\\' => {
                    let escaped = tail.chars().next().ok_or("ends in a \\")?;
                    // An escaped character is never the prefix of a parameter.
                    pattern.push_text(&mut text);
                    pattern.regex.push_str(&regex::escape(escaped.encode_utf8(&mut [0; 4])));
                    rest = tail.get(escaped.len_utf8()..).unwrap_or_default();
                }
                ':' | '(' => {
                    // The slash or dot before a parameter comes and goes with it.
                    let prefix = text.pop().filter(|last| {
                        let is_prefix = matches!(last, '/' | '.');
                        if !is_prefix {
                            text.push(*last)
                        }
                        is_prefix
                    });
                    pattern.push_text(&mut text);
                    let (parameter, after) = Parameter::take(rest)?;
                    let (modifier, after) = take_modifier(after);
                    pattern.push_parameter(parameter, &prefix.map(String::from).unwrap_or_default(), "", modifier);
                    rest = after;
                }
                '{' => {
                    pattern.push_text(&mut text);
                    rest = pattern.take_braces(tail)?;
                }
                '}' => return Err("has a } without its {".to_owned()),
                '*' | '+' | '?' => {
                    return Err(format!("has a {first} that follows no parameter; write :path{first} or (.*)"));
                }
                _ => {
                    text.push(first);
                    rest = tail;
                }
            }
        }
        pattern.push_text(&mut text);
        pattern.regex.push('$');
        let mut seen = BTreeSet::new();
        match pattern.names.iter().flatten().find(|name| !seen.insert(name.as_str())) {
            Some(name) => Err(format!("has :{name} twice")),
            None => Ok(pattern),
        }
    }

    fn push_text(&mut self, text: &mut String) {
        self.regex.push_str(&regex::escape(text));
        text.clear();
    }

    /// Reads `prefix:name(regex)suffix}` after a `{`.
    fn take_braces<'s>(&mut self, inside: &'s str) -> Result<&'s str, String> {
        let (prefix, rest) = take_text(inside)?;
        let (parameter, rest) = if rest.starts_with([':', '(']) {
            let (parameter, rest) = Parameter::take(rest)?;
            (Some(parameter), rest)
        } else {
            (None, rest)
        };
        let (suffix, rest) = take_text(rest)?;
        let rest = rest.strip_prefix('}').ok_or("has a { without its }")?;
        let (modifier, rest) = take_modifier(rest);
        match parameter {
            Some(parameter) => self.push_parameter(parameter, &prefix, &suffix, modifier),
            None => self.regex.push_str(&format!("(?:{}){modifier}", regex::escape(&format!("{prefix}{suffix}")))),
        }
        Ok(rest)
    }

    fn push_parameter(&mut self, parameter: Parameter, prefix: &str, suffix: &str, modifier: &str) {
        let Parameter { name, regex: inner } = parameter;
        self.names.push(name);
        let (prefix, suffix) = (regex::escape(prefix), regex::escape(suffix));
        let group = match (prefix.is_empty() && suffix.is_empty(), modifier) {
            (true, _) => format!("({inner}){modifier}"),
            // One group takes all the repetitions, with what stands between them.
            (false, "*" | "+") => {
                let optional = if modifier == "*" { "?" } else { "" };
                format!("(?:{prefix}((?:{inner})(?:{suffix}{prefix}(?:{inner}))*){suffix}){optional}")
            }
            (false, _) => format!("(?:{prefix}({inner}){suffix}){modifier}"),
        };
        self.regex.push_str(&group);
    }
}

struct Parameter {
    name: Option<String>,
    regex: String,
}

impl Parameter {
    /// Reads `:name`, `:name(regex)` or `(regex)`.
    fn take(text: &str) -> Result<(Parameter, &str), String> {
        let (name, rest) = match text.strip_prefix(':') {
            Some(after) => {
                let name = name_at(after);
                if name.is_empty() {
                    return Err("has a : without a name".to_owned());
                }
                (Some(name.to_owned()), after.get(name.len()..).unwrap_or_default())
            }
            None => (None, text),
        };
        let (regex, rest) = if rest.starts_with('(') { take_group(rest)? } else { ("[^/]+?", rest) };
        Ok((Parameter { name, regex: regex.to_owned() }, rest))
    }
}

/// Plain text up to the next special character, without its escapes.
fn take_text(text: &str) -> Result<(String, &str), String> {
    let mut out = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => out.push(letters.next().ok_or("ends in a \\")?.1),
            ':' | '(' | '{' | '}' => return Ok((out, text.get(at..).unwrap_or_default())),
            '*' | '+' | '?' => return Err(format!("has a {letter} that follows no parameter")),
            _ => out.push(letter),
        }
    }
    Ok((out, ""))
}

fn take_modifier(text: &str) -> (&str, &str) {
    if text.starts_with(['*', '+', '?']) { text.split_at(1) } else { ("", text) }
}

// ---- files

fn find_functions(files: &[SourceFile<'_>], config: &Config, notes: &mut Notes) -> Vec<FunctionSpec> {
    let mut functions: Vec<FunctionSpec> = Vec::new();
    let mut taken: HashMap<String, String> = HashMap::new();
    let mut unused: Vec<bool> = vec![true; config.functions.len()];
    let mut paths: Vec<&str> = files.iter().map(|file| file.path).collect();
    paths.sort_unstable();
    for entry in paths {
        if !is_function(entry) {
            let ending = file_name(entry).rsplit_once('.').map_or("", |(_, ending)| ending);
            if entry.starts_with("api/") && FOREIGN_ENDINGS.contains(&ending) {
                notes.warnings.push(format!("{entry}: functions in this language do not run here"));
            }
            continue;
        }
        let stem = without_ending(entry);
        let path = format!("/{}", stem.strip_suffix("/index").unwrap_or(stem));
        // `[id].js` beside `[name].js` take the same requests, as `a.js` beside `a.mjs` do.
        let shape: Vec<&str> = path.split('/').map(|segment| Segment::of(segment).shape()).collect();
        if let Some(other) = taken.insert(shape.join("/"), entry.to_owned()) {
            notes.mistake_in(entry.to_owned(), "", format!("answers the same path as {other}; keep one of them"));
            continue;
        }
        let mut names = BTreeSet::new();
        if let Some(name) =
            path.split('/').filter_map(|segment| Segment::of(segment).name()).find(|name| !names.insert(*name))
        {
            notes.mistake_in(entry.to_owned(), "", format!("has [{name}] twice in its path"));
        }
        let mut function = FunctionSpec {
            path,
            entry: entry.to_owned(),
            memory_mb: None,
            max_duration_s: None,
            regions: Vec::new(),
            include_files: Vec::new(),
            exclude_files: Vec::new(),
            runtime: Runtime::Node,
        };
        let mut is_set = false;
        for (rule, unused) in config.functions.iter().zip(&mut unused).filter(|(rule, _)| rule.glob.matches(entry)) {
            *unused = false;
            // The first glob that takes a function decides about it.
            if !std::mem::replace(&mut is_set, true) {
                function.memory_mb = rule.memory_mb;
                function.max_duration_s = rule.max_duration_s;
                function.regions.clone_from(&rule.regions);
                function.include_files.clone_from(&rule.include_files);
                function.exclude_files.clone_from(&rule.exclude_files);
            }
        }
        functions.push(function);
    }
    for (rule, _) in config.functions.iter().zip(unused).filter(|(_, unused)| *unused) {
        notes.mistake(
            &rule.key,
            "matches no function; functions are the .js, .mjs, .cjs, .ts, .mts and .cts files under api/",
        );
    }
    functions
}

/// Whether a file is a function: below `api/`, of a known ending, and nothing on its path hidden by `_` or `.`.
fn is_function(path: &str) -> bool {
    let Some((stem, ending)) = path.rsplit_once('.') else {
        return false;
    };
    path.starts_with("api/")
        && FUNCTION_ENDINGS.contains(&ending)
        && !(stem.ends_with(".d") && matches!(ending, "ts" | "mts" | "cts"))
        && is_plain(path)
        && !path.split('/').any(|segment| segment.starts_with(['_', '.']) || segment == "node_modules")
}

fn find_statics(
    files: &[SourceFile<'_>],
    config: &Config,
    functions: &[FunctionSpec],
    notes: &mut Notes,
) -> Vec<StaticSpec> {
    let has_files = |folder: &str| {
        files
            .iter()
            .any(|file| file.path.strip_prefix(folder).is_some_and(|rest| rest.len() > 1 && rest.starts_with('/')))
    };
    let root = match &config.output_directory {
        Some(folder) if folder.is_empty() => None,
        Some(folder) if has_files(folder) => Some(folder.as_str()),
        Some(folder) => {
            notes.mistake(
                "outputDirectory",
                format!("{folder:?} has no files; nothing is built here, build the project first"),
            );
            None
        }
        None => Some("public").filter(|folder| has_files(folder)),
    };
    let framework = |file: &&SourceFile<'_>| FRAMEWORK_FILES.iter().any(|name| file.path.starts_with(name));
    if let Some(file) = files.iter().find(framework).filter(|_| root.is_none_or(|root| root == "public")) {
        notes.warnings.push(format!(
            "{}: this looks like a framework's project, and nothing is built here; deploy its build output",
            file.path
        ));
    }
    let mut statics: BTreeMap<String, StaticSpec> = BTreeMap::new();
    for file in files {
        let inner = match root {
            Some(root) => file.path.strip_prefix(root).and_then(|rest| rest.strip_prefix('/')),
            None => Some(file.path).filter(|path| !is_private(path)),
        };
        let Some(inner) = inner.filter(|inner| is_plain(inner) && !is_hidden(inner)) else {
            continue;
        };
        let clean =
            inner.strip_suffix(".html").filter(|stem| config.clean_urls && !stem.is_empty() && !stem.ends_with('/'));
        let content_type = clean.map(|_| "text/html; charset=utf-8".to_owned());
        let url = format!("/{}", clean.unwrap_or(inner));
        let other = statics
            .get(&url)
            .map(|other| other.file.clone())
            .or_else(|| functions.iter().find(|function| function.path == url).map(|function| function.entry.clone()));
        if let Some(other) = other {
            notes.mistake_in(file.path.to_owned(), "", format!("has the same URL as {other}; keep one of them"));
            continue;
        }
        statics.insert(url.clone(), StaticSpec { url, file: file.path.to_owned(), content_type });
    }
    statics.into_values().collect()
}

/// Whether a file at the root belongs to the project's making and not to its site.
fn is_private(path: &str) -> bool {
    PRIVATE_FILES.contains(&path)
        || path.starts_with("api/")
        || path.split('/').any(|segment| segment == "node_modules")
}

/// Whether a part of the path is hidden. `.well-known/` at the start is the exception that RFC 8615 needs.
fn is_hidden(path: &str) -> bool {
    path.strip_prefix(".well-known/").unwrap_or(path).split('/').any(|segment| segment.starts_with('.'))
}

/// Whether a path of the listing can be a URL path: relative, no empty segments, nothing that a lookup refuses.
fn is_plain(path: &str) -> bool {
    !path.contains(['\\', '\0']) && path.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn without_ending(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(stem, _)| stem)
}

// ---- all routes together

/// A segment of a function's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Segment<'a> {
    Fixed(&'a str),
    One(&'a str),
    Rest(&'a str),
}

impl<'a> Segment<'a> {
    fn of(segment: &'a str) -> Segment<'a> {
        let inside = segment.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let name = inside.map(|inside| inside.strip_prefix("...").unwrap_or(inside));
        match (inside, name) {
            (Some(inside), Some(name)) if !name.is_empty() && !name.contains(['[', ']']) => {
                if inside == name {
                    Segment::One(name)
                } else {
                    Segment::Rest(name)
                }
            }
            _ => Segment::Fixed(segment),
        }
    }

    fn name(self) -> Option<&'a str> {
        match self {
            Segment::Fixed(_) => None,
            Segment::One(name) | Segment::Rest(name) => Some(name),
        }
    }

    /// The segment without its name.
    fn shape(self) -> &'a str {
        match self {
            Segment::Fixed(text) => text,
            Segment::One(_) => "[]",
            Segment::Rest(_) => "[...]",
        }
    }

    fn rank(self) -> u8 {
        match self {
            Segment::Fixed(_) => 0,
            Segment::One(_) => 1,
            Segment::Rest(_) => 2,
        }
    }
}

/// The routes of the configuration and of the files, in the order of the platform's build.
fn all_routes(
    config: &Config,
    functions: &[FunctionSpec],
    statics: &[StaticSpec],
    notes: &mut Notes,
) -> Vec<RouteSpec> {
    let made = |spec: RouteSpec| (spec, String::new());
    let handle = |name: &str| RouteSpec { handle: Some(name.to_owned()), ..RouteSpec::default() };
    let mut before: Vec<(RouteSpec, String)> = slash_routes(config).into_iter().map(made).collect();
    let mut phases: Vec<(&str, Vec<(RouteSpec, String)>)> = Vec::new();
    // The user's own phases, in the user's order.
    let mut phase: Option<usize> = None;
    for (spec, at) in &config.routes {
        match (&spec.handle, phase) {
            (Some(name), _) => {
                phase = Some(phases.len());
                phases.push((name, vec![(spec.clone(), at.clone())]));
            }
            (None, None) => before.push((spec.clone(), at.clone())),
            (None, Some(place)) => {
                if let Some((_, routes)) = phases.get_mut(place) {
                    routes.push((spec.clone(), at.clone()));
                }
            }
        }
    }
    before.extend(config.redirects.iter().chain(&config.headers).cloned());
    if config.clean_urls && !functions.is_empty() {
        before.extend(api_clean_routes().map(made));
    }
    let mut add = |name: &'static str, routes: Vec<(RouteSpec, String)>| {
        if routes.is_empty() {
            return;
        }
        match phases.iter_mut().find(|(other, _)| *other == name) {
            Some((_, held)) => held.extend(routes),
            None => {
                let mut held = vec![made(handle(name))];
                held.extend(routes);
                phases.push((name, held));
            }
        }
    };
    let mut after: Vec<(RouteSpec, String)> = config.rewrites.clone();
    after.extend(dynamic_routes(functions).into_iter().map(made));
    // The platform's build ends with a 404 for all that is left of /api. With listings on it would hide the listing of the functions, and
    // without it an unknown path finds nothing all the same.
    if !config.listing && !functions.is_empty() {
        after.push(made(RouteSpec { src: Some("^/api(/.*)?$".to_owned()), status: Some(404), ..RouteSpec::default() }));
    }
    add("filesystem", after);
    if let Some(page) = statics.iter().find(|file| matches!(file.url.as_str(), "/404.html" | "/404")) {
        let spec = RouteSpec {
            src: Some("^(?!/api).*$".to_owned()),
            dest: Some(page.url.clone()),
            status: Some(404),
            ..RouteSpec::default()
        };
        add("error", vec![made(spec)]);
    }
    let all: Vec<(RouteSpec, String)> =
        before.into_iter().chain(phases.into_iter().flat_map(|(_, routes)| routes)).collect();
    let (routes, places): (Vec<RouteSpec>, Vec<String>) = all.into_iter().unzip();
    for mistake in Router::compile(&routes).err().unwrap_or_default() {
        let at = places.get(mistake.index).map(String::as_str).unwrap_or_default();
        // A route that could not be read has been reported; that it came out empty is no news.
        if mistake.key == "src"
            && mistake.found == "nothing"
            && notes.mistakes.iter().any(|known| known.key.starts_with(at))
        {
            continue;
        }
        let key = match mistake.key.as_str() {
            "src" if !at.starts_with("routes") => "source",
            "dest" if !at.starts_with("routes") => "destination",
            key => key,
        };
        notes.mistake(&format!("{at}.{key}"), format!("found {:?}, expected {}", mistake.found, mistake.expected));
    }
    routes
}

fn redirect(src: &str, location: &str) -> RouteSpec {
    RouteSpec {
        src: Some(src.to_owned()),
        headers: vec![("Location".to_owned(), location.to_owned())],
        status: Some(308),
        ..RouteSpec::default()
    }
}

/// The routes of `cleanUrls` and `trailingSlash`.
fn slash_routes(config: &Config) -> Vec<RouteSpec> {
    let mut routes = Vec::new();
    if config.clean_urls {
        let location = if config.trailing_slash == Some(true) { "/$1/" } else { "/$1" };
        routes.push(redirect(r"^/(?:(.+)/)?index(?:\.html)?/?$", location));
        routes.push(redirect(r"^/(.*)\.html/?$", location));
    }
    match config.trailing_slash {
        Some(true) => {
            routes.push(RouteSpec { src: Some(r"^/\.well-known(?:/.*)?$".to_owned()), ..RouteSpec::default() });
            routes.push(redirect(r"^/((?:[^/]+/)*[^/\.]+)$", "/$1/"));
            routes.push(redirect(r"^/((?:[^/]+/)*[^/]+\.\w+)/$", "/$1"));
        }
        Some(false) => routes.push(redirect("^/(.*)/$", "/$1")),
        None => {}
    }
    routes
}

/// With `cleanUrls` a function has one URL as well: no `index`, no ending.
fn api_clean_routes() -> impl Iterator<Item = RouteSpec> {
    let endings = FUNCTION_ENDINGS.join("|");
    [
        redirect(&format!(r"^/(api(?:.+)?)/index(?:\.(?:{endings}))?/?$"), "/$1"),
        redirect(&format!(r"^/api/(.+)\.(?:{endings})/?$"), "/api/$1"),
    ]
    .into_iter()
}

/// The routes to functions with `[name]` in their paths: the fewer of them, the earlier, and `[...name]` last.
fn dynamic_routes(functions: &[FunctionSpec]) -> Vec<RouteSpec> {
    let mut dynamic: Vec<(Vec<Segment<'_>>, &FunctionSpec)> = Vec::new();
    for function in functions {
        let segments: Vec<Segment<'_>> = function.path.split('/').skip(1).map(Segment::of).collect();
        if segments.iter().any(|segment| segment.name().is_some()) {
            dynamic.push((segments, function));
        }
    }
    dynamic.sort_by_cached_key(|(segments, function)| {
        let ranks: Vec<u8> = segments.iter().map(|segment| segment.rank()).collect();
        let named = ranks.iter().filter(|rank| **rank > 0).count();
        (ranks.contains(&2), named, ranks, function.path.clone())
    });
    dynamic.into_iter().map(|(segments, function)| dynamic_route(&segments, &function.path)).collect()
}

fn dynamic_route(segments: &[Segment<'_>], path: &str) -> RouteSpec {
    let mut src = "^".to_owned();
    let mut query = Vec::new();
    for segment in segments {
        src.push('/');
        match segment {
            Segment::Fixed(text) => src.push_str(&regex::escape(&encode(text, PATH))),
            Segment::One(name) | Segment::Rest(name) => {
                src.push_str(if matches!(segment, Segment::One(_)) { "([^/]+)" } else { "(.+)" });
                query.push(format!("{}=${}", encode(name, NAME), query.len() + 1));
            }
        }
    }
    src.push('$');
    RouteSpec {
        src: Some(src),
        dest: Some(format!("{}?{}", encode(path, PATH).replace('$', "%24"), query.join("&"))),
        check: true,
        ..RouteSpec::default()
    }
}

/// What a browser encodes in a path, and the percent sign.
const PATH: &percent_encoding::AsciiSet =
    &percent_encoding::CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#').add(b'"').add(b'<').add(b'>').add(b'`');
/// In the name of a parameter its separators as well.
const NAME: &percent_encoding::AsciiSet = &PATH.add(b'&').add(b'=').add(b'+').add(b'$');

fn encode(text: &str, set: &'static percent_encoding::AsciiSet) -> String {
    percent_encoding::utf8_percent_encode(text, set).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{Request, Target};

    const FILES: [&str; 14] = [
        "package.json",
        "index.html",
        "about.html",
        "404.html",
        "static/logo.svg",
        "docs/guide.txt",
        "api/date.js",
        "api/index.mjs",
        "api/users/[id].js",
        "api/users/me.ts",
        "api/[org]/[repo].js",
        "api/files/[...path].js",
        "api/_lib/util.js",
        ".env",
    ];

    fn listing<'a>(paths: &[&'a str]) -> Vec<SourceFile<'a>> {
        paths.iter().map(|path| SourceFile { path, bytes: 1 }).collect()
    }

    #[track_caller]
    fn project(paths: &[&str], config: &str) -> Project {
        read(&listing(paths), Some(("now.json", config))).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
    }

    /// Every mistake in turn has to begin as told.
    #[track_caller]
    fn check_mistakes(paths: &[&str], config: &str, expected: &[&str]) {
        let mistakes = read(&listing(paths), Some(("now.json", config))).expect_err("there are mistakes");
        let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told:?} is not {expected:?}");
        }
    }

    /// Rows of `PATH[?QUERY]` and who answers.
    #[track_caller]
    fn check(paths: &[&str], config: &str, rows: &[(&str, &str)]) {
        let project = project(paths, config);
        let router = Router::compile(&project.routes).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        let outputs = outputs(&project);
        let mut headers = http::HeaderMap::new();
        headers.insert("x-user", http::HeaderValue::from_static("jo"));
        for (asked, expected) in rows {
            let (path, query) = asked.split_once('?').map_or((*asked, None), |(path, query)| (path, Some(query)));
            let resolution = router.resolve(
                &outputs,
                project.listing,
                &Request { method: "GET", host: "app.example", path, query, headers: &headers },
            );
            let query = resolution.query.map(|query| format!("?{query}")).unwrap_or_default();
            let status = resolution
                .status
                .filter(|_| resolution.matched_path.is_some())
                .map(|status| format!(" {status}"))
                .unwrap_or_default();
            let told = match resolution.target {
                Target::Static(place) => {
                    format!("{}{status}", project.statics[place as usize].file)
                }
                Target::Function(place) => {
                    format!("λ{}{query}", project.functions[place as usize].entry)
                }
                Target::Redirect { status, location } => format!("{status} {location}"),
                Target::External(url) => format!("-> {url}"),
                Target::Listing(folder) => {
                    let lines = outputs.list(&folder).unwrap_or_default().into_iter();
                    let mark = |line: crate::routing::ListEntry| {
                        format!(
                            "{}{}{}",
                            if line.is_function { "λ" } else { "" },
                            line.name,
                            if line.is_dir { "/" } else { "" }
                        )
                    };
                    lines.map(mark).collect::<Vec<_>>().join(" ")
                }
                Target::Status(status) => format!("status {status}"),
                Target::NotFound => "nothing".to_owned(),
                Target::Failed(error) => error.code().to_owned(),
            };
            assert_eq!(told, *expected, "{asked}");
        }
    }

    #[track_caller]
    fn check_source(source: &str, expected: &str) {
        let parsed = PathPattern::parse(source).map(|pattern| {
            let names: Vec<&str> = pattern.names.iter().map(|name| name.as_deref().unwrap_or("-")).collect();
            format!("{} {}", pattern.regex, names.join(","))
        });
        let told = parsed.unwrap_or_else(|reason| format!("! {reason}"));
        assert!(
            if expected.ends_with('…') {
                told.starts_with(expected.trim_end_matches('…'))
            } else {
                told == expected
            },
            "{source}: {told}"
        );
    }

    #[test]
    fn broken_json_is_placed() {
        check_mistakes(&[], "{\n  \"name\": \"a\",\n  oops\n}", &["now.json: line 3 column 3: key must be a string"]);
        check_mistakes(&[], "[]", &["now.json: is not an object"]);
        check_mistakes(&[], "", &["now.json: line 1 column 0: EOF"]);
        assert!(read(&[], Some(("now.json", "\u{feff}{}"))).is_ok());
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        check_mistakes(
            &["now.json", "vercel.json", "api/a.js", "api/a.mjs", "api/u/[id].js", "api/u/[name].js", "api/[x]/[x].js"],
            r#"{"version":1,"name":"My App","alias":["ok.example","-no-.example",7],"builds":[],"cleanUrl":true,"wat":1,"trailingSlash":"yes",
                "regions":["sfo1","SFO 1"],"env":{"A":"@secret","1B":"x","C":7,"D":"ok"},"functions":{"api/z.js":{"memory":1,"maxDuration":"x","runtime":"python3.9","memry":1},"api/{":{}}}"#,
            &[
                "now.json: there is a now.json as well as a vercel.json",
                "now.json: version: 1 is not a version that runs here; write 2",
                "now.json: name: \"My App\" is not a name",
                "now.json: alias[2]: 7 is not a string",
                "now.json: alias: \"-no-.example\" is not a host name",
                "now.json: builds: nothing is built here; put functions under api/",
                "now.json: cleanUrl: is not a known key; did you mean `cleanUrls`?",
                "now.json: wat: is not a known key",
                "now.json: trailingSlash: \"yes\" is not true or false",
                "now.json: regions: \"SFO 1\" is not a region",
                "now.json: env.A: names a secret",
                "now.json: env.1B: is not a name",
                "now.json: env.C: is not a string",
                "now.json: functions[\"api/z.js\"].memory: 1 is not a whole number from 128",
                "now.json: functions[\"api/z.js\"].maxDuration: \"x\"",
                "now.json: functions[\"api/z.js\"].runtime: \"python3.9\" does not run here",
                "now.json: functions[\"api/z.js\"].memry: is not a known key; did you mean `memory`?",
                "now.json: functions[\"api/{\"]: \"api/{\" has a `{` without its `}`",
                "api/[x]/[x].js: has [x] twice",
                "api/a.mjs: answers the same path as api/a.js",
                "api/u/[name].js: answers the same path as api/u/[id].js",
                "now.json: functions[\"api/z.js\"]: matches no function",
            ],
        );
    }

    #[test]
    fn broken_routes_are_placed() {
        check_mistakes(
            &[],
            r#"{"routes":[{"src":"/a"},7,{"src":"/b","source":"/b","staus":404,"transforms":[]},{"src":"(","headers":{"a b":"x","ok":"\n"},"status":1000},{"handle":"nope"},
                {"src":"/x","has":[{"type":"ip"},{"type":"header","key":"a","value":"("}]}],"rewrites":[]}"#,
            &[
                "now.json: routes[1]: 7 is not an object",
                "now.json: routes[2].source: is the same as `src`",
                "now.json: routes[2].staus: is not a known key; did you mean `status`?",
                "now.json: routes[2].transforms: is only for routes that a framework's build writes",
                "now.json: routes[3].headers[\"a b\"]: \"a b\" is not the name of a header",
                "now.json: routes[3].headers[\"ok\"]: is not the value of a header",
                "now.json: routes[3].status: 1000 is not a whole number",
                "now.json: routes[5].has[0].type: \"ip\" is not host, header",
                "now.json: rewrites: may not stand beside `routes`",
                "now.json: routes[3].src: found \"(\", expected a regular expression",
                "now.json: routes[4].handle: found \"nope\", expected filesystem",
                "now.json: routes[5].has[0].value: found \"(\", expected a regular expression",
            ],
        );
        check_mistakes(
            &[],
            r#"{"redirects":[{"source":"/a"},{"source":"a","destination":"/b"},{"source":"/a/:x","destination":"/b/:y"},{"source":"/a/*","destination":"/b"},{"source":"/c","destination":"d"},
                {"source":"/c","destination":"/d","statusCode":200},{"source":"/.well-known/x","destination":"/d"},{"source":"/c([)","destination":"/d","to":1}],
               "headers":[{"source":"/a","headers":[{"key":"a"}]},{"source":"/a","headers":{}}]}"#,
            &[
                "now.json: redirects[0].destination: is missing",
                "now.json: redirects[1].source: \"a\" does not start with /",
                "now.json: redirects[2].destination: \"/b/:y\": has :y, which neither",
                "now.json: redirects[3].source: \"/a/*\": has a * that follows no parameter",
                "now.json: redirects[4].destination: \"d\" does not start with",
                "now.json: redirects[5].statusCode: 200 is not 301",
                "now.json: redirects[6].source: /.well-known",
                "now.json: redirects[7].to: is not a known key",
                "now.json: redirects[7].source: \"/c([)\": has a ( without its )",
                "now.json: headers[0].headers[0]: {\"key\":\"a\"} is not",
                "now.json: headers[1].headers: is not an array",
            ],
        );
        check_mistakes(
            &[],
            r#"{"rewrites":[{"source":"/a(?!x)","destination":"/b"},{"source":"/a(b{3,2})","destination":"/b"}]}"#,
            &[
                "now.json: rewrites[0].source: \"/a(?!x)\": has a group that starts with ?",
                "now.json: rewrites[1].source: found \"^/a(b{3,2})$\", expected a regular expression",
            ],
        );
    }

    #[test]
    fn sources_become_the_platforms_patterns() {
        check_source("/old/:path*", "^/old(?:/((?:[^/]+?)(?:/(?:[^/]+?))*))?$ path");
        check_source("/u/:id", "^/u(?:/([^/]+?))$ id");
        check_source("/u/:id?", "^/u(?:/([^/]+?))?$ id");
        check_source("/u/:id+", "^/u(?:/((?:[^/]+?)(?:/(?:[^/]+?))*))$ id");
        check_source("/post/:slug(\\d{1,})", "^/post(?:/(\\d{1,}))$ slug");
        check_source("/((?!api).*)", "^(?:/((?!api).*))$ -");
        check_source("/a-:b.:c", "^/a\\-([^/]+?)(?:\\.([^/]+?))$ b,c");
        check_source("/a{-:b}?", "^/a(?:\\-([^/]+?))?$ b");
        check_source("/a{bc}*", "^/a(?:bc)*$ ");
        check_source("/a\\:b\\(c", "^/a:b\\(c$ ");
        check_source("/x(a|b)(c)", "^/x(a|b)(c)$ -,-");
        for (source, expected) in [
            ("/:", "! has a : without a name"),
            ("/a(", "! has a ( without"),
            ("/a()", "! has an empty group"),
            ("/a((b))", "! has a capturing group"),
            ("/a(?:b)", "! has a group that starts with ?"),
            ("/a{b", "! has a { without"),
            ("/a}", "! has a } without"),
            ("/a\\", "! ends in a \\"),
            ("/:a/:a", "! has :a twice"),
            ("/a{:b(}", "! has a ( without"),
            ("/a((?<n>b))", "! has a capturing group"),
        ] {
            check_source(source, &format!("{expected}…"));
        }
    }

    #[test]
    fn zero_config_serves_files_and_functions() {
        check(
            &FILES,
            "{}",
            &[
                ("/", "index.html"),
                ("/about", "404.html 404"),
                ("/about.html", "about.html"),
                ("/api", "λapi/index.mjs"),
                ("/api/date", "λapi/date.js"),
                ("/api/date.js", "λapi/date.js"),
                ("/api/date/?x=1", "λapi/date.js"),
                ("/api/users/me", "λapi/users/me.ts"),
                ("/api/users/7?v=1", "λapi/users/[id].js?v=1&id=7"),
                ("/api/users/a%20b", "λapi/users/[id].js?id=a%20b"),
                ("/api/zeit/now", "λapi/[org]/[repo].js?org=zeit&repo=now"),
                ("/api/files/a/b/c", "λapi/files/[...path].js?path=a/b/c"),
                ("/api/nothing", "nothing"),
                ("/api/_lib/util", "λapi/[org]/[repo].js?org=_lib&repo=util"),
                ("/nothing", "404.html 404"),
                ("/docs", "guide.txt"),
                ("/api/files", "λ[...path].js"),
                ("/.env", "404.html 404"),
                ("/package.json", "404.html 404"),
                ("/%2e%2e/package.json", "404.html 404"),
            ],
        );
    }

    #[test]
    fn listing_can_be_turned_off() {
        let files = ["docs/guide.txt", "api/date.js"];
        check(
            &files,
            "{}",
            &[("/", "api/ docs/"), ("/api", "λdate.js"), ("/docs/", "guide.txt"), ("/api/x", "nothing")],
        );
        check(
            &files,
            r#"{"directoryListing":false}"#,
            &[("/", "nothing"), ("/api", "status 404"), ("/docs", "nothing"), ("/api/date", "λapi/date.js")],
        );
    }

    #[test]
    fn public_folder_is_the_static_root() {
        let files = [
            "public/index.html",
            "public/.well-known/x",
            "public/.hidden",
            "public/a/package.json",
            "readme.md",
            "api/date.js",
            "publicity.txt",
        ];
        check(
            &files,
            "{}",
            &[
                ("/", "public/index.html"),
                ("/.well-known/x", "public/.well-known/x"),
                ("/a/package.json", "public/a/package.json"),
                ("/.hidden", "nothing"),
                ("/readme.md", "nothing"),
                ("/public/index.html", "nothing"),
                ("/api/date", "λapi/date.js"),
            ],
        );
        check(
            &["dist/a.txt", "public/b.txt"],
            r#"{"outputDirectory":"./dist/"}"#,
            &[("/a.txt", "dist/a.txt"), ("/b.txt", "nothing")],
        );
        check_mistakes(
            &["a.txt"],
            r#"{"outputDirectory":"dist"}"#,
            &["now.json: outputDirectory: \"dist\" has no files"],
        );
        check_mistakes(
            &["a.txt"],
            r#"{"outputDirectory":"../up"}"#,
            &["now.json: outputDirectory: \"../up\" is not a folder"],
        );
        check_mistakes(
            &["public/api/date", "api/date.js"],
            "{}",
            &["public/api/date: has the same URL as api/date.js"],
        );
    }

    #[test]
    fn what_is_private_stays_private() {
        let hidden = [
            "now.json",
            "package.json",
            "yarn.lock",
            "pnpm-lock.yaml",
            "package-lock.json",
            "tsconfig.json",
            ".git/config",
            "a/.env",
            "node_modules/x/index.js",
            ".well-known/.secret",
            "api/_util.js",
            "api/.x.js",
            "api/types.d.ts",
            "api/data.json",
            "api/a/_b/c.js",
            "../up.txt",
            "/abs.txt",
            "a//b.txt",
            "a\\b.txt",
            "api/../x.js",
        ];
        let project = project(&hidden, "{}");
        assert_eq!((project.statics, project.functions), (Vec::new(), Vec::new()));
    }

    #[test]
    fn clean_urls_have_one_spelling() {
        check(
            &FILES,
            r#"{"cleanUrls":true,"trailingSlash":false}"#,
            &[
                ("/", "index.html"),
                ("/index.html", "308 /"),
                ("/about", "about.html"),
                ("/about.html?x=1", "308 /about?x=1"),
                ("/about/", "308 /about"),
                ("/api/date.js", "308 /api/date"),
                ("/api/index.mjs", "308 /api"),
                ("/api/date", "λapi/date.js"),
                ("/api/users/7", "λapi/users/[id].js?id=7"),
                ("/nothing", "404.html 404"),
                ("//evil.example/", "308 /evil.example"),
            ],
        );
        check(
            &FILES,
            r#"{"trailingSlash":true,"cleanUrls":true}"#,
            &[
                ("/about", "308 /about/"),
                ("/about/", "about.html"),
                ("/index", "308 /"),
                ("/static/logo.svg/", "308 /static/logo.svg"),
                ("/about.html", "308 /about/"),
            ],
        );
        let about = project(&FILES, r#"{"cleanUrls":true}"#).statics.into_iter().find(|file| file.url == "/about");
        assert_eq!(about.and_then(|file| file.content_type).as_deref(), Some("text/html; charset=utf-8"));
    }

    #[test]
    fn redirects_follow_their_rules() {
        check(
            &FILES,
            r#"{"redirects":[
                {"source":"/old/:path*","destination":"/new/:path*"},
                {"source":"/t","destination":"/u?a=1","permanent":false},
                {"source":"/c","destination":"https://other.example:8443/c","statusCode":301,"permanent":false},
                {"source":"/post/:id(\\d+)/:slug","destination":"/p/:id?s=:slug"},
                {"source":"/Case","destination":"/x"},
                {"source":"/index.html","destination":"/","permanent":true},
                {"source":"/me","has":[{"type":"header","key":"x-user","value":"(?<user>.*)"}],"destination":"/u/:user"}]}"#,
            &[
                ("/old/a/b?x=1", "308 /new/a/b?x=1"),
                ("/old", "308 /new/"),
                ("/t?a=2&b=3", "307 /u?a=1&b=3"),
                ("/c", "301 https://other.example:8443/c"),
                ("/post/7/hello", "308 /p/7?s=hello"),
                ("/post/x/hello", "404.html 404"),
                ("/case", "404.html 404"),
                ("/index.html", "308 /"),
                ("/me", "308 /u/jo"),
            ],
        );
    }

    #[test]
    fn rewrites_come_after_the_filesystem() {
        check(
            &FILES,
            r#"{"rewrites":[
                {"source":"/u/:id","destination":"/api/users/:id"},
                {"source":"/d/:day/:hour","destination":"/api/date"},
                {"source":"/e/:day","destination":"/api/date?d=:day&t=12:30"},
                {"source":"/up/:path*","destination":"https://up.example/:path*"},
                {"source":"/about.html","destination":"/index.html"},
                {"source":"/who","has":[{"type":"header","key":"x-user"}],"destination":"/api/date"},
                {"source":"/spa/(.*)","destination":"/index.html"}]}"#,
            &[
                ("/u/7", "λapi/users/[id].js?id=7"),
                ("/d/mon/9?day=tue", "λapi/date.js?day=tue&hour=9"),
                ("/e/mon", "λapi/date.js?d=mon&t=12:30&day=mon"),
                ("/up/a/b?x=1", "-> https://up.example/a/b?x=1"),
                ("/about.html", "about.html"),
                ("/who", "λapi/date.js?xuser=jo"),
                ("/spa/x/y", "index.html"),
                ("/d/mon", "404.html 404"),
            ],
        );
    }

    #[test]
    fn headers_are_added_on_the_way() {
        let project = project(
            &FILES,
            r#"{"headers":[{"source":"/static/:file*","headers":[{"key":"x-file","value":":file*"},{"key":"X-Time","value":"12:30"},{"key":"x-time","value":"a:b"}]}]}"#,
        );
        let router = Router::compile(&project.routes).expect("routes");
        let headers = http::HeaderMap::new();
        let resolution = router.resolve(
            &outputs(&project),
            true,
            &Request { method: "GET", host: "h", path: "/static/logo.svg", query: None, headers: &headers },
        );
        let told: Vec<String> = resolution
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("?")))
            .collect();
        assert_eq!(told, ["x-file: logo.svg", "x-time: a:b"]);
    }

    #[test]
    fn old_routes_merge_with_those_of_the_files() {
        check(
            &FILES,
            r#"{"version":2,"routes":[{"src":"/old","status":301,"headers":{"Location":"/new"}},{"source":"/u/(?<id>[^/]+)","destination":"/api/users/$id"},
                {"src":"/proxy/(.*)","dest":"https://up.example/$1"},{"handle":"filesystem"},{"src":"/spa/.*","dest":"/index.html"},{"handle":"error"},{"src":"/x.*","status":404,"dest":"/about.html"}]}"#,
            &[
                ("/old", "301 /new"),
                ("/u/7", "λapi/users/[id].js?id=7"),
                ("/proxy/a", "-> https://up.example/a"),
                ("/spa/x", "index.html"),
                ("/api/users/8", "λapi/users/[id].js?id=8"),
                ("/xyz", "about.html 404"),
                ("/nothing", "404.html 404"),
            ],
        );
    }

    #[test]
    fn settings_reach_the_functions() {
        let project = project(
            &["api/date.js", "api/slow/[id].ts", "api/go.go", "next.config.mjs"],
            r#"{"$schema":"x","name":"hello-1","alias":"Hello.Example","version":2,"public":true,"github":{},"regions":"all","env":{"A":"1"},
                "functions":{"api/slow/[id].ts":{"memory":512,"maxDuration":30,"regions":["iad1"],"includeFiles":"data/**","excludeFiles":["a","b"],"runtime":"@vercel/node@5"},"api/**/*.{js,ts}":{"memory":256}}}"#,
        );
        assert_eq!(
            (project.name.as_deref(), project.aliases.as_slice()),
            (Some("hello-1"), ["hello.example".to_owned()].as_slice())
        );
        assert_eq!((project.regions, project.env), (vec!["all".to_owned()], vec![("A".to_owned(), "1".to_owned())]));
        let date = &project.functions[0];
        assert_eq!((date.path.as_str(), date.memory_mb, date.max_duration_s), ("/api/date", Some(256), None));
        let slow = &project.functions[1];
        assert_eq!(
            (slow.path.as_str(), slow.memory_mb, slow.max_duration_s, slow.regions.as_slice()),
            ("/api/slow/[id]", Some(512), Some(30), ["iad1".to_owned()].as_slice())
        );
        assert_eq!((slow.include_files.len(), slow.exclude_files.len()), (1, 2));
        assert_eq!(project.warnings.len(), 4, "{:?}", project.warnings);
    }

    #[test]
    fn odd_file_names_are_found_by_their_urls() {
        check(
            &["a b.txt", "100%.txt", "é/[x].js", "api/é $1/[id].js", "api/a+b/[id].js", "c#d.txt"],
            "{}",
            &[
                ("/a%20b.txt", "a b.txt"),
                ("/100%25.txt", "100%.txt"),
                ("/c%23d.txt", "c#d.txt"),
                ("/api/%C3%A9%20$1/7", "λapi/é $1/[id].js?id=7"),
                ("/api/a+b/7", "λapi/a+b/[id].js?id=7"),
                ("/%C3%A9/[x].js", "é/[x].js"),
            ],
        );
    }

    #[test]
    fn any_text_is_read_without_panic() {
        let mut state = 3u64;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % bound as u64) as usize
        };
        const PARTS: [&str; 22] = [
            "/", ":", "a", "é", "(", ")", "[", "]", "{", "}", "*", "+", "?", "\\", "\\\\", "|", "$1", "(?<n>", "#",
            ".", "1", "(?!",
        ];
        for _ in 0..1_000 {
            let mut text = |length: usize| -> String { (0..length).map(|_| PARTS[below(PARTS.len())]).collect() };
            let (source, destination, file) =
                (format!("/{}", text(7)), format!("/{}", text(6)), format!("api/{}.js", text(4)));
            let item = serde_json::json!({"source": source, "destination": destination});
            let config =
                serde_json::json!({"redirects": [item], "rewrites": [item], "functions": {text(5): {}}}).to_string();
            if let Ok(project) = read(&listing(&[&file]), Some(("now.json", &config))) {
                outputs(&project);
            }
        }
    }
}
