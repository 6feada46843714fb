//! One route: as it was written ([`RouteSpec`]), and compiled: does it match this request, and what do its templates become.
//!
//! Patterns run on `regex`, which is linear in the path. Only a pattern that needs look-around or a back-reference runs on `fancy-regex`, under
//! a step limit that is a routing error and not an endless request. Before either runs, the literal text that a pattern begins and ends with
//! is compared, so that thousands of redirects cost a few hash look-ups.
//!
//! What a visitor sent never gets to be syntax: a captured value is encoded for the place in a URL where it lands.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use http::HeaderMap;

/// How often `fancy-regex` may backtrack on one path before the request fails.
const BACKTRACKS_MAX: usize = 10_000;
/// Compiled size of one pattern. Real ones (all pages of a site in one alternation) take some 100 kB.
const PATTERN_BYTES_MAX: usize = 4 << 20;

/// A route in the words of `routes` in `vercel.json` and of `config.json`, with the aliases (`source`, `destination`, `statusCode`) folded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteSpec {
    /// Regular expression over the raw path; `^` and `$` are implied.
    pub src: Option<String>,
    /// A path or an absolute URL, with `$1` and `$name`.
    pub dest: Option<String>,
    /// Response headers, with `$1` and `$name` in names and values.
    pub headers: Vec<(String, String)>,
    /// The status; 301, 302, 303, 307 and 308 redirect.
    pub status: Option<u16>,
    /// Methods that it is for; none means all.
    pub methods: Vec<String>,
    /// Go on with the next route after this one.
    pub continue_: bool,
    /// Look `dest` up, and go on when it is not there.
    pub check: bool,
    /// Not a route but the start of a phase.
    pub handle: Option<String>,
    /// All of these must hold.
    pub has: Vec<ConditionSpec>,
    /// None of these may hold.
    pub missing: Vec<ConditionSpec>,
    /// Whether `src` minds the case. It does not by default.
    pub case_sensitive: bool,
    /// The headers also override those of a function.
    pub important: bool,
}

/// A `has` or `missing` item.
#[derive(Clone, Debug, PartialEq)]
pub struct ConditionSpec {
    /// Where to look.
    pub kind: ConditionKind,
    /// Name of the header, cookie or query parameter; none for the host.
    pub key: Option<String>,
    /// What the value must be; none: it only has to be there.
    pub value: Option<ValueSpec>,
}

/// The part of the request that a condition reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionKind {
    /// The host, without the port.
    Host,
    /// A request header.
    Header,
    /// A cookie.
    Cookie,
    /// A query parameter.
    Query,
}

/// What a condition asks of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueSpec {
    /// A regular expression for all of it; its named groups feed the templates.
    Regex(String),
    /// Tests that must all hold: `eq`, `neq`, `inc`, `ninc`, `pre`, `suf`, `sub`, `re`, `gt`, `gte`, `lt`, `lte`, with their operands.
    Tests(Vec<(String, Vec<String>)>),
}

/// What is wrong with a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMistake {
    /// Place in the list given to `Router::compile`.
    pub index: usize,
    /// The key (`src`, `has[1].value`).
    pub key: String,
    /// What was found.
    pub found: String,
    /// What would be right.
    pub expected: String,
}

impl fmt::Display for RouteMistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteMistake { index, key, found, expected } = self;
        write!(formatter, "routes[{index}].{key}: {found:?} is not {expected}")
    }
}

/// The step limit of a backtracking pattern was reached.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exhausted;

/// What a request offers to conditions.
pub(super) struct Facts<'a> {
    pub host: &'a str,
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
}

/// A compiled route.
#[derive(Debug)]
pub(super) struct Route {
    /// Place in the list it came from.
    pub index: usize,
    pattern: Pattern,
    methods: Vec<String>,
    has: Vec<Condition>,
    missing: Vec<Condition>,
    pub headers: Vec<(Template, Template)>,
    /// The `Location` header, which is a URL and is encoded as one.
    pub location: Option<UrlTemplate>,
    pub dest: Option<UrlTemplate>,
    pub status: Option<u16>,
    pub continues: bool,
    pub check: bool,
    pub important: bool,
    needs_groups: bool,
}

impl Route {
    /// Compiles one route, adding what is wrong with it to `mistakes`.
    pub fn compile(index: usize, spec: &RouteSpec, mistakes: &mut Vec<RouteMistake>) -> Option<Route> {
        let before = mistakes.len();
        let mut mistake = |key: String, found: &str, expected: String| {
            mistakes.push(RouteMistake { index, key, found: found.to_owned(), expected });
        };
        let src = spec.src.as_deref().unwrap_or_default();
        if src.is_empty() {
            mistake("src".into(), "nothing", "a regular expression or, for the start of a phase, `handle`".into());
        }
        if let Some(status) = spec.status.filter(|status| !(100..=999).contains(status)) {
            mistake("status".into(), &status.to_string(), "a status from 100 to 999".into());
        }
        let pattern = Pattern::compile(src, spec.case_sensitive)
            .map_err(|reason| mistake("src".into(), src, format!("a regular expression: {reason}")))
            .ok();
        let mut conditions = |name: &str, specs: &[ConditionSpec]| -> Vec<Condition> {
            let compile = |(place, spec): (usize, &ConditionSpec)| {
                let refuse = |(key, found, expected): (&str, String, String)| {
                    mistake(format!("{name}[{place}].{key}"), &found, expected)
                };
                Condition::compile(spec).map_err(refuse).ok()
            };
            specs.iter().enumerate().filter_map(compile).collect()
        };
        let has = conditions("has", &spec.has);
        let missing = conditions("missing", &spec.missing);
        let names = Names::of(pattern.as_ref(), &has);
        let mut headers = Vec::new();
        let mut location = None;
        for (name, value) in &spec.headers {
            if name.eq_ignore_ascii_case("location") {
                location = Some(UrlTemplate::compile(value, &names, true));
            } else {
                headers.push((Template::compile(name, &names), Template::compile(value, &names)));
            }
        }
        let dest = spec.dest.as_deref().map(|dest| UrlTemplate::compile(dest, &names, false));
        let methods = spec.methods.iter().map(|method| method.to_ascii_uppercase()).collect();
        let needs_groups = headers.iter().any(|(name, value)| name.has_groups() || value.has_groups())
            || location.iter().chain(&dest).any(UrlTemplate::has_groups);
        if mistakes.len() > before {
            return None;
        }
        Some(Route {
            index,
            pattern: pattern?,
            methods,
            has,
            missing,
            headers,
            location,
            dest,
            status: spec.status,
            continues: spec.continue_,
            check: spec.check,
            important: spec.important,
            needs_groups,
        })
    }

