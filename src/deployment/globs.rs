//! File globs of a project's configuration: `*`, `**`, `?`, `{a,b}` and `[abc]` over paths with `/`.
//!
//! A pattern that is the path itself always matches, and `[id]` also means itself: `api/users/[id].js` is a file name before it is a glob.

/// A compiled glob.
#[derive(Debug)]
pub struct Glob {
    source: String,
    pattern: regex::Regex,
}

impl Glob {
    /// Compiles a glob, or says why it is none.
    pub fn compile(source: &str) -> Result<Glob, String> {
        let source = source.trim_start_matches("./");
        if source.is_empty() {
            return Err("is empty".to_owned());
        }
        let pattern = format!("^(?s:{})$", translate(source)?);
        let pattern = regex::RegexBuilder::new(&pattern)
            .size_limit(1 << 20)
            .build()
            .map_err(|_| format!("{source:?} is not a glob"))?;
        Ok(Glob { source: source.to_owned(), pattern })
    }

    /// Whether the glob takes a path.
    pub fn matches(&self, path: &str) -> bool {
        self.source == path || self.pattern.is_match(path)
    }
}

/// The paths that one of the globs takes. A text that is no glob takes nothing; `project` has refused it before.
pub fn select<'p>(paths: impl Iterator<Item = &'p str>, globs: &[String]) -> Vec<&'p str> {
    let globs: Vec<Glob> = globs.iter().filter_map(|glob| Glob::compile(glob).ok()).collect();
    paths.filter(|path| globs.iter().any(|glob| glob.matches(path))).collect()
}

fn translate(source: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut choices = 0usize;
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let tail = rest.get(first.len_utf8()..).unwrap_or_default();
        rest = tail;
        match first {
            '*' if tail.starts_with('*') => {
                let after = tail.trim_start_matches('*');
                // `a/**/b` takes `a/b` as well.
                rest = after.strip_prefix('/').unwrap_or(after);
                out.push_str(if after.starts_with('/') { "(?:.*/)?" } else { ".*" });
            }
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '{' => {
                choices += 1;
                out.push_str("(?:");
            }
            '}' if choices > 0 => {
                choices -= 1;
                out.push(')');
            }
            ',' if choices > 0 => out.push('|'),
            '[' => match tail.split_once(']') {
                Some((inside, after)) if !inside.is_empty() => {
                    let (not, members) = inside.strip_prefix(['!', '^']).map_or(("", inside), |members| ("^", members));
                    let members: String = members.chars().map(escape_member).collect();
                    let itself = regex::escape(&format!("[{inside}]"));
                    out.push_str(&format!("(?:{itself}|[{not}{members}])"));
                    rest = after;
                }
                _ => out.push_str("\\["),
            },
            _ => out.push_str(&regex::escape(first.encode_utf8(&mut [0; 4]))),
        }
    }
    if choices > 0 {
        return Err(format!("{source:?} has a `{{` without its `}}`"));
    }
    Ok(out)
}

fn escape_member(member: char) -> String {
    match member {
        '\\' | '[' | '&' | '~' | '^' => format!("\\{member}"),
        _ => member.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(source: &str, path: &str, expected: bool) {
        let glob = Glob::compile(source).unwrap_or_else(|reason| panic!("{source}: {reason}"));
        assert_eq!(glob.matches(path), expected, "{source} on {path}");
    }

    #[test]
    fn broken_globs_are_refused() {
        for source in ["", "./", "{a", "a{b,{c}", "[...name]{"] {
            assert!(Glob::compile(source).is_err(), "{source}");
        }
    }

    #[test]
    fn select_takes_what_one_of_the_globs_takes() {
        let globs = ["data/**".to_owned(), "{".to_owned(), "x.json".to_owned()];
        let paths = ["data/a/b", "x.json", "y.json"];
        assert_eq!(select(paths.into_iter(), &globs), ["data/a/b", "x.json"]);
        assert!(select(paths.into_iter(), &[]).is_empty());
    }

    #[test]
    fn globs_match_as_files_are_named() {
        check("api/*.js", "api/x/y.js", false);
        check("api/*.js", "api/y.js", true);
        check("api/**/*.js", "api/y.js", true);
        check("api/**/*.js", "api/x/z/y.js", true);
        check("api/**", "api/x/y.js", true);
        check("api/**", "apix", false);
        check("api/{a,b}.{js,ts}", "api/b.ts", true);
        check("api/{a,b}.js", "api/c.js", false);
        check("api/?.js", "api/ab.js", false);
        check("api/users/[id].js", "api/users/[id].js", true);
        check("api/**/[id].js", "api/users/[id].js", true);
        check("api/[!a].js", "api/a.js", false);
        check("api/[a-c].js", "api/b.js", true);
        check("api/[...slug].js", "api/[...slug].js", true);
        check("a.b", "axb", false);
        check("./a,b}", "a,b}", true);
        check("[x", "[x", true);
    }
}
