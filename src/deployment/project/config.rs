//! The keys of `now.json` and `vercel.json`: each is read by itself, and every mistake is noted.

use serde_json::Value;

use super::redirects::{read_headers, read_list, read_redirect, read_rewrite};
use super::routes::read_user_routes;
use super::{ALIASES_MAX, ENV_BYTES_MAX, FUNCTION_GLOBS_MAX, NAME_BYTES_MAX, Notes, STRING_BYTES_MAX};
use crate::deployment::globs::Glob;
use crate::routing::RouteSpec;

/// The configuration as it was meant.
#[derive(Default)]
pub(super) struct Config {
    pub(super) name: Option<String>,
    pub(super) aliases: Vec<String>,
    pub(super) routes: Vec<(RouteSpec, String)>,
    pub(super) redirects: Vec<(RouteSpec, String)>,
    pub(super) headers: Vec<(RouteSpec, String)>,
    pub(super) rewrites: Vec<(RouteSpec, String)>,
    pub(super) clean_urls: bool,
    pub(super) trailing_slash: Option<bool>,
    pub(super) functions: Vec<FunctionRule>,
    pub(super) regions: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) output_directory: Option<String>,
    pub(super) listing: bool,
}

/// An entry of `functions`.
pub(super) struct FunctionRule {
    pub(super) key: String,
    pub(super) glob: Glob,
    pub(super) memory_mb: Option<u64>,
    pub(super) max_duration_s: Option<u64>,
    pub(super) regions: Vec<String>,
    pub(super) include_files: Vec<String>,
    pub(super) exclude_files: Vec<String>,
}

pub(super) const KNOWN_KEYS: [&str; 16] = [
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
pub(super) const IDLE_KEYS: [&str; 19] = [
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
    pub(super) fn read(text: &str, notes: &mut Notes) -> Config {
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

    pub(super) fn read_key(&mut self, key: &str, value: &Value, notes: &mut Notes) {
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

pub(super) fn read_bool(key: &str, value: &Value, notes: &mut Notes) -> Option<bool> {
    let found = value.as_bool();
    if found.is_none() {
        notes.mistake(key, format!("{} is not true or false", shorten(value)));
    }
    found
}

pub(super) fn read_string<'v>(key: &str, value: &'v Value, notes: &mut Notes) -> Option<&'v str> {
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
pub(super) fn read_strings<'v>(key: &str, value: &'v Value, notes: &mut Notes) -> Vec<&'v str> {
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

pub(super) fn read_number(key: &str, value: &Value, low: u64, high: u64, notes: &mut Notes) -> Option<u64> {
    let found = value.as_u64().filter(|number| (low..=high).contains(number));
    if found.is_none() {
        notes.mistake(key, format!("{} is not a whole number from {low} to {high}", shorten(value)));
    }
    found
}

pub(super) fn read_name(value: &Value, notes: &mut Notes) -> Option<String> {
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

pub(super) fn read_aliases(value: &Value, notes: &mut Notes) -> Vec<String> {
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

pub(super) fn read_regions(key: &str, value: &Value, notes: &mut Notes) -> Vec<String> {
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

pub(super) fn read_env(value: &Value, notes: &mut Notes) -> Vec<(String, String)> {
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

pub(super) fn read_folder(key: &str, value: &Value, notes: &mut Notes) -> Option<String> {
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

pub(super) fn read_functions(value: &Value, notes: &mut Notes) -> Vec<FunctionRule> {
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

pub(super) fn read_runtime(key: &str, value: &Value, notes: &mut Notes) {
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

pub(super) fn read_globs(key: &str, value: &Value, notes: &mut Notes) -> Vec<String> {
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
pub(super) fn unknown<'k>(key: &str, known: impl Iterator<Item = &'k str>) -> String {
    let nearest = known.map(|other| (distance(key, other), other)).min();
    match nearest {
        Some((steps, other)) if steps <= 1 + other.len() / 4 => {
            format!("is not a known key; did you mean `{other}`?")
        }
        _ => "is not a known key".to_owned(),
    }
}

/// How many letters to change, add or drop, without regard to case.
pub(super) fn distance(one: &str, other: &str) -> usize {
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

pub(super) fn shorten(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { format!("{}…", text.chars().take(59).collect::<String>()) }
}