    /// Whether the route is for this request; if it is, with what its groups captured.
    pub fn matches<'p>(
        &self,
        method: &str,
        path: &'p str,
        facts: &Facts<'_>,
    ) -> Result<Option<Captured<'p>>, Exhausted> {
        if !self.methods.is_empty() && !self.methods.iter().any(|own| own == method) {
            return Ok(None);
        }
        if !self.pattern.is_match(path)? {
            return Ok(None);
        }
        let mut kept = Vec::new();
        for condition in &self.has {
            if !condition.holds(facts, &mut kept)? {
                return Ok(None);
            }
        }
        for condition in &self.missing {
            if condition.holds(facts, &mut Vec::new())? {
                return Ok(None);
            }
        }
        let groups = if self.needs_groups { self.pattern.groups(path)? } else { Vec::new() };
        Ok(Some(Captured { path, groups, kept }))
    }
}

// ---- patterns

/// A compiled `src` or condition, always anchored at both ends.
#[derive(Debug)]
pub(super) struct Pattern {
    engine: Engine,
    literals: Literals,
}

#[derive(Debug)]
enum Engine {
    /// Over bytes, so that `\w` and `.` mean what they mean to the PCRE and JavaScript engines for which the patterns were written.
    Linear(regex::bytes::Regex),
    Backtracking(Box<fancy_regex::Regex>),
}

impl Pattern {
    /// Compiles a pattern as `^(?:…)$`. The group is what makes `/a|/b` mean one of two paths; without it the anchors would belong to one
    /// alternative each, and `/a` would take everything below it.
    pub fn compile(source: &str, case_sensitive: bool) -> Result<Pattern, String> {
        let body = respell(source);
        let anchored = format!("^(?:{body})$");
        let linear = |unicode: bool| {
            regex::bytes::RegexBuilder::new(&anchored)
                .case_insensitive(!case_sensitive)
                .unicode(unicode)
                .size_limit(PATTERN_BYTES_MAX)
                .dfa_size_limit(1 << 20)
                .build()
        };
        // A class with letters beyond ASCII (`[é]`) only exists in Unicode mode.
        let engine = match linear(false).or_else(|_| linear(true)) {
            Ok(regex) => Engine::Linear(regex),
            Err(error) if needs_backtracking(&body) => {
                let built = fancy_regex::RegexBuilder::new(&anchored)
                    .case_insensitive(!case_sensitive)
                    .backtrack_limit(BACKTRACKS_MAX)
                    .delegate_size_limit(PATTERN_BYTES_MAX)
                    .build();
                Engine::Backtracking(Box::new(built.map_err(|fancy| {
                    format!("{} ({})", last_line(&fancy.to_string()), last_line(&error.to_string()))
                })?))
            }
            Err(error) => return Err(last_line(&error.to_string())),
        };
        Ok(Pattern { engine, literals: literals(&body) })
    }

    fn is_match(&self, text: &str) -> Result<bool, Exhausted> {
        match &self.engine {
            Engine::Linear(regex) => Ok(regex.is_match(text.as_bytes())),
            Engine::Backtracking(regex) => regex.is_match(text).map_err(|_| Exhausted),
        }
    }

    /// Where each numbered group matched; empty if the pattern does not match at all.
    fn groups(&self, text: &str) -> Result<Vec<Option<(usize, usize)>>, Exhausted> {
        match &self.engine {
            Engine::Linear(regex) => {
                let found = regex.captures(text.as_bytes());
                Ok(found
                    .map(|found| found.iter().map(|group| group.map(|group| (group.start(), group.end()))).collect())
                    .unwrap_or_default())
            }
            Engine::Backtracking(regex) => {
                let found = regex.captures(text).map_err(|_| Exhausted)?;
                Ok(found
                    .map(|found| found.iter().map(|group| group.map(|group| (group.start(), group.end()))).collect())
                    .unwrap_or_default())
            }
        }
    }

    fn names(&self) -> Vec<Option<String>> {
        match &self.engine {
            Engine::Linear(regex) => regex.capture_names().map(|name| name.map(str::to_owned)).collect(),
            Engine::Backtracking(regex) => regex.capture_names().map(|name| name.map(str::to_owned)).collect(),
        }
    }
}

fn last_line(message: &str) -> String {
    message.lines().last().unwrap_or_default().trim().trim_start_matches("error: ").to_owned()
}

fn needs_backtracking(source: &str) -> bool {
    let escaped_digit = || source.as_bytes().windows(2).any(|pair| matches!(pair, [b'\\', b'1'..=b'9']));
    ["(?=", "(?!", "(?<=", "(?<!", "(?>", "\\k<", "++", "*+", "?+"].iter().any(|mark| source.contains(mark))
        || escaped_digit()
}

