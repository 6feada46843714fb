//! The YAML as it was written, and the reader that turns it into values while it collects mistakes.
//! serde's derived structs stop at the first mistake; an operator wants all of them at once. So the file is read into a tree that knows
//! the place of every node, and the reader asks the tree for one key at a time. A wrong one is noted, and reading goes on with the default.
//! Scalars stay text until a key is asked for, so `region: no` is the region "no", and `name: 1.10` keeps its zero.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Spanned, UserMessageFormatter};

use super::{Mistake, Mistakes};

/// Every key of this version. The reader accepts these and no other, and the tests hold conf/reference.yaml against them.
pub(super) const KEYS: &[&str] = &[
    "region",
    "node",
    "threads",
    "listen.http",
    "listen.admin",
    "admin.token.file",
    "data",
    "domain",
    "deployments[].path",
    "deployments[].upstream",
    "deployments[].name",
    "deployments[].aliases",
    "cache.memory",
    "cache.node.path",
    "cache.node.size",
    "cache.regional.redis",
    "cache.regional.sentinel",
    "cache.regional.cluster",
    "cache.regional.username",
    "cache.regional.password.file",
    "cache.regional.ca",
    "cache.lock_timeout",
    "functions.memory",
    "functions.max_duration",
    "functions.request_body",
    "functions.bundle",
    "functions.idle",
    "functions.instances",
    "functions.queue",
    "functions.start_timeout",
    "functions.node",
    "headers",
    "grace",
];

/// Keys that the design has and this version does not. A feature that arrives moves its keys to `KEYS`.
const LATER: &[&str] = &["tls", "store", "regions", "secret", "listen.https", "listen.peer"];

/// Our file is five levels deep. Without a bound, a row of `[` would overflow the stack.
const DEPTH_MAX: usize = 32;

/// Longer text is cut in a message.
const SHOWN_CHARS_MAX: usize = 60;

pub(super) type Node = Spanned<Tree>;

pub(super) enum Tree {
    /// An empty value, `~` or `null`.
    Nothing,
    Text(String),
    /// A number or a boolean, in YAML's own spelling of it. The reader prefers that of the file.
    Typed(String),
    List(Vec<Node>),
    /// In the order of the file; a key may be there twice, which the reader then refuses.
    Map(Vec<(Spanned<String>, Node)>),
}

/// Where something is written, so that a later check can still point at it.
#[derive(Clone, Default)]
pub(super) struct Place {
    pub key: String,
    pub line: usize,
    pub column: usize,
}

/// A value with the place and the text that it was read from.
pub(super) struct Placed<T> {
    pub value: T,
    pub place: Place,
    pub written: String,
}

/// A mapping whose keys are all known and there once.
#[derive(Default)]
pub(super) struct Section<'n> {
    pub place: Place,
    entries: Vec<(&'n Spanned<String>, &'n Node)>,
}

/// Reads keys and collects mistakes, until `finish`.
pub(super) struct Reader<'a> {
    file: &'a Path,
    source: &'a str,
    mistakes: Vec<Mistake>,
}

