//! What the files of a project are without any configuration: functions, static files, or neither.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::config::Config;
use super::{
    FOREIGN_ENDINGS, FRAMEWORK_FILES, FUNCTION_ENDINGS, FunctionSpec, Notes, PRIVATE_FILES, Runtime, Segment,
    SourceFile, StaticSpec,
};

pub(super) fn find_functions(files: &[SourceFile<'_>], config: &Config, notes: &mut Notes) -> Vec<FunctionSpec> {
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
pub(super) fn is_function(path: &str) -> bool {
    let Some((stem, ending)) = path.rsplit_once('.') else {
        return false;
    };
    path.starts_with("api/")
        && FUNCTION_ENDINGS.contains(&ending)
        && !(stem.ends_with(".d") && matches!(ending, "ts" | "mts" | "cts"))
        && is_plain(path)
        && !path.split('/').any(|segment| segment.starts_with(['_', '.']) || segment == "node_modules")
}

pub(super) fn find_statics(
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
pub(super) fn is_private(path: &str) -> bool {
    PRIVATE_FILES.contains(&path)
        || path.starts_with("api/")
        || path.split('/').any(|segment| segment == "node_modules")
}

/// Whether a part of the path is hidden. `.well-known/` at the start is the exception that RFC 8615 needs.
pub(super) fn is_hidden(path: &str) -> bool {
    path.strip_prefix(".well-known/").unwrap_or(path).split('/').any(|segment| segment.starts_with('.'))
}

/// Whether a path of the listing can be a URL path: relative, no empty segments, nothing that a lookup refuses.
pub(super) fn is_plain(path: &str) -> bool {
    !path.contains(['\\', '\0']) && path.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
}

pub(super) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

pub(super) fn without_ending(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(stem, _)| stem)
}