/// Spells a PCRE or JavaScript pattern in the way of the Rust engines, which read a few things differently: `\/`, `\<`, a bare `{`, and, inside
/// a class, a bare `[`, `&&`, `--`, `~~`, a `-` after `\w`, and the classes `[]` and `[^]`.
fn respell(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + 8);
    let mut rest = source;
    let mut in_class = false;
    let mut after_class_escape = false;
    while let Some(first) = rest.chars().next() {
        let tail = rest.get(first.len_utf8()..).unwrap_or_default();
        let was_class_escape = std::mem::take(&mut after_class_escape);
        if first == '\\' {
            let Some(second) = tail.chars().next() else {
                out.push('\\');
                break;
            };
            match second {
                '/' | '<' | '>' => out.push(second),
                _ => {
                    out.push('\\');
                    out.push(second);
                }
            }
            after_class_escape = in_class && matches!(second, 'w' | 'W' | 'd' | 'D' | 's' | 'S');
            rest = tail.get(second.len_utf8()..).unwrap_or_default();
            // `\x{41}`, `\u{41}`, `\p{L}`: the brace belongs to the escape.
            if matches!(second, 'x' | 'u' | 'p' | 'P')
                && rest.starts_with('{')
                && let Some(end) = rest.find('}')
            {
                out.push_str(rest.get(..=end).unwrap_or_default());
                rest = rest.get(end + 1..).unwrap_or_default();
            }
            continue;
        }
        rest = tail;
        if in_class {
            match first {
                '[' if !tail.starts_with(':') => out.push_str("\\["),
                '&' | '~' => {
                    out.push('\\');
                    out.push(first);
                }
                '-' if was_class_escape || tail.starts_with('-') => out.push_str("\\-"),
                ']' => {
                    in_class = false;
                    out.push(']');
                }
                _ => out.push(first),
            }
            continue;
        }
        match first {
            '[' if tail.starts_with("^]") => {
                out.push_str("[\\s\\S]");
                rest = tail.get(2..).unwrap_or_default();
            }
            '[' if tail.starts_with(']') => {
                out.push_str("[^\\s\\S]");
                rest = tail.get(1..).unwrap_or_default();
            }
            '[' => {
                in_class = true;
                out.push('[');
                if let Some(after) = tail.strip_prefix('^') {
                    out.push('^');
                    rest = after;
                }
            }
            '{' if !is_repetition(tail) => out.push_str("\\{"),
            _ => out.push(first),
        }
    }
    out
}

