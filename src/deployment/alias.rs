//! Which host is answered by which deployment. The whole of it is one immutable value, swapped at once: a request that began with one
//! deployment ends with it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::store::{self, Made, Refused, Store};
use super::{Deployment, DeploymentId, Limits};
use crate::conf::{self, Conf, Source};

/// What a request sees of the world.
pub struct World {
    pub conf: Arc<Conf>,
    /// Grows with each change.
    pub generation: u64,
    deployments: HashMap<DeploymentId, Arc<Deployment>>,
    hosts: HashMap<String, Arc<Deployment>>,
    aliases: BTreeMap<String, Alias>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Alias {
    deployment: DeploymentId,
    /// What the configuration said when it last said something new: a switch by hand outlives a reload that says the same as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    configured: Option<DeploymentId>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct AliasFile {
    version: u32,
    aliases: BTreeMap<String, Alias>,
}

impl World {
    /// `host` in lower case and without port.
    pub fn find(&self, host: &str) -> Option<&Arc<Deployment>> {
        self.hosts.get(host)
    }

    pub fn deployments(&self) -> Vec<Arc<Deployment>> {
        let mut all: Vec<_> = self.deployments.values().cloned().collect();
        all.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        all
    }

    /// Finds a deployment by id, by `NAME-UID`, by host (also an alias), or by its URL.
    pub fn named(&self, name: &str) -> Option<&Arc<Deployment>> {
        let name = name.strip_prefix("https://").or_else(|| name.strip_prefix("http://")).unwrap_or(name);
        let host = name.split(['/', ':']).next().unwrap_or(name).to_ascii_lowercase();
        self.deployments.get(&DeploymentId(name.to_owned())).or_else(|| self.hosts.get(&host)).or_else(|| {
            self.deployments
                .values()
                .find(|deployment| deployment.host.strip_suffix(&format!(".{}", self.conf.domain)) == Some(&host))
        })
    }

    pub fn aliases_of(&self, id: &DeploymentId) -> Vec<&str> {
        self.aliases.iter().filter(|(_, alias)| alias.deployment == *id).map(|(host, _)| host.as_str()).collect()
    }

