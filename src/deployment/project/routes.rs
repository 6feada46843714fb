//! `routes`: the list as the project writes it, and as a build output writes it.

use serde_json::Value;

use super::config::{read_bool, read_number, read_string, read_strings, shorten, unknown};
use super::{CONDITIONS_MAX, Notes, ROUTES_MAX, UnknownKeys};
use crate::routing::{ConditionKind, ConditionSpec, RouteSpec, ValueSpec};

pub(super) fn read_user_routes(value: &Value, notes: &mut Notes) -> Vec<(RouteSpec, String)> {
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

pub(super) fn read_route(at: &str, value: &Value, unknown_keys: UnknownKeys, notes: &mut Notes) -> RouteSpec {
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

pub(super) fn read_header_object(key: &str, value: &Value, notes: &mut Notes) -> Vec<(String, String)> {
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

pub(super) fn check_header(key: &str, name: &str, value: &str, notes: &mut Notes) -> bool {
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

pub(super) fn read_conditions(key: &str, value: &Value, notes: &mut Notes) -> Vec<ConditionSpec> {
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

pub(super) fn read_condition(at: &str, value: &Value, notes: &mut Notes) -> Option<ConditionSpec> {
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

pub(super) fn operands(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(operands).collect(),
        Value::String(text) => vec![text.clone()],
        other => vec![other.to_string()],
    }
}