/// Whether the text after a `{` makes it a repetition: `2}`, `2,}`, `2,3}`.
fn is_repetition(tail: &str) -> bool {
    tail.split_once('}').is_some_and(|(inside, _)| {
        let (low, high) = inside.split_once(',').unwrap_or((inside, "0"));
        !low.is_empty()
            && low.bytes().all(|byte| byte.is_ascii_digit())
            && high.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Text that every match of a pattern has, lower-cased.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Literals {
    /// At its start.
    pub prefix: Box<[u8]>,
    /// At its end.
    pub suffix: Box<[u8]>,
    /// Somewhere, as bits of a [`Trigrams`].
    marks: [u16; MARKS],
}

/// Finds the text that every match has. Too little is always right; a doubt gives nothing.
fn literals(body: &str) -> Literals {
    let bare = body.strip_prefix('^').unwrap_or(body);
    if !body.is_ascii() || has_top_level_choice(bare) || has_flags(bare) {
        return Literals::default();
    }
    let Some(runs) = runs(bare.as_bytes()) else {
        return Literals::default();
    };
    let prefix = runs.first().filter(|run| run.starts).map(|run| run.text.clone()).unwrap_or_default();
    let suffix = runs.last().filter(|run| run.ends).map(|run| run.text.clone()).unwrap_or_default();
    let mut marks = [0; MARKS];
    // The last ones tell most: `/section-17/` and `/section-18/` differ late.
    let windows = runs.iter().rev().flat_map(|run| run.text.windows(3).rev());
    for (mark, window) in marks.iter_mut().zip(windows) {
        *mark = Trigrams::bit(window);
    }
    Literals { prefix: prefix.into(), suffix: suffix.into(), marks }
}

/// Literal text outside of all groups.
#[derive(Default)]
struct Run {
    text: Vec<u8>,
    starts: bool,
    ends: bool,
}

/// The literal runs of a pattern without a choice, or nothing if it holds what is not understood here.
fn runs(bytes: &[u8]) -> Option<Vec<Run>> {
    let mut runs = vec![Run { starts: true, ..Run::default() }];
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let (literal, width) = match byte {
            b'\\' => match bytes.get(at + 1)? {
                escaped if escaped.is_ascii_punctuation() => (Some(*escaped), 2),
                b'd' | b'D' | b's' | b'S' | b'w' | b'W' => (None, 2),
                _ => return None,
            },
            b'$' if at + 1 == bytes.len() => {
                at += 1;
                continue;
            }
            b'[' => (None, class_width(bytes.get(at..)?)?),
            b'(' => (None, group_width(bytes.get(at..)?)?),
            b'^' | b'$' | b'.' => (None, 1),
            b')' | b'|' | b'?' | b'*' | b'+' | b'{' => return None,
            _ => (Some(byte.to_ascii_lowercase()), 1),
        };
        at += width;
        // What follows says how often: only `+` needs the character at least once, and after it another of the same may come.
        let once = !matches!(bytes.get(at), Some(b'?' | b'*' | b'{' | b'+'));
        let needed = once || bytes.get(at) == Some(&b'+');
        if let (Some(literal), true, Some(run)) = (literal, needed, runs.last_mut()) {
            run.text.push(literal);
        }
        if literal.is_none() || !once {
            runs.push(Run::default());
        }
        if !once {
            at += if bytes.get(at) == Some(&b'{') {
                bytes.get(at..)?.iter().position(|byte| *byte == b'}')? + 1
            } else {
                1
            };
            // `+?` and `++`: lazy and possessive.
            at += usize::from(matches!(bytes.get(at), Some(b'?' | b'+')));
        }
    }
    if let Some(run) = runs.last_mut() {
        run.ends = true;
    }
    Some(runs)
}

/// Length of the class at the start of a pattern. It was respelled, so that no bare `[` or `]` is inside.
fn class_width(bytes: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match bytes.get(at)? {
            b'\\' => at += 2,
            b'[' => return None,
            b']' => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// Length of the group at the start of a pattern.
fn group_width(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0, 0usize);
    loop {
        match bytes.get(at)? {
            b'\\' => at += 2,
            b'[' => at += class_width(bytes.get(at..)?)?,
            byte => {
                depth += usize::from(*byte == b'(');
                depth -= usize::from(*byte == b')');
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
        }
    }
}

/// How many marks of a pattern are compared.
const MARKS: usize = 8;

/// Which three-letter pieces a path has, as a small Bloom filter. It may say yes for a piece that is not there, never no for one that is.
struct Trigrams([u64; 64]);

impl Trigrams {
    fn of(path: &[u8]) -> Trigrams {
        // Bit 0 is the mark of a pattern that has fewer than all marks.
        let mut bits = [0; 64];
        bits[0] = 1;
        for window in path.windows(3) {
            let bit = Trigrams::bit(window);
            bits[usize::from(bit >> 6)] |= 1 << (bit & 63);
        }
        Trigrams(bits)
    }

    /// A bit from 0 to 4095.
    fn bit(window: &[u8]) -> u16 {
        let joined = window.iter().fold(0u32, |joined, byte| joined << 8 | u32::from(*byte));
        (joined.wrapping_mul(0x9e37_79b1) >> 20) as u16
    }

    fn have(&self, marks: &[u16; MARKS]) -> bool {
        marks.iter().all(|bit| self.0[usize::from(bit >> 6)] & (1 << (bit & 63)) != 0)
    }
}

fn has_top_level_choice(source: &str) -> bool {
    let (mut depth, mut in_class, mut escaped) = (0usize, false, false);
    for byte in source.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b']' => in_class = false,
            _ if in_class => {}
            b'[' => in_class = true,
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b'|' if depth == 0 => return true,
            _ => {}
        }
    }
    false
}

/// Whether there is a group that changes how the rest is read: `(?i)`, `(?x:…)`.
fn has_flags(source: &str) -> bool {
    source
        .match_indices("(?")
        .any(|(at, _)| source.as_bytes().get(at + 2).is_some_and(|byte| byte.is_ascii_lowercase() || *byte == b'-'))
}

// ---- finding the routes that can match

/// The routes of a phase by the literal text that their paths begin with.
///
/// 2,000 redirects have 2,000 prefixes of some 30 lengths, so a path costs 30 hash look-ups and then a pattern or two. Routes that differ later
/// (`/(.*)/tag-17`) are told apart by their ends and by the three-letter pieces that they need. A `RegexSet` was the other way: its lazily
/// built automaton is large, and a crawler with ever new paths keeps it cold.
#[derive(Debug, Default)]
pub(super) struct Index {
    lengths: Vec<usize>,
    by_prefix: HashMap<Box<[u8]>, Vec<Candidate>, ahash::RandomState>,
}

#[derive(Debug)]
struct Candidate {
    place: u32,
    marks: [u16; MARKS],
    suffix: Box<[u8]>,
}

impl Index {
    pub fn of(routes: &[Route]) -> Index {
        let mut index = Index::default();
        for (place, route) in routes.iter().enumerate() {
            let Literals { prefix, suffix, marks } = &route.pattern.literals;
            let candidate = Candidate { place: place as u32, marks: *marks, suffix: suffix.clone() };
            index.by_prefix.entry(prefix.clone()).or_default().push(candidate);
        }
        index.lengths = index.by_prefix.keys().map(|prefix| prefix.len()).collect();
        index.lengths.sort_unstable();
        index.lengths.dedup();
        index
    }

    /// The places of the routes from `from` on that may match a path, in order.
    pub fn candidates(&self, path: &str, from: usize) -> Vec<u32> {
        let lower = path.to_ascii_lowercase();
        let lower = lower.as_bytes();
        let trigrams = Trigrams::of(lower);
        let mut places = Vec::new();
        for length in &self.lengths {
            let Some(start) = lower.get(..*length) else {
                break;
            };
            let Some(candidates) = self.by_prefix.get(start) else {
                continue;
            };
            let fits = |candidate: &&Candidate| {
                candidate.place as usize >= from
                    && trigrams.have(&candidate.marks)
                    && lower.ends_with(&candidate.suffix)
            };
            places.extend(candidates.iter().filter(fits).map(|candidate| candidate.place));
        }
        places.sort_unstable();
        places
    }
}

// ---- conditions

#[derive(Debug)]
struct Condition {
    kind: ConditionKind,
    key: String,
    tests: Vec<Test>,
    /// The name under which the whole value can be used in templates.
    keep: Option<String>,
}

#[derive(Debug)]
enum Test {
    Matches(Pattern),
    Equals(String),
    Differs(String),
    Among(Vec<String>),
    NotAmong(Vec<String>),
    Begins(String),
    Ends(String),
    Contains(String),
    Compares(fn(f64, f64) -> bool, f64),
}

impl Condition {
    fn compile(spec: &ConditionSpec) -> Result<Condition, (&'static str, String, String)> {
        let key = spec.key.clone().unwrap_or_default();
        if spec.kind != ConditionKind::Host && key.is_empty() {
            return Err(("key", "nothing".into(), "the name to look for".into()));
        }
        let pattern = |source: &str| {
            Pattern::compile(source, true)
                .map_err(|reason| ("value", source.to_owned(), format!("a regular expression: {reason}")))
        };
        let tests = match &spec.value {
            None if spec.kind == ConditionKind::Host => {
                return Err(("value", "nothing".into(), "a host".into()));
            }
            None => Vec::new(),
            Some(ValueSpec::Regex(source)) => vec![Test::Matches(pattern(source)?)],
            Some(ValueSpec::Tests(tests)) => {
                let mut compiled = Vec::new();
                for (name, operands) in tests {
                    let operand = || operands.first().cloned().unwrap_or_default();
                    let number =
                        || operand().parse::<f64>().map_err(|_| ("value", operand(), format!("a number for `{name}`")));
                    compiled.push(match name.as_str() {
                        "eq" => Test::Equals(operand()),
                        "neq" => Test::Differs(operand()),
                        "inc" => Test::Among(operands.clone()),
                        "ninc" => Test::NotAmong(operands.clone()),
                        "pre" => Test::Begins(operand()),
                        "suf" => Test::Ends(operand()),
                        "sub" => Test::Contains(operand()),
                        "re" => Test::Matches(pattern(&operand())?),
                        "gt" => Test::Compares(|value, bound| value > bound, number()?),
                        "gte" => Test::Compares(|value, bound| value >= bound, number()?),
                        "lt" => Test::Compares(|value, bound| value < bound, number()?),
                        "lte" => Test::Compares(|value, bound| value <= bound, number()?),
                        _ => {
                            return Err((
                                "value",
                                name.clone(),
                                "eq, neq, inc, ninc, pre, suf, sub, re, gt, gte, lt or lte".into(),
                            ));
                        }
                    });
                }
                compiled
            }
        };
        let keep = match (spec.kind, &spec.value) {
            (ConditionKind::Host, _) => Some("host".to_owned()),
            (_, None) => Some(letters(&key)).filter(|name| !name.is_empty()),
            _ => None,
        };
        Ok(Condition { kind: spec.kind, key, tests, keep })
    }

    /// Whether the request meets the condition; what it captures is added to `kept`.
    fn holds(&self, facts: &Facts<'_>, kept: &mut Vec<Kept>) -> Result<bool, Exhausted> {
        // The last of several values speaks first, as the platform keeps the last of a repeated parameter.
        for value in self.values(facts).into_iter().rev() {
            let mut captured = Vec::new();
            let mut holds = true;
            for test in &self.tests {
                holds = holds && test.holds(&value, &mut captured)?;
            }
            if !holds {
                continue;
            }
            captured.extend(self.keep.clone().map(|name| (name, value.clone())));
            let decoded = matches!(self.kind, ConditionKind::Query | ConditionKind::Cookie);
            kept.extend(captured.into_iter().map(|(name, value)| Kept { name, value, decoded }));
            return Ok(true);
        }
        Ok(false)
    }

    fn values(&self, facts: &Facts<'_>) -> Vec<String> {
        match self.kind {
            ConditionKind::Host => vec![facts.host.to_ascii_lowercase()],
            ConditionKind::Header => {
                let parts = facts.headers.get_all(self.key.as_str());
                let joined: Vec<Cow<'_, str>> =
                    parts.iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
                if joined.is_empty() { Vec::new() } else { vec![joined.join(", ")] }
            }
            ConditionKind::Cookie => {
                let lines = facts.headers.get_all(http::header::COOKIE);
                let mut values = Vec::new();
                for line in lines {
                    let line = String::from_utf8_lossy(line.as_bytes()).into_owned();
                    let pairs = line.split(';').filter_map(|pair| pair.trim().split_once('='));
                    values.extend(
                        pairs.filter(|(name, _)| *name == self.key).map(|(_, value)| decode(value.trim_matches('"'))),
                    );
                }
                values
            }
            ConditionKind::Query => {
                let pairs = query_pairs(facts.query.unwrap_or_default());
                pairs
                    .filter(|(name, _)| form_decode(name) == self.key)
                    .map(|(_, value)| form_decode(value.unwrap_or_default()))
                    .collect()
            }
        }
    }
}

impl Test {
    fn holds(&self, value: &str, captured: &mut Vec<(String, String)>) -> Result<bool, Exhausted> {
        Ok(match self {
            Test::Matches(pattern) => {
                if !pattern.is_match(value)? {
                    return Ok(false);
                }
                let names = pattern.names();
                if names.iter().any(Option::is_some) {
                    let groups = pattern.groups(value)?;
                    for (name, group) in names.into_iter().zip(groups) {
                        let text = group.and_then(|(start, end)| value.get(start..end)).unwrap_or_default();
                        captured.extend(name.map(|name| (name, text.to_owned())));
                    }
                }
                true
            }
            Test::Equals(other) => value == other,
            Test::Differs(other) => value != other,
            Test::Among(others) => others.iter().any(|other| other == value),
            Test::NotAmong(others) => others.iter().all(|other| other != value),
            Test::Begins(start) => value.starts_with(start.as_str()),
            Test::Ends(end) => value.ends_with(end.as_str()),
            Test::Contains(part) => value.contains(part.as_str()),
            Test::Compares(compare, bound) => value.trim().parse::<f64>().is_ok_and(|value| compare(value, *bound)),
        })
    }
}

fn letters(key: &str) -> String {
    key.chars().filter(char::is_ascii_alphabetic).collect()
}

// ---- what was captured

/// What a match offers to templates.
#[derive(Debug, Default)]
pub(super) struct Captured<'p> {
    path: &'p str,
    groups: Vec<Option<(usize, usize)>>,
    kept: Vec<Kept>,
}

/// A value that a condition keeps.
#[derive(Debug)]
struct Kept {
    name: String,
    value: String,
    /// Whether it was percent-decoded, so that a `%` in it is a percent sign.
    decoded: bool,
}

impl Captured<'_> {
    /// The value of a piece, and whether it is decoded. A group that took no part gives nothing.
    fn value<'a>(&'a self, piece: &'a Piece) -> (&'a str, bool) {
        match piece {
            Piece::Text(text) => (text, false),
            Piece::Group(group) => {
                let range = self.groups.get(*group).copied().flatten();
                (range.and_then(|(start, end)| self.path.get(start..end)).unwrap_or_default(), false)
            }
            Piece::Kept(name) => {
                let kept = self.kept.iter().rev().find(|kept| kept.name == *name);
                kept.map_or(("", false), |kept| (kept.value.as_str(), kept.decoded))
            }
        }
    }
}

