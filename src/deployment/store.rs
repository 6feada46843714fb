//! Keeps deployments on this node's disk.
//!
//! ```text
//! DATA/deployments/ID/manifest.json     what it is: name, files with size and digest
//! DATA/deployments/ID/files/…           the files, as deployed
//! DATA/aliases.json                     host -> deployment
//! DATA/tmp/PID-…                        what a process is making
//! DATA/run/PID-…                        its sockets; both are removed when the process is gone
//! ```
//! A deployment is made in `tmp`, written to the disk, and moved into place by one rename: it is there whole or not at all, whenever the
//! process or the machine dies.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::project::{self, FunctionSpec, SourceFile, StaticSpec};
use super::{Content, Deployment, DeploymentId, Limits, Project, StaticFile, UpstreamUrl, bundle, globs};
use crate::conf::units;
use crate::functions::Function;
use crate::routing::Router;
use crate::static_files;

/// The manifest's format. One that is newer than this is left alone.
const VERSION: u32 = 1;

/// Folders and files that are never part of a deployment.
const LEFT_OUT: [&str; 4] = [".git", ".hg", ".svn", ".DS_Store"];

/// Files in one deployment, and bytes of all of them together.
const FILES_MAX: usize = 200_000;
const BYTES_MAX: u64 = 4 << 30;

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    id: DeploymentId,
    uid: String,
    name: String,
    created_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    upstream: Option<String>,
    #[serde(default)]
    files: Vec<ManifestFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ManifestFile {
    path: String,
    bytes: u64,
    /// BLAKE3, in hex.
    digest: String,
}