    /// The address under which a deployment can be opened.
    pub fn url(&self, host: &str) -> String {
        match self.conf.listen.http.first().map(std::net::SocketAddr::port) {
            None | Some(80) => format!("http://{host}"),
            Some(port) => format!("http://{host}:{port}"),
        }
    }
}

/// The one who changes the world.
pub struct Registry {
    world: ArcSwap<World>,
    store: Store,
    /// One change at a time.
    change: Mutex<()>,
}

/// Why something was not changed.
#[derive(Debug)]
pub enum Unchanged {
    Refused(Refused),
    NotFound(String),
    /// It is in use, and by what.
    InUse(String),
    /// What was asked for makes no sense.
    Invalid(String),
}

impl std::fmt::Display for Unchanged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unchanged::Refused(refused) => refused.fmt(f),
            Unchanged::NotFound(what) | Unchanged::InUse(what) | Unchanged::Invalid(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Unchanged {}

impl From<Refused> for Unchanged {
    fn from(refused: Refused) -> Unchanged {
        Unchanged::Refused(refused)
    }
}

fn limits(conf: &Conf) -> Limits {
    Limits { bundle_bytes: conf.functions.bundle }
}

impl Registry {
    /// Reads what is on the disk and deploys what the configuration names.
    pub fn open(conf: Arc<Conf>, now: SystemTime) -> Result<Registry, Unchanged> {
        let failed = |error: io::Error| Unchanged::Refused(Refused::Io(error.to_string()));
        let store = Store::open(&conf.data, &conf.domain).map_err(failed)?;
        let deployments = store.load_all().map_err(failed)?;
        let aliases = read_aliases(&alias_path(store.root())).map_err(failed)?;
        let deployments = deployments.into_iter().map(|made| (made.deployment.id.clone(), made.deployment)).collect();
        let world = World { conf: conf.clone(), generation: 0, deployments, hosts: HashMap::new(), aliases };
        let registry = Registry { world: ArcSwap::from_pointee(world), store, change: Mutex::new(()) };
        registry.reload(conf, now)?;
        Ok(registry)
    }

    pub fn world(&self) -> Guard<Arc<World>> {
        self.world.load()
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Takes on a new configuration, with all of its deployments or not at all.
    pub fn reload(&self, conf: Arc<Conf>, now: SystemTime) -> Result<(), Unchanged> {
        let _changing = self.change.lock();
        let mut made = Vec::new();
        let mut mistakes = Vec::new();
        for source in &conf.deployments {
            let result = match &source.source {
                Source::Path(path) => self.store.deploy_folder(path, &source.name, now, &limits(&conf)),
                Source::Upstream(url) => self.store.deploy_upstream(&source.name, url, now, &limits(&conf)),
            };
            match result {
                Ok(deployed) => made.push((deployed, &source.aliases)),
                Err(refused) => mistakes.push(format!(
                    "{}:{}: deployment {:?}: {refused}",
                    conf.file.display(),
                    source.line,
                    source.name
                )),
            }
        }
        if !mistakes.is_empty() {
            return Err(Unchanged::Refused(Refused::Project(mistakes)));
        }
        let world = self.world.load();
        let mut deployments = world.deployments.clone();
        let mut aliases = world.aliases.clone();
        for (deployed, wanted) in made {
            deployed
                .warnings
                .iter()
                .for_each(|warning| log::warn!("deployment {:?}: {warning}", deployed.deployment.name));
            let id = deployed.deployment.id.clone();
            for host in wanted.iter().chain(&deployed.aliases) {
                let known = aliases.get(host).is_some_and(|alias| alias.configured.as_ref() == Some(&id));
                if !known {
                    aliases.insert(host.clone(), Alias { deployment: id.clone(), configured: Some(id.clone()) });
                }
            }
            // One that is there already stays the value that it is: its functions are running.
            deployments.entry(id).or_insert(deployed.deployment);
        }
        self.publish(conf, deployments, aliases)
    }

    /// Deploys what was unpacked into `scratch/files`, and points the aliases at it.
    pub fn deploy(
        &self,
        name: &str,
        scratch: tempfile::TempDir,
        aliases: &[String],
        now: SystemTime,
    ) -> Result<Made, Unchanged> {
        let wanted = aliases.iter().map(|host| check_host(host)).collect::<Result<Vec<_>, _>>()?;
        // The long part needs no order among changes.
        let conf = self.world.load().conf.clone();
        let made = self.store.finish(name, scratch, now, &limits(&conf))?;
        let _changing = self.change.lock();
        if !self.store.holds(&made.deployment.id) {
            return Err(Unchanged::InUse(format!(
                "{} was removed in the meantime; deploy it again",
                made.deployment.id
            )));
        }
        let world = self.world.load();
        let mut deployments = world.deployments.clone();
        let mut table = world.aliases.clone();
        // One that is there already stays the value that it is: its functions are running.
        let deployment =
            deployments.entry(made.deployment.id.clone()).or_insert_with(|| made.deployment.clone()).clone();
        for host in wanted.into_iter().chain(made.aliases.iter().cloned()) {
            point(&mut table, host, &deployment.id);
        }
        self.publish(world.conf.clone(), deployments, table)?;
        Ok(Made { deployment, ..made })
    }

    /// Points a host at a deployment: promote, and rollback. Returns what it pointed at before.
    pub fn alias(&self, host: &str, deployment: &str) -> Result<(DeploymentId, Option<DeploymentId>), Unchanged> {
        let host = check_host(host)?;
        let _changing = self.change.lock();
        let world = self.world.load();
        let id = world
            .named(deployment)
            .ok_or_else(|| Unchanged::NotFound(format!("there is no deployment {deployment:?}")))?
            .id
            .clone();
        let mut aliases = world.aliases.clone();
        let previous = point(&mut aliases, host, &id);
        self.publish(world.conf.clone(), world.deployments.clone(), aliases)?;
        Ok((id, previous))
    }

    pub fn remove(&self, deployment: &str) -> Result<Arc<Deployment>, Unchanged> {
        let _changing = self.change.lock();
        let world = self.world.load();
        let found = world
            .named(deployment)
            .ok_or_else(|| Unchanged::NotFound(format!("there is no deployment {deployment:?}")))?
            .clone();
        let aliases = world.aliases_of(&found.id);
        if !aliases.is_empty() {
            return Err(Unchanged::InUse(format!(
                "{} answers for {}; point them elsewhere first",
                found.id,
                aliases.join(", ")
            )));
        }
        let mut deployments = world.deployments.clone();
        deployments.remove(&found.id);
        self.publish(world.conf.clone(), deployments, world.aliases.clone())?;
        self.store.remove(&found.id).map_err(|error| Unchanged::Refused(Refused::Io(error.to_string())))?;
        Ok(found)
    }

    /// The disk first: what is served is what would be served after a restart.
    fn publish(
        &self,
        conf: Arc<Conf>,
        deployments: HashMap<DeploymentId, Arc<Deployment>>,
        aliases: BTreeMap<String, Alias>,
    ) -> Result<(), Unchanged> {
        if aliases != self.world.load().aliases {
            let file = AliasFile { version: 1, aliases: aliases.clone() };
            let write = || -> io::Result<()> {
                store::write_whole(&alias_path(self.store.root()), &serde_json::to_vec_pretty(&file)?)
            };
            write().map_err(|error| Unchanged::Refused(Refused::Io(format!("keeping the aliases: {error}"))))?;
        }
        let mut hosts: HashMap<String, Arc<Deployment>> =
            deployments.values().map(|deployment| (deployment.host.clone(), deployment.clone())).collect();
        for (host, alias) in &aliases {
            match deployments.get(&alias.deployment) {
                Some(deployment) => {
                    hosts.insert(host.clone(), deployment.clone());
                }
                None => log::warn!("the alias {host} points at {}, which is not there", alias.deployment),
            }
        }
        let generation = self.world.load().generation + 1;
        self.world.store(Arc::new(World { conf, generation, deployments, hosts, aliases }));
        Ok(())
    }
}

fn point(aliases: &mut BTreeMap<String, Alias>, host: String, id: &DeploymentId) -> Option<DeploymentId> {
    let known = aliases.remove(&host);
    let configured = known.as_ref().and_then(|alias| alias.configured.clone());
    aliases.insert(host, Alias { deployment: id.clone(), configured });
    known.map(|alias| alias.deployment)
}

/// A host name as it is looked up: lower case, no port.
fn check_host(host: &str) -> Result<String, Unchanged> {
    let lower = host.trim_end_matches('.').to_ascii_lowercase();
    conf::host(&lower).map_err(|why| Unchanged::Invalid(format!("{host:?}, {why}")))
}

fn alias_path(root: &Path) -> PathBuf {
    root.join("aliases.json")
}

fn read_aliases(path: &Path) -> io::Result<BTreeMap<String, Alias>> {
    match std::fs::read(path) {
        Ok(text) => {
            let file: AliasFile = serde_json::from_slice(&text).map_err(|error| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{}: {error}; repair it or move it away", path.display()),
                )
            })?;
            Ok(file.aliases)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}