// ---- templates

/// The names that `$name` can mean in the templates of a route.
#[derive(Default)]
pub(super) struct Names {
    known: Vec<(String, Piece)>,
}

impl Names {
    fn of(pattern: Option<&Pattern>, has: &[Condition]) -> Names {
        let mut known: Vec<(String, Piece)> = Vec::new();
        // What a condition captured goes before a group of the same name.
        for condition in has {
            let groups = condition
                .tests
                .iter()
                .filter_map(|test| if let Test::Matches(pattern) = test { Some(pattern.names()) } else { None });
            for name in groups.flatten().flatten().chain(condition.keep.clone()) {
                known.push((name.clone(), Piece::Kept(name)));
            }
        }
        for (group, name) in pattern.map(Pattern::names).unwrap_or_default().into_iter().enumerate().skip(1) {
            known.push((group.to_string(), Piece::Group(group)));
            known.extend(name.map(|name| (name, Piece::Group(group))));
        }
        // Longest first, as the platform replaces them: `$path` must not eat the start of `$pathname`. The sort is stable.
        known.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        Names { known }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    Group(usize),
    Kept(String),
}

/// A text with `$1` and `$name` in it. Names that nothing captures stay as they are: `$d$slug` is a real file name of Next.js.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Template(Vec<Piece>);

/// Where a captured value lands, which decides what is encoded in it.
#[derive(Clone, Copy)]
enum Place {
    Authority,
    Path,
    Query,
    Fragment,
}

impl Template {
    fn compile(text: &str, names: &Names) -> Template {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            literal.push_str(before);
            match names.known.iter().find(|(name, _)| after.starts_with(name.as_str())) {
                Some((name, piece)) => {
                    pieces.extend(
                        Some(std::mem::take(&mut literal)).filter(|literal| !literal.is_empty()).map(Piece::Text),
                    );
                    pieces.push(piece.clone());
                    rest = after.get(name.len()..).unwrap_or_default();
                }
                None => {
                    literal.push('$');
                    rest = after;
                }
            }
        }
        literal.push_str(rest);
        pieces.extend(Some(literal).filter(|literal| !literal.is_empty()).map(Piece::Text));
        Template(pieces)
    }

