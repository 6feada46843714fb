//! Reads a project as it lies in a folder: `now.json` or `vercel.json`, static files, and the functions under `api/`.
//!
//! Pure: it is given the listing and the configuration's text, and gives a [`Project`] or every mistake at once. Nothing is built here. The routes
//! that the platform's build would have written are made here instead, in its order, so that a project and a build output run on the same router.

mod config;
mod path_pattern;
mod redirects;
mod routes;
mod zero_config;

use std::fmt;

use self::config::Config;
use self::zero_config::{file_name, find_functions, find_statics, without_ending};
use crate::routing::{Output, Outputs, OutputsBuilder, RouteSpec, Router};

pub use self::routes::read_routes;

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
    use super::path_pattern::PathPattern;
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