/// The file as a tree. A syntax error hides everything behind it, so it is the only mistake that comes alone.
pub(super) fn tree(file: &Path, source: &str) -> Result<Node, Mistakes> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: DEPTH_MAX },
        // Left to the reader, which reports every one of them.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // `off` is a word here, not false.
        strict_booleans: true,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: true,
    };
    serde_saphyr::from_str_with_options(source, options).map_err(|error| {
        let location = error.location();
        let line = location.map_or(0, |location| as_usize(location.line()));
        let column = location.map_or(0, |location| as_usize(location.column()));
        let said = error.without_snippet().render_with_formatter(&UserMessageFormatter);
        Mistakes(vec![Mistake {
            file: file.into(),
            line,
            column,
            key: String::new(),
            found: "a file that is not valid YAML".into(),
            expected: said.replace(&format!(" at line {line}, column {column}"), "").replace('\n', " "),
        }])
    })
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a Path, source: &'a str) -> Self {
        Self { file, source, mistakes: Vec::new() }
    }

    /// `value` if the file has no mistake, else all of them in the order of the file.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, Mistakes> {
        self.mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
        match value {
            Some(value) if self.mistakes.is_empty() => Ok(value),
            _ => Err(Mistakes(self.mistakes)),
        }
    }

    pub fn mistake(&mut self, place: &Place, found: impl Into<String>, expected: impl Into<String>) {
        self.mistakes.push(Mistake {
            file: self.file.into(),
            line: place.line,
            column: place.column,
            key: place.key.clone(),
            found: found.into(),
            expected: expected.into(),
        });
    }

    /// Whether a single value stands where a section could.
    pub fn is_single(&self, node: &Node) -> bool {
        matches!(node.value, Tree::Text(_) | Tree::Typed(_))
    }

    /// Whether something at or under this key is wrong already, so that a check of the whole would only say it again.
    pub fn has_mistake_within(&self, place: &Place) -> bool {
        self.mistakes.iter().any(|mistake| mistake.key.starts_with(&place.key))
    }

    /// The whole file as a section.
    pub fn root<'n>(&mut self, node: &'n Node) -> Section<'n> {
        self.open(node, place(node, String::new())).unwrap_or_default()
    }

    /// The section under `name`; an empty one if it is absent, so that its keys get their defaults.
    pub fn section<'n>(&mut self, parent: &Section<'n>, name: &str) -> Section<'n> {
        let absent =
            Section { place: Place { key: join(&parent.place.key, name), ..parent.place }, entries: Vec::new() };
        self.optional_section(parent, name).unwrap_or(absent)
    }

    pub fn optional_section<'n>(&mut self, parent: &Section<'n>, name: &str) -> Option<Section<'n>> {
        let (node, place) = parent.get(name)?;
        self.open(node, place)
    }

    /// The sections listed under `name`, without those that are none.
    pub fn sections<'n>(&mut self, parent: &Section<'n>, name: &str) -> Vec<Section<'n>> {
        let Some((node, list)) = parent.get(name) else {
            return Vec::new();
        };
        match &node.value {
            Tree::Nothing => Vec::new(),
            Tree::List(items) => {
                items.iter().enumerate().filter_map(|(at, item)| self.open(item, list.item(item, at))).collect()
            }
            _ => {
                self.mistake(&list, kind(&node.value), "which is not a list; begin each entry with `- `");
                Vec::new()
            }
        }
    }

    /// The value of a key. `parse` says in its error what would be right, as the end of a sentence that begins with what was found.
    pub fn value<T>(
        &mut self,
        section: &Section,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.placed(section, name, parse).map(|placed| placed.value)
    }

    /// Like `value`, but its absence is a mistake too.
    pub fn required<T>(
        &mut self,
        section: &Section,
        name: &str,
        example: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if section.get(name).is_none() {
            self.missing(section, name, example);
        }
        self.value(section, name, parse)
    }

    /// Notes that a section has no `name`.
    pub fn missing(&mut self, section: &Section, name: &str, example: &str) {
        let place = Place { key: join(&section.place.key, name), ..section.place };
        self.mistake(&place, "nothing", format!("where a value must be given; write for example `{name}: {example}`"));
    }

    /// Like `value`, for one that is looked at again beside others.
    pub fn placed<T>(
        &mut self,
        section: &Section,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Placed<T>> {
        let (node, place) = section.get(name)?;
        self.scalar(node, place, parse)
    }

    /// The values listed under a key, without the wrong ones. `None` if the key is absent or no list.
    pub fn values<T>(
        &mut self,
        section: &Section,
        name: &str,
        mut parse: impl FnMut(&str) -> Result<T, String>,
    ) -> Option<Vec<Placed<T>>> {
        let (node, list) = section.get(name)?;
        let Tree::List(items) = &node.value else {
            let (found, example) = match self.text(node) {
                Some(text) => (quoted(text), format!("[{}]", quoted(text))),
                None => (kind(&node.value).into(), "[one, two]".into()),
            };
            self.mistake(&list, found, format!("which is not a list; write it in brackets, like {example}"));
            return None;
        };
        let read = |(at, item)| self.scalar(item, list.item(item, at), &mut parse);
        Some(items.iter().enumerate().filter_map(read).collect())
    }

    /// Like `values`, for a key that takes a single value as well.
    pub fn one_or_more<T>(
        &mut self,
        section: &Section,
        name: &str,
        mut parse: impl FnMut(&str) -> Result<T, String>,
    ) -> Option<Vec<Placed<T>>> {
        let (node, place) = section.get(name)?;
        match &node.value {
            Tree::List(_) => self.values(section, name, parse),
            _ => Some(self.scalar(node, place, &mut parse).into_iter().collect()),
        }
    }

    fn scalar<T>(
        &mut self,
        node: &Node,
        place: Place,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Placed<T>> {
        let Some(written) = self.text(node) else {
            self.mistake(&place, kind(&node.value), "where a single value belongs");
            return None;
        };
        match parse(written) {
            Ok(value) => Some(Placed { value, place, written: written.to_owned() }),
            Err(expected) => {
                self.mistake(&place, quoted(written), expected);
                None
            }
        }
    }

    /// Accepts a mapping (or nothing, which is one without keys), and refuses its unknown and doubled keys.
    fn open<'n>(&mut self, node: &'n Node, place: Place) -> Option<Section<'n>> {
        let entries = match &node.value {
            Tree::Nothing => &[][..],
            Tree::Map(entries) => entries,
            // A scalar is not shown: what is written where a token's section belongs may be the token.
            other => {
                let known = children(&place.key).join(", ");
                self.mistake(&place, kind(other), format!("where a mapping belongs, with keys out of: {known}"));
                return None;
            }
        };
        let mut lines = HashMap::new();
        let mut section = Section { place, entries: Vec::new() };
        for (name, value) in entries {
            let path = join(&section.place.key, &cut(&name.value));
            let place = place_of(name, path);
            let line = *lines.entry(name.value.as_str()).or_insert(place.line);
            if section.entries.iter().any(|(other, _)| other.value == name.value) {
                self.mistake(&place, "a key that is there twice", format!("first on line {line}; keep one"));
            } else if let Some((found, expected)) = unknown(&section.place.key, &name.value) {
                self.mistake(&place, found, expected);
            } else {
                section.entries.push((name, value));
            }
        }
        Some(section)
    }

    /// What a scalar says, in the spelling of the file.
    fn text<'n>(&self, node: &'n Node) -> Option<&'n str>
    where
        'a: 'n,
    {
        match &node.value {
            Tree::Text(text) => Some(text),
            Tree::Typed(canonical) => {
                let bytes = |(start, length)| {
                    self.source.get(as_usize(start)..as_usize(start).saturating_add(as_usize(length)))
                };
                let span = node.defined.span();
                Some(span.byte_offset().zip(span.byte_len()).and_then(bytes).map_or(canonical, str::trim))
            }
            Tree::Nothing | Tree::List(_) | Tree::Map(_) => None,
        }
    }
}