    fn has_groups(&self) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Group(_)))
    }

    /// The text with every value as it was captured. For headers; what is no valid header is dropped there.
    pub fn plain(&self, captured: &Captured<'_>) -> String {
        self.0.iter().map(|piece| captured.value(piece).0).collect()
    }

    fn encoded(&self, captured: &Captured<'_>, place: Place) -> String {
        let mut out = String::new();
        for piece in &self.0 {
            let (text, decoded) = captured.value(piece);
            if matches!(piece, Piece::Text(_)) {
                out.push_str(text);
            } else {
                encode_into(&mut out, text, decoded, place);
            }
        }
        out
    }
}

fn encode_into(out: &mut String, text: &str, decoded: bool, place: Place) {
    for byte in text.bytes() {
        let syntax = match place {
            Place::Authority => !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')),
            Place::Path => matches!(byte, b'?' | b'#' | b'\\'),
            Place::Query => matches!(byte, b'&' | b'+' | b'#' | b'='),
            Place::Fragment => false,
        };
        if byte <= b' ' || byte >= 0x7f || syntax || (decoded && byte == b'%') {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            out.push('%');
            out.push(DIGITS[usize::from(byte >> 4)] as char);
            out.push(DIGITS[usize::from(byte & 15)] as char);
        } else {
            out.push(byte as char);
        }
    }
}

/// A `dest` or a `Location`, taken apart before anything is put into it, so that a captured `?` or `/` cannot move the borders.
#[derive(Debug)]
pub(super) struct UrlTemplate {
    /// `https:` with the authority template, or a `//host` without a scheme.
    origin: Option<(String, Template)>,
    path: Template,
    query: Vec<(Template, Option<Template>)>,
    fragment: Option<Template>,
}

/// A rendered [`UrlTemplate`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Url {
    /// `https://example.com`, in front of the path, when it is not ours.
    pub origin: Option<String>,
    pub path: String,
    pub query: Query,
    pub fragment: Option<String>,
}

/// Query parameters, encoded, each name once.
pub(super) type Query = Vec<(String, Option<String>)>;

impl UrlTemplate {
    /// `for_client` keeps what only a browser understands (`//host`, a fragment); for a `dest` a doubled slash is a slip of the pen.
    fn compile(text: &str, names: &Names, for_client: bool) -> UrlTemplate {
        let (text, fragment) = text.split_once('#').map_or((text, None), |(text, fragment)| (text, Some(fragment)));
        let (text, query) = text.split_once('?').map_or((text, ""), |(text, query)| (text, query));
        let scheme = ["http:", "https:", ""].into_iter().find(|scheme| {
            let has_scheme = text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
            has_scheme
                && text.get(scheme.len()..).is_some_and(|rest| rest.starts_with("//"))
                && (for_client || !scheme.is_empty())
        });
        let (origin, path) = match scheme {
            Some(scheme) => {
                let rest = text.get(scheme.len() + 2..).unwrap_or_default();
                let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                (Some((scheme.to_owned(), Template::compile(authority, names))), path)
            }
            None => (None, text),
        };
        let query = query_pairs(query)
            .map(|(name, value)| (Template::compile(name, names), value.map(|value| Template::compile(value, names))))
            .collect();
        UrlTemplate {
            origin,
            path: Template::compile(path, names),
            query,
            fragment: fragment.map(|fragment| Template::compile(fragment, names)),
        }
    }