/// Why there is no deployment.
#[derive(Debug)]
pub enum Refused {
    /// The project is at fault: every mistake, with file, key and reason.
    Project(Vec<String>),
    /// The disk is, or what was sent.
    Io(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Project(mistakes) => f.write_str(&mistakes.join("\n")),
            Refused::Io(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Refused {}

fn io_error(doing: impl fmt::Display) -> impl FnOnce(io::Error) -> Refused {
    move |error| Refused::Io(format!("{doing}: {error}"))
}

/// A deployment with what its project says beside it.
#[derive(Clone)]
pub struct Made {
    pub deployment: Arc<Deployment>,
    /// The hosts that the project itself wants to be reached by.
    pub aliases: Vec<String>,
    pub warnings: Vec<String>,
}

pub struct Store {
    root: PathBuf,
    domain: String,
    /// One at a time moves into place: the same may be deployed by many at once.
    placing: Mutex<()>,
}

impl Store {
    /// Opens the folder, making it if need be, and throws away what was not finished.
    pub fn open(root: &Path, domain: &str) -> io::Result<Store> {
        let told = |what: &str, path: &Path| {
            let what = format!("cannot {what} {}", path.display());
            move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
        };
        fs::create_dir_all(root).map_err(told("make", root))?;
        // Absolute: functions run in folders of their own.
        let root = root.canonicalize()?;
        fs::create_dir_all(root.join("deployments")).map_err(told("make", &root.join("deployments")))?;
        for folder in [root.join("tmp"), root.join("run")] {
            fs::create_dir_all(&folder).map_err(told("make", &folder))?;
            remove_orphans(&folder).map_err(told("clear", &folder))?;
        }
        Ok(Store { root, domain: domain.to_owned(), placing: Mutex::default() })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A place for something that is being made; gone again when dropped.
    pub fn scratch(&self) -> io::Result<tempfile::TempDir> {
        tempfile::Builder::new().prefix(&own_prefix()).tempdir_in(self.root.join("tmp"))
    }

    fn folder(&self, id: &DeploymentId) -> PathBuf {
        self.root.join("deployments").join(&id.0)
    }

    /// Everything that is there. What cannot be read is told and left alone.
    pub fn load_all(&self) -> io::Result<Vec<Made>> {
        let mut found = Vec::new();
        for folder in fs::read_dir(self.root.join("deployments"))? {
            let folder = folder?.path();
            match self.load(&folder) {
                Ok(made) => found.push(made),
                Err(refused) => log::error!("the deployment in {} cannot be served: {refused}", folder.display()),
            }
        }
        found.sort_by_key(|made| made.deployment.created);
        Ok(found)
    }

    fn load(&self, folder: &Path) -> Result<Made, Refused> {
        let path = folder.join("manifest.json");
        let text = fs::read_to_string(&path).map_err(io_error(path.display()))?;
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|error| Refused::Io(format!("{}: {error}", path.display())))?;
        if manifest.version > VERSION {
            return Err(Refused::Io(format!(
                "{}: format {} is newer than this Perigee knows ({VERSION})",
                path.display(),
                manifest.version
            )));
        }
        self.make(manifest, &folder.join("files"))
    }

    /// Deploys an upstream.
    pub fn deploy_upstream(&self, name: &str, url: &str, now: SystemTime, limits: &Limits) -> Result<Made, Refused> {
        let digest = digest(name, Some(url), &[]);
        let manifest = Manifest {
            version: VERSION,
            id: id(&digest),
            uid: uid(&digest),
            name: name.to_owned(),
            created_ms: unix_ms(now),
            upstream: Some(url.to_owned()),
            files: Vec::new(),
        };
        let scratch = self.scratch().map_err(io_error("making a deployment"))?;
        fs::create_dir(scratch.path().join("files")).map_err(io_error("making a deployment"))?;
        self.settle(manifest, scratch, limits)
    }

    /// Deploys a folder of this machine. The folder is copied: editing it later does not change the deployment.
    pub fn deploy_folder(&self, source: &Path, name: &str, now: SystemTime, limits: &Limits) -> Result<Made, Refused> {
        let source = source.canonicalize().map_err(io_error(source.display()))?;
        if !source.is_dir() {
            return Err(Refused::Io(format!("{}: is not a folder; a project is a folder", source.display())));
        }
        // A folder that did not change since the last time, which is usual at a reload, is read but not copied.
        let known = id(&digest(name, None, &self.list(&source)?));
        if self.holds(&known)
            && let Ok(made) = self.load(&self.folder(&known))
        {
            return Ok(made);
        }
        let scratch = self.scratch().map_err(io_error("making a deployment"))?;
        let files = scratch.path().join("files");
        fs::create_dir(&files).map_err(io_error("making a deployment"))?;
        self.copy_folder(&source, &files)?;
        self.finish(name, scratch, now, limits)
    }

    /// Deploys what was unpacked into `scratch/files`.
    pub fn finish(
        &self,
        name: &str,
        scratch: tempfile::TempDir,
        now: SystemTime,
        limits: &Limits,
    ) -> Result<Made, Refused> {
        let files = self.list(&scratch.path().join("files"))?;
        let digest = digest(name, None, &files);
        let manifest = Manifest {
            version: VERSION,
            id: id(&digest),
            uid: uid(&digest),
            name: name.to_owned(),
            created_ms: unix_ms(now),
            upstream: None,
            files,
        };
        self.settle(manifest, scratch, limits)
    }

    /// Checks what lies in `scratch` and moves it into place.
    fn settle(&self, manifest: Manifest, scratch: tempfile::TempDir, limits: &Limits) -> Result<Made, Refused> {
        // Checked where it is made, so that what is refused leaves nothing behind, and before the turn to be placed, as it takes time.
        let checked = self.make_checked(&manifest, &scratch.path().join("files"), limits);
        let place = self.folder(&manifest.id);
        let _placing = self.placing.lock();
        if place.join("manifest.json").exists() {
            match self.load(&place) {
                Ok(made) => return Ok(made),
                Err(refused) => log::warn!("{} is made anew: {refused}", place.display()),
            }
        }
        checked?;
        let write = || -> io::Result<()> {
            let mut file = File::create(scratch.path().join("manifest.json"))?;
            file.write_all(&serde_json::to_vec_pretty(&manifest)?)?;
            file.sync_all()?;
            // One call for all files: thousands of single ones would take minutes on a slow disk.
            nix::unistd::syncfs(&file).map_err(io::Error::from)?;
            let scratch = scratch.keep();
            if place.exists() {
                fs::remove_dir_all(&place)?;
            }
            fs::rename(&scratch, &place)?;
            File::open(self.root.join("deployments"))?.sync_all()
        };
        write().map_err(io_error(format_args!("keeping the deployment in {}", place.display())))?;
        self.load(&place)
    }

    /// Whether it is there.
    pub fn holds(&self, id: &DeploymentId) -> bool {
        self.folder(id).join("manifest.json").exists()
    }

    /// Takes a deployment off the disk.
    pub fn remove(&self, id: &DeploymentId) -> io::Result<()> {
        let scratch = self.scratch()?;
        // Out of the way first: half a deployment must not be there after a crash.
        fs::rename(self.folder(id), scratch.path().join("removed"))?;
        scratch.close()
    }

    fn make_checked(&self, manifest: &Manifest, files: &Path, limits: &Limits) -> Result<(), Refused> {
        let (project, _) = read_project(manifest, files)?;
        let Some(project) = project else { return Ok(()) };
        let mut mistakes = Vec::new();
        if let Err(found) = Router::compile(&project.routes) {
            mistakes.extend(found.iter().map(ToString::to_string));
        }
        for function in &project.functions {
            if let Err(mistake) = check_bundle(files, manifest, function, limits) {
                mistakes.push(mistake);
            }
        }
        if mistakes.is_empty() { Ok(()) } else { Err(Refused::Project(mistakes)) }
    }

    fn make(&self, manifest: Manifest, files: &Path) -> Result<Made, Refused> {
        let (read, upstream) = read_project(&manifest, files)?;
        let created = SystemTime::UNIX_EPOCH + Duration::from_millis(manifest.created_ms);
        let host = format!("{}-{}.{}", manifest.name, manifest.uid, self.domain);
        let (content, aliases, warnings) = match (read, upstream) {
            (_, Some(upstream)) => (Content::Upstream(upstream), Vec::new(), Vec::new()),
            (Some(read), None) => {
                let router = Router::compile(&read.routes)
                    .map_err(|mistakes| Refused::Project(mistakes.iter().map(ToString::to_string).collect()))?;
                let outputs = project::outputs(&read);
                let statics = statics(&read.statics, &manifest, files, created)?;
                let functions = read
                    .functions
                    .iter()
                    .map(|spec| Arc::new(Function::new(&manifest.id, &host, spec, &read, files)))
                    .collect();
                let plain = read.routes.iter().all(|route| route.has.is_empty() && route.missing.is_empty());
                let project = Project { router, outputs, statics, functions, listing: read.listing, plain };
                (Content::Project(Box::new(project)), read.aliases, read.warnings)
            }
            (None, None) => return Err(Refused::Io("the manifest names neither files nor an upstream".to_owned())),
        };
        let deployment = Deployment {
            number: super::number(&manifest.id),
            id: manifest.id,
            name: manifest.name,
            uid: manifest.uid,
            host,
            created,
            content,
        };
        Ok(Made { deployment: Arc::new(deployment), aliases, warnings })
    }

    /// Visits a project; a link is followed while it stays inside, and refused otherwise.
    fn walk(
        &self,
        source: &Path,
        mut visit: impl FnMut(&Path, &walkdir::DirEntry) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let is_part = |entry: &walkdir::DirEntry| {
            !LEFT_OUT.iter().any(|name| entry.file_name() == *name) && entry.path() != self.root
        };
        let walk = walkdir::WalkDir::new(source).follow_links(true).sort_by_file_name().into_iter();
        let (mut files, mut bytes) = (0, 0);
        for entry in walk.filter_entry(is_part) {
            let entry = entry.map_err(|error| Refused::Io(format!("reading {}: {error}", source.display())))?;
            let relative = entry.path().strip_prefix(source).map_err(|error| Refused::Io(error.to_string()))?;
            if entry.path_is_symlink() {
                let real = entry.path().canonicalize().map_err(io_error(entry.path().display()))?;
                if !real.starts_with(source) {
                    return Err(Refused::Project(vec![format!(
                        "{}: is a link to {}, outside of the project; copy it in",
                        relative.display(),
                        real.display()
                    )]));
                }
            }
            if entry.file_type().is_file() {
                files += 1;
                bytes += entry.metadata().map_or(0, |metadata| metadata.len());
                within(files, bytes)?;
            } else if !entry.file_type().is_dir() {
                return Err(Refused::Project(vec![format!("{}: is neither a file nor a folder", relative.display())]));
            }
            visit(relative, &entry)?;
        }
        Ok(())
    }

    /// All files of a folder, sorted, with their digests.
    fn list(&self, folder: &Path) -> Result<Vec<ManifestFile>, Refused> {
        let mut files = Vec::new();
        self.walk(folder, |relative, entry| {
            if entry.file_type().is_file() {
                files.push(describe(relative, entry.path())?);
            }
            Ok(())
        })?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    fn copy_folder(&self, source: &Path, target: &Path) -> Result<(), Refused> {
        self.walk(source, |relative, entry| {
            let place = target.join(relative);
            if entry.file_type().is_dir() {
                fs::create_dir_all(&place).map_err(io_error(place.display()))
            } else {
                fs::copy(entry.path(), &place).map(drop).map_err(io_error(entry.path().display()))
            }
        })
    }
}

fn describe(relative: &Path, path: &Path) -> Result<ManifestFile, Refused> {
    let Some(name) = relative.to_str() else {
        return Err(Refused::Project(vec![format!("{}: the name is not UTF-8", relative.display())]));
    };
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path).map_err(io_error(name))?;
    let bytes = io::copy(&mut file, &mut hasher).map_err(io_error(name))?;
    Ok(ManifestFile { path: name.to_owned(), bytes, digest: hasher.finalize().to_hex().to_string() })
}

/// What this process keeps in `tmp` and `run` begins with this, so that others know whose it is.
pub fn own_prefix() -> String {
    format!("{}-", std::process::id())
}

/// Removes what processes left behind that are gone; another one may be working on the same data.
fn remove_orphans(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').next()).and_then(|pid| pid.parse::<u32>().ok());
        let is_alive =
            owner.is_some_and(|pid| pid != std::process::id() && Path::new(&format!("/proc/{pid}")).exists());
        if !is_alive {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn within(files: usize, bytes: u64) -> Result<(), Refused> {
    if files > FILES_MAX || bytes > BYTES_MAX {
        return Err(Refused::Project(vec![format!(
            "the project has more than {FILES_MAX} files or {} MB; leave out what is not served",
            BYTES_MAX >> 20
        )]));
    }
    Ok(())
}

/// The unit of a tar archive.
const BLOCK_BYTES: u64 = 512;

/// Counts what was read of an archive.
struct Counted<R> {
    reader: R,
    taken: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.taken.set(self.taken.get() + read as u64);
        Ok(read)
    }
}

/// Unpacks an uploaded archive into `target`: plain, gzip or zstd, told by its first bytes.
pub fn unpack(archive: &Path, target: &Path) -> Result<(), Refused> {
    let mut file = File::open(archive).map_err(io_error("the archive"))?;
    let mut first = [0; 4];
    let read = file.read(&mut first).map_err(io_error("the archive"))?;
    let file = File::open(archive).map_err(io_error("the archive"))?;
    let reader: Box<dyn Read> = match &first[..read] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(file).map_err(io_error("the archive"))?),
        _ => Box::new(io::BufReader::new(file)),
    };
    let taken = Rc::new(Cell::new(0));
    let mut archive = tar::Archive::new(Counted { reader, taken: taken.clone() });
    let bad = io_error("the archive is not a whole tar (plain, gzip or zstd)");
    let (mut files, mut bytes, mut end) = (0, 0, 0);
    for entry in archive.entries().map_err(bad)? {
        let mut entry = entry.map_err(io_error("the archive is not a whole tar (plain, gzip or zstd)"))?;
        let path = entry.path().map_err(io_error("the archive"))?.into_owned();
        end = entry.raw_file_position() + entry.size().next_multiple_of(BLOCK_BYTES);
        let Some(relative) = plain(&path) else {
            return Err(Refused::Io(format!("the archive holds {}, which leads out of it", path.display())));
        };
        if relative.as_os_str().is_empty()
            || relative.components().any(|part| LEFT_OUT.iter().any(|name| part.as_os_str() == *name))
        {
            continue;
        }
        let place = target.join(&relative);
        match entry.header().entry_type() {
            tar::EntryType::Directory => fs::create_dir_all(&place).map_err(io_error(relative.display()))?,
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                files += 1;
                bytes += entry.size();
                within(files, bytes)?;
                if let Some(folder) = place.parent() {
                    fs::create_dir_all(folder).map_err(io_error(relative.display()))?;
                }
                let mut file = File::create(&place).map_err(io_error(relative.display()))?;
                let copied = io::copy(&mut entry, &mut file).map_err(io_error("the archive ends too early"))?;
                if copied != entry.size() {
                    return Err(Refused::Io(format!("the archive ends in the middle of {}", relative.display())));
                }
            }
            tar::EntryType::XGlobalHeader => {}
            kind => {
                return Err(Refused::Project(vec![format!(
                    "{}: is a {kind:?}; only files and folders can be deployed",
                    relative.display()
                )]));
            }
        }
    }
    // An archive ends with empty blocks. One that ends between two files looks whole otherwise.
    if taken.get() < end + BLOCK_BYTES {
        return Err(Refused::Io("the archive ends too early: its last block is missing".to_owned()));
    }
    if files == 0 {
        return Err(Refused::Project(vec!["the archive holds no files".to_owned()]));
    }
    Ok(())
}

/// The path without `.` parts; `None` if it leads anywhere else.
fn plain(path: &Path) -> Option<PathBuf> {
    path.components()
        .filter(|part| !matches!(part, Component::CurDir))
        .map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect()
}

type ReadProject = (Option<project::Project>, Option<UpstreamUrl>);

fn read_project(manifest: &Manifest, files: &Path) -> Result<ReadProject, Refused> {
    if let Some(url) = &manifest.upstream {
        let upstream = UpstreamUrl::parse(url)
            .ok_or_else(|| Refused::Project(vec![format!("upstream: {url:?} is not http(s)://host[:port]")]))?;
        return Ok((None, Some(upstream)));
    }
    let sources: Vec<SourceFile<'_>> =
        manifest.files.iter().map(|file| SourceFile { path: &file.path, bytes: file.bytes }).collect();
    let configs: Vec<&str> =
        project::CONFIG_FILES.into_iter().filter(|name| manifest.files.iter().any(|file| file.path == *name)).collect();
    let config = match configs.as_slice() {
        [] => None,
        [name] => {
            let text = fs::read_to_string(files.join(name)).map_err(io_error(name))?;
            Some((*name, text))
        }
        _ => return Err(Refused::Project(vec!["now.json, vercel.json: both are there; keep one".to_owned()])),
    };
    let config = config.as_ref().map(|(name, text)| (*name, text.as_str()));
    let read = project::read(&sources, config)
        .map_err(|mistakes| Refused::Project(mistakes.iter().map(ToString::to_string).collect()))?;
    Ok((Some(read), None))
}

fn statics(
    specs: &[StaticSpec],
    manifest: &Manifest,
    files: &Path,
    created: SystemTime,
) -> Result<Vec<StaticFile>, Refused> {
    let by_path: std::collections::HashMap<&str, &ManifestFile> =
        manifest.files.iter().map(|file| (file.path.as_str(), file)).collect();
    specs
        .iter()
        .map(|spec| {
            let file = by_path
                .get(spec.file.as_str())
                .ok_or_else(|| Refused::Io(format!("{}: is not among the files", spec.file)))?;
            let digest = blake3::Hash::from_hex(&file.digest)
                .map_err(|error| Refused::Io(format!("the digest of {}: {error}", spec.file)))?;
            let name = spec.file.rsplit('/').next().unwrap_or(&spec.file);
            Ok(StaticFile {
                url: spec.url.clone(),
                path: files.join(&spec.file),
                bytes: file.bytes,
                etag: static_files::etag(digest.as_bytes()),
                content_type: spec.content_type.clone().unwrap_or_else(|| static_files::content_type(&spec.file)),
                disposition: static_files::content_disposition(name),
                modified: created,
            })
        })
        .collect()
}

/// A function and what it can load may not be larger than the limit (seed "Functions").
fn check_bundle(files: &Path, manifest: &Manifest, function: &FunctionSpec, limits: &Limits) -> Result<(), String> {
    let all = || manifest.files.iter().map(|file| file.path.as_str());
    let include: Vec<String> = globs::select(all(), &function.include_files).into_iter().map(str::to_owned).collect();
    let excluded: BTreeSet<String> =
        globs::select(all(), &function.exclude_files).into_iter().map(str::to_owned).collect();
    let bundle =
        bundle::trace(files, &function.entry, &include).map_err(|error| format!("{}: {error}", function.entry))?;
    let spared: u64 = manifest
        .files
        .iter()
        .filter(|file| excluded.contains(&file.path) && bundle.files.contains(&file.path))
        .map(|file| file.bytes)
        .sum();
    let bytes = bundle.bytes.saturating_sub(spared);
    if bytes > limits.bundle_bytes {
        return Err(format!(
            "{}: the function and what it can load have {}, and {} are allowed (functions.bundle); load less, or name files in excludeFiles",
            function.entry,
            units::readable(bytes),
            units::readable(limits.bundle_bytes)
        ));
    }
    Ok(())
}

/// The digest of a deployment's content (platform-facts: name, configuration, file list with digests).
fn digest(name: &str, upstream: Option<&str>, files: &[ManifestFile]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut part = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    part("perigee deployment 1");
    part(name);
    part(upstream.unwrap_or(""));
    for file in files {
        part(&file.path);
        part(&file.digest);
    }
    hasher.finalize()
}

fn id(digest: &blake3::Hash) -> DeploymentId {
    DeploymentId(format!("dpl_{}", letters(&digest.as_bytes()[..24])))
}

fn uid(digest: &blake3::Hash) -> String {
    letters(&digest.as_bytes()[..9])
}

/// Lower-case letters and digits, as host names allow; the bias of the remainder does not matter for a name.
fn letters(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    bytes.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % 36])).collect()
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Writes a file so that after a crash it holds the old text or the new one.
pub fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}
