//! `redirects`, `rewrites` and `headers`: turned into the routes that the platform's build would have made of them.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::config::{read_bool, read_number, read_string, shorten, unknown};
use super::path_pattern::PathPattern;
use super::routes::{check_header, read_conditions};
use super::{Notes, ROUTES_MAX};
use crate::routing::{ConditionKind, ConditionSpec, RouteSpec, ValueSpec};

pub(super) type Read = fn(&str, &Map<String, Value>, &Source, &mut Notes) -> Option<RouteSpec>;

/// What an item of redirects, rewrites or headers matches.
pub(super) struct Source {
    pub(super) pattern: PathPattern,
    /// Names that `has` captures, after those of the pattern.
    pub(super) has_names: Vec<String>,
}

/// Reads a list of redirects, rewrites or headers: what they have in common, and with `read` the rest.
pub(super) fn read_list(
    list: &str,
    value: &Value,
    known: &[&str],
    notes: &mut Notes,
    read: Read,
) -> Vec<(RouteSpec, String)> {
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

pub(super) fn read_source(
    at: &str,
    keys: &Map<String, Value>,
    has: &[ConditionSpec],
    notes: &mut Notes,
) -> Option<Source> {
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
pub(super) fn captured_names(condition: &ConditionSpec) -> Vec<String> {
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

pub(super) fn group_names(source: &str) -> Vec<String> {
    let after = source.split("(?<").skip(1).filter(|rest| !rest.starts_with(['=', '!']));
    after.filter_map(|rest| rest.split_once('>')).map(|(name, _)| name.to_owned()).collect()
}

pub(super) fn read_redirect(
    at: &str,
    keys: &Map<String, Value>,
    source: &Source,
    notes: &mut Notes,
) -> Option<RouteSpec> {
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

pub(super) fn read_rewrite(
    at: &str,
    keys: &Map<String, Value>,
    source: &Source,
    notes: &mut Notes,
) -> Option<RouteSpec> {
    let status = keys
        .get("statusCode")
        .and_then(|value| read_number(&format!("{at}.statusCode"), value, 100, 999, notes))
        .map(|status| status as u16);
    let dest = read_destination(at, keys, source, Unused::ToQuery, notes)?;
    Some(RouteSpec { dest: Some(dest), check: true, status, ..RouteSpec::default() })
}

pub(super) fn read_headers(
    at: &str,
    keys: &Map<String, Value>,
    source: &Source,
    notes: &mut Notes,
) -> Option<RouteSpec> {
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
pub(super) enum Unused {
    Dropped,
    ToQuery,
}

pub(super) fn read_destination(
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

pub(super) fn is_absolute(text: &str) -> bool {
    ["http://", "https://"]
        .iter()
        .any(|scheme| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
}

impl Source {
    /// The template for a parameter: `$1` by its place, or `$name` from `has`, which goes first.
    pub(super) fn template(&self, name: &str) -> Option<String> {
        if self.has_names.iter().any(|known| known == name) {
            return Some(format!("${name}"));
        }
        let place = self.pattern.names.iter().position(|known| known.as_deref() == Some(name))?;
        Some(format!("${}", place + 1))
    }

    /// A destination with its `:name`s as templates.
    pub(super) fn fill_destination(&self, text: &str, unused: Unused) -> Result<String, String> {
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

    pub(super) fn fill(&self, text: &str, used: &mut BTreeSet<String>) -> Result<String, String> {
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
    pub(super) fn fill_known(&self, text: &str) -> String {
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
pub(super) fn name_at(text: &str) -> &str {
    let end = text.find(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_')).unwrap_or(text.len());
    text.get(..end).unwrap_or_default()
}

/// Splits `(…)rest` after the parenthesis that closes the first one.
pub(super) fn take_group(text: &str) -> Result<(&str, &str), String> {
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