impl<'n> Section<'n> {
    /// The node under a key, if it is there.
    pub fn get(&self, name: &str) -> Option<(&'n Node, Place)> {
        let key = join(&self.place.key, name);
        debug_assert!(is_known(&key), "{key} is read, but KEYS does not have it");
        let (_, node) = self.entries.iter().find(|(key, _)| key.value == name)?;
        Some((node, place(node, key)))
    }
}

impl Place {
    fn item(&self, node: &Node, at: usize) -> Place {
        place(node, format!("{}[{at}]", self.key))
    }
}

/// The text in quotes, cut and with control characters escaped. The user and password of a URL are left out.
pub(super) fn quoted(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            format!("\"{}://...{}\"", cut(&text[..scheme]), cut(&text[at..]))
        }
        _ => format!("\"{}\"", cut(text)),
    }
}

fn cut(text: &str) -> String {
    let mut cut: String = text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        cut.push_str("...");
    }
    cut
}

fn kind(tree: &Tree) -> &'static str {
    match tree {
        Tree::Nothing => "nothing",
        Tree::Text(_) | Tree::Typed(_) => "a single value",
        Tree::List(_) => "a list",
        Tree::Map(_) => "a mapping",
    }
}

fn place(node: &Node, key: String) -> Place {
    place_of(node, key)
}

fn place_of<T>(spanned: &Spanned<T>, key: String) -> Place {
    let location = spanned.referenced;
    Place { key, line: as_usize(location.line()), column: as_usize(location.column()) }
}

fn as_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.into() } else { format!("{section}.{name}") }
}

/// `deployments[3].path` as `KEYS` has it: `deployments[].path`. No key has a digit in its name, so every digit is of an index.
fn without_indices(key: &str) -> String {
    key.replace(|c: char| c.is_ascii_digit(), "")
}