    fn has_groups(&self) -> bool {
        let query = self
            .query
            .iter()
            .any(|(name, value)| name.has_groups() || value.as_ref().is_some_and(Template::has_groups));
        query
            || self.path.has_groups()
            || self.origin.iter().any(|(_, authority)| authority.has_groups())
            || self.fragment.iter().any(Template::has_groups)
    }

    pub fn render(&self, captured: &Captured<'_>) -> Url {
        let mut query: Query = Vec::new();
        for (name, value) in &self.query {
            let name = name.encoded(captured, Place::Query);
            let value = value.as_ref().map(|value| value.encoded(captured, Place::Query));
            query.retain(|(other, _)| *other != name);
            query.push((name, value));
        }
        Url {
            origin: self
                .origin
                .as_ref()
                .map(|(scheme, authority)| format!("{scheme}//{}", authority.encoded(captured, Place::Authority))),
            path: self.path.encoded(captured, Place::Path),
            query,
            fragment: self.fragment.as_ref().map(|fragment| fragment.encoded(captured, Place::Fragment)),
        }
    }
}

// ---- query strings

/// The parameters of a query string, encoded as they stand. Empty ones are left out.
pub(super) fn query_pairs(query: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').map_or((pair, None), |(name, value)| (name, Some(value))))
}

/// `first`, byte for byte, and after it the parameters of `second` whose names `first` does not have.
pub(super) fn merge_queries<'q>(first: &str, second: impl Iterator<Item = (&'q str, Option<&'q str>)>) -> String {
    let taken: Vec<String> = query_pairs(first).map(|(name, _)| form_decode(name)).collect();
    let mut merged = first.to_owned();
    for (name, value) in second {
        if taken.contains(&form_decode(name)) {
            continue;
        }
        if !merged.is_empty() {
            merged.push('&');
        }
        merged.push_str(name);
        if let Some(value) = value {
            merged.push('=');
            merged.push_str(value);
        }
    }
    merged
}

