//! The path patterns of `source` (`/blog/:slug*`), as regular expressions.

use std::collections::BTreeSet;

use super::redirects::{name_at, take_group};

/// A `source`: a path with `:name`, `(regex)`, `{…}` and the modifiers `*`, `+`, `?`, as a regular expression.
#[derive(Debug)]
pub(super) struct PathPattern {
    pub(super) regex: String,
    /// The parameters in the order of their groups; a group without a name has none.
    pub(super) names: Vec<Option<String>>,
}

impl PathPattern {
    pub(super) fn parse(source: &str) -> Result<PathPattern, String> {
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

    pub(super) fn push_text(&mut self, text: &mut String) {
        self.regex.push_str(&regex::escape(text));
        text.clear();
    }

    /// Reads `prefix:name(regex)suffix}` after a `{`.
    pub(super) fn take_braces<'s>(&mut self, inside: &'s str) -> Result<&'s str, String> {
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

    pub(super) fn push_parameter(&mut self, parameter: Parameter, prefix: &str, suffix: &str, modifier: &str) {
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

pub(super) struct Parameter {
    pub(super) name: Option<String>,
    pub(super) regex: String,
}

impl Parameter {
    /// Reads `:name`, `:name(regex)` or `(regex)`.
    pub(super) fn take(text: &str) -> Result<(Parameter, &str), String> {
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
pub(super) fn take_text(text: &str) -> Result<(String, &str), String> {
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

pub(super) fn take_modifier(text: &str) -> (&str, &str) {
    if text.starts_with(['*', '+', '?']) { text.split_at(1) } else { ("", text) }
}