/// Whether this is a key, or a section on the way to one.
fn is_known(key: &str) -> bool {
    let key = without_indices(key);
    KEYS.iter().any(|known| {
        known.strip_prefix(key.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

/// The names that may stand in a section.
fn children(section: &str) -> Vec<&'static str> {
    let prefix = join(&without_indices(section), "");
    let mut names: Vec<_> = KEYS.iter().filter_map(|key| key.strip_prefix(&prefix)?.split(['.', '[']).next()).collect();
    names.dedup();
    names
}

/// What to say of a key that is not known; `None` if it is.
fn unknown(section: &str, name: &str) -> Option<(&'static str, String)> {
    let names = children(section);
    if names.contains(&name) {
        return None;
    }
    if LATER.contains(&join(section, name).as_str()) {
        return Some(("a key for a feature that this version does not have yet", "remove it".into()));
    }
    let near = names.iter().map(|known| (distance(known, name), known)).min().filter(|(distance, _)| *distance <= 2);
    let expected = match near {
        // Two letters of a short word are too much of it.
        Some((distance, known)) if distance < name.chars().count() => {
            format!("did you mean `{known}`?")
        }
        _ => format!("known here are {}", names.join(", ")),
    };
    Some(("an unknown key", expected))
}

/// How many letters to add, remove or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(SHOWN_CHARS_MAX).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for j in 0..b.len() {
            let replaced = diagonal + usize::from(b[j] != letter);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any YAML")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nothing)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nothing)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Typed(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Typed(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Typed(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Typed(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Text(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Tree, E> {
        Ok(Tree::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Tree::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::conf::Conf;

    const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/reference.yaml");

    /// The keys that a tree names, as `KEYS` has them.
    fn names(node: &Node, key: &str, all: &mut BTreeSet<String>) {
        match &node.value {
            Tree::Map(entries) => entries.iter().for_each(|(name, node)| names(node, &join(key, &name.value), all)),
            Tree::List(items) if items.iter().any(|item| matches!(item.value, Tree::Map(_))) => {
                items.iter().for_each(|item| names(item, &format!("{key}[]"), all));
            }
            _ => drop(all.insert(key.into())),
        }
    }

    /// In the reference, `#key` is a key and `# Word` is prose; keys within one are indented further.
    fn with_all_keys(reference: &str) -> String {
        let is_key = |line: &str| !line.is_empty() && !line.starts_with(' ') || line.starts_with("  ");
        reference
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| is_key(rest)).unwrap_or(line))
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn reference_names_every_key_and_no_other() {
        let text = with_all_keys(&std::fs::read_to_string(REFERENCE).unwrap());
        let mut named = BTreeSet::new();
        names(&tree(Path::new(REFERENCE), &text).unwrap(), "", &mut named);
        assert_eq!(named, KEYS.iter().map(|key| key.to_string()).collect());
    }

    #[test]
    fn reference_is_valid_with_every_key_in_use() {
        let text = with_all_keys(&std::fs::read_to_string(REFERENCE).unwrap());
        let token = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/reference.yaml");
        let files = ["conf/admin.token", "conf/redis.password", "conf/redis-ca.pem"];
        let text = files.iter().fold(text, |text, file| text.replace(file, token));
        // The reference itself is no token, no password and no certificate, and that is all there is to say against it.
        let mistakes = Conf::parse(Path::new(REFERENCE), &text).unwrap_err();
        let keys: Vec<&str> = mistakes.all().iter().map(|mistake| mistake.key.as_str()).collect();
        assert_eq!(keys, ["admin.token.file", "cache.regional.password.file", "cache.regional.ca"], "{mistakes}");
    }

    #[test]
    fn every_key_is_read() {
        for key in KEYS {
            // A list of lists is right for no key. The section around it is written in flow style, so that one line does.
            let yaml = key.rsplit('.').fold("[[]]".to_string(), |value, part| match part.strip_suffix("[]") {
                Some(part) => format!("{{{part}: [{value}]}}"),
                None => format!("{{{part}: {value}}}"),
            });
            let mistakes = Conf::parse(Path::new("x.yaml"), &yaml).unwrap_err();
            let indexed = key.replace("[]", "[0]");
            assert!(mistakes.all().iter().any(|mistake| mistake.key.starts_with(&indexed)), "{yaml}: {mistakes}");
        }
    }

    #[test]
    fn keys_have_no_digits() {
        assert!(KEYS.iter().all(|key| !key.contains(|c: char| c.is_ascii_digit())));
    }

    #[test]
    fn later_keys_are_not_known_yet() {
        for key in LATER {
            assert!(!is_known(key), "{key} has arrived; take it out of LATER");
        }
    }

    #[test]
    fn scalars_keep_their_spelling() {
        let yaml = "- no\n- 1.10\n- 0x10\n- &anchor  007   # a comment\n- *anchor\n- 1_000\n- .inf\n- 1e999\n- 'ü 5'\n- true\n- é: 2.50\n- >-\n  a\n  b\n";
        let root = tree(Path::new("x.yaml"), yaml).unwrap();
        let reader = Reader::new(Path::new("x.yaml"), yaml);
        let Tree::List(items) = &root.value else { panic!("not a list") };
        let texts: Vec<_> = items.iter().map(|item| reader.text(item)).collect();
        let expected = ["no", "1.10", "0x10", "007", "007", "1_000", ".inf", "1e999", "ü 5", "true", "", "a b"];
        let expected: Vec<_> = expected.into_iter().map(|text| (!text.is_empty()).then_some(text)).collect();
        assert_eq!(texts, expected);
        let Tree::Map(entries) = &items[10].value else { panic!("not a mapping") };
        assert_eq!(reader.text(&entries[0].1), Some("2.50"), "after a character of two bytes");
    }

    #[test]
    fn distance_counts_letters() {
        for (a, b, expected) in
            [("", "", 0), ("a", "", 1), ("region", "regoin", 2), ("idle", "idel", 2), ("node", "mode", 1)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }
}