fn form_decode(text: &str) -> String {
    if text.contains('+') { decode(&text.replace('+', " ")) } else { decode(text) }
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_pattern(source: &str, path: &str, expected: bool) {
        let pattern = Pattern::compile(source, false).unwrap_or_else(|reason| panic!("{source}: {reason}"));
        assert_eq!(pattern.is_match(path), Ok(expected), "{source} on {path}");
        let lower = path.to_ascii_lowercase();
        let Literals { prefix, suffix, marks } = &pattern.literals;
        let may = lower.as_bytes().starts_with(prefix)
            && lower.as_bytes().ends_with(suffix)
            && Trigrams::of(lower.as_bytes()).have(marks);
        assert!(may || !expected, "the literals of {source} refuse {path}");
    }

    #[test]
    fn broken_patterns_are_refused_with_a_reason() {
        for source in ["(", "[a", "*", "(?<a>x)(?<a>y)", "a{3,2}", "(?=", "\\k<nope>(?=x)", "\\"] {
            assert!(Pattern::compile(source, false).is_err(), "{source}");
        }
    }

    #[test]
    fn patterns_are_anchored_at_both_ends() {
        check_pattern("^/?", "/index", false);
        check_pattern("^/?", "/", true);
        check_pattern("/404/?", "/404/x", false);
        check_pattern("/a|/b", "/a/x", false);
        check_pattern("^/a$|^/b$", "/b", true);
        check_pattern("/.*", "x/y", false);
        check_pattern("/ABOUT", "/about", true);
    }

    #[test]
    fn pcre_and_javascript_spellings_are_read() {
        check_pattern(r"\/a\/b", "/a/b", true);
        check_pattern(r"/[\w-.]+", "/a-b.c", true);
        check_pattern(r"/[^]x", "/yx", true);
        check_pattern(r"/[]x", "/x", false);
        check_pattern(r"/[[]x", "/[x", true);
        check_pattern(r"/[a&&b]", "/&", true);
        check_pattern(r"/{x}", "/{x}", true);
        check_pattern(r"/x{2}", "/xx", true);
        check_pattern(r"/x{2,}y", "/xxxy", true);
        check_pattern(r"/\<", "/<", true);
        check_pattern(r"/\x{41}", "/a", true);
        check_pattern(r"/x\x41", "/xA", true);
        check_pattern(r"/[é]", "/é", true);
        check_pattern(r"/(a)\1", "/aa", true);
        check_pattern(r"/(?!api).*", "/apis", false);
        check_pattern(r"/(?!api).*", "/about", true);
        check_pattern(r"/(?<x>a)(?P<y>b)", "/ab", true);
        check_pattern(r"/x\$", "/x$", true);
        check_pattern(r"/\d", "/d", false);
    }

    #[test]
    fn literals_never_say_too_much() {
        let check = |body: &str, prefix: &str, suffix: &str| {
            let Literals { prefix: found_prefix, suffix: found_suffix, .. } = literals(body);
            let found = (
                String::from_utf8_lossy(&found_prefix).into_owned(),
                String::from_utf8_lossy(&found_suffix).into_owned(),
            );
            assert_eq!(found, (prefix.to_owned(), suffix.to_owned()), "{body}");
        };
        check("^/Old/([^/]+)$", "/old/", "");
        check("/a.b", "/a", "b");
        check(r"/a\.b", "/a.b", "/a.b");
        check("/ab?", "/a", "");
        check("/ab*c", "/a", "c");
        check("/ab+c", "/ab", "c");
        check("/ab{0}c", "/a", "c");
        check("/a|/b", "", "");
        check("/(a|b)/x", "/", "/x");
        check("(?i)/a", "", "");
        check("/é", "", "");
        check(r"/a\d", "/a", "");
        check(r"/a\d/b", "/a", "/b");
        check(r"/(.*)\.html", "/", ".html");
        check(r"/(.*)\-x", "/", "-x");
        check(r"/x\$", "/x$", "/x$");
        check("/only", "/only", "/only");
        check("/ab+?", "/ab", "");
        check("/a{2}bc", "/", "bc");
        check(r"/a\x41", "", "");
        check("/[a(]/((x|y)[)])*/z$", "/", "/z");
        check("", "", "");
        check("$", "", "");
    }

    #[test]
    fn literals_of_any_pattern_refuse_no_match() {
        const PARTS: [&str; 28] = [
            "/", "a", "b", "A", "ab", "abc", "(a|b)", "(", ")", "?", "*", "+", "{2}", "{0,1}", "[ab]", "[^/]", ".",
            "\\.", "\\d", "1", "|", "(?:", "(?!a)", "$", "^", "\\x61", "-", "(?i)",
        ];
        const TEXTS: [&str; 10] = ["/", "a", "b", "ab", "abc", "1", ".", "-", "A", "bb"];
        let mut state = 5u64;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % bound as u64) as usize
        };
        let (mut patterns, mut matches) = (0, 0);
        for _ in 0..6_000 {
            let source: String = (0..1 + below(7)).map(|_| PARTS[below(PARTS.len())]).collect();
            let Ok(pattern) = Pattern::compile(&source, false) else {
                continue;
            };
            patterns += 1;
            for _ in 0..20 {
                let text: String = (0..below(6)).map(|_| TEXTS[below(TEXTS.len())]).collect();
                if pattern.is_match(&text) == Ok(true) {
                    matches += 1;
                    check_pattern(&source, &text, true);
                }
            }
        }
        assert!(patterns > 1_000 && matches > 1_000, "{patterns} patterns, {matches} matches");
    }

    #[test]
    fn runaway_pattern_is_stopped() {
        let pattern = Pattern::compile(r"/(?:(?!x)a|a)*b", false).expect("it compiles");
        assert_eq!(pattern.is_match(&format!("/{}", "a".repeat(64))), Err(Exhausted));
    }

    #[test]
    fn index_gives_candidates_in_order_and_misses_none() {
        let sources = ["/(.*)", "/b", "/(.*)/x", "/a/(.*)", "/A/b", "(/a|/b)", ".*"];
        let mut mistakes = Vec::new();
        let compile = |(index, src): (usize, &&str)| {
            Route::compile(index, &RouteSpec { src: Some((*src).to_owned()), ..RouteSpec::default() }, &mut mistakes)
        };
        let routes: Vec<Route> = sources.iter().enumerate().filter_map(compile).collect();
        let index = Index::of(&routes);
        assert_eq!(index.candidates("/a/B", 0), [0, 3, 4, 5, 6]);
        assert_eq!(index.candidates("/a/b", 4), [4, 5, 6]);
        assert_eq!(index.candidates("", 0), [5, 6]);
        assert!(mistakes.is_empty());
    }

    #[track_caller]
    fn check_url(src: &str, has: &[(&str, &str)], dest: &str, path: &str, expected: &str) {
        let condition = |(key, value): &(&str, &str)| ConditionSpec {
            kind: ConditionKind::Header,
            key: Some((*key).to_owned()),
            value: Some(ValueSpec::Regex((*value).to_owned())),
        };
        let spec = RouteSpec {
            src: Some(src.to_owned()),
            dest: Some(dest.to_owned()),
            has: has.iter().map(condition).collect(),
            ..RouteSpec::default()
        };
        let mut mistakes = Vec::new();
        let route = Route::compile(0, &spec, &mut mistakes).unwrap_or_else(|| panic!("{mistakes:?}"));
        let mut headers = HeaderMap::new();
        headers.insert("seg", http::HeaderValue::from_static("/a?b#c d%41"));
        let facts = Facts { host: "h", query: None, headers: &headers };
        let captured = route.matches("GET", path, &facts).expect("no limit").expect("a match");
        let url = route.dest.as_ref().expect("a dest").render(&captured);
        let query: Vec<String> =
            url.query.iter().map(|(name, value)| format!("{name}={}", value.as_deref().unwrap_or("-"))).collect();
        assert_eq!(format!("{}|{}|{}", url.origin.unwrap_or_default(), url.path, query.join("&")), expected);
    }

    #[test]
    fn captured_values_never_become_syntax() {
        check_url("/u/(.*)", &[], "/api?id=$1&x=1", "/u/a&x=2+3=4#", "|/api|id=a%26x%3D2%2B3%3D4%23&x=1");
        check_url(
            "/p/(.*)",
            &[],
            "https://$1.example.com/y",
            "/p/evil.com/%2f",
            "https://evil.com%2F%252f.example.com|/y|",
        );
        check_url("/x", &[("seg", "(?<s>.*)")], "/f$s?q=$s", "/x", "|/f/a%3Fb%23c%20d%41|q=/a?b%23c%20d%41");
        check_url("/(.*)", &[], "/f/$1", "/a\\b", "|/f/a%5Cb|");
    }

    #[test]
    fn templates_know_their_groups_and_leave_the_rest() {
        check_url("/(a)?(b)", &[], "/$1-$2-$3-$0", "/b", "|/-b-$3-$0|");
        check_url("/(?<path>a)(?<pathname>b)", &[], "/$pathname/$path/$pathx/$1", "/ab", "|/b/a/ax/a|");
        check_url(
            "/p/(?<nxtPid>x)(?<segment>/y)",
            &[],
            "/p/[id].segments/p/$d$id$segment?nxtPid=$nxtPid",
            "/p/x/y",
            "|/p/[id].segments/p/$d$id/y|nxtPid=x",
        );
        check_url("/(?<s>a)", &[("seg", ".(?<s>.).*")], "/$s", "/a", "|/a|");
        check_url("/(.)", &[], "/x?a=1&a=2&&b&c=$1", "/z", "|/x|a=2&b=-&c=z");
        check_url("/((((((((((.))))))))))", &[], "/$10$11", "/z", "|/zz1|");
    }
}
