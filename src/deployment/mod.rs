//! A deployment: an immutable value made from a project folder, or a name for an upstream.
//!
//! Its id comes from its content: the same files under the same name are the same deployment, any change makes another one.

pub mod alias;
pub mod bundle;
pub mod globs;
pub mod project;
pub mod store;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::functions::Function;
use crate::routing::{Outputs, Router};

/// `dpl_` and 24 characters of the content's digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeploymentId(pub String);

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub struct Deployment {
    pub id: DeploymentId,
    /// Stands for the id where entries are marked with it.
    pub number: u64,
    pub name: String,
    /// Nine characters that make the URL unique: `NAME-UID.DOMAIN`.
    pub uid: String,
    /// `NAME-UID.DOMAIN`, without scheme and port.
    pub host: String,
    pub created: SystemTime,
    pub content: Content,
}

/// A number for an id; two ids of one node do not share one by any chance that matters.
pub fn number(id: &DeploymentId) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&blake3::hash(id.0.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

pub enum Content {
    Project(Box<Project>),
    Upstream(UpstreamUrl),
}

/// What a project folder turned into.
pub struct Project {
    pub router: Router,
    pub outputs: Outputs,
    pub statics: Vec<StaticFile>,
    pub functions: Vec<Arc<Function>>,
    pub listing: bool,
    /// No route looks at fields of the request: what answers depends on host, path and query alone.
    pub plain: bool,
}

/// One row of the table of static files.
#[derive(Debug, Clone)]
pub struct StaticFile {
    /// The path in the URL.
    pub url: String,
    /// Where it lies on this node.
    pub path: PathBuf,
    pub bytes: u64,
    pub etag: String,
    pub content_type: String,
    pub disposition: String,
    pub modified: SystemTime,
}

/// An HTTP origin: `http://host:port` or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamUrl {
    pub tls: bool,
    pub host: String,
    pub port: u16,
}

impl UpstreamUrl {
    /// Reads `http(s)://HOST[:PORT]`; whatever follows is not its business.
    pub fn parse(url: &str) -> Option<UpstreamUrl> {
        let uri: http::Uri = url.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let host = uri.host()?;
        if host.is_empty() {
            return None;
        }
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Some(UpstreamUrl { tls, host: host.trim_matches(['[', ']']).to_owned(), port })
    }

    /// The value of the Host field for it: without the port where that is the usual one.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl Deployment {
    pub fn static_file(&self, index: u32) -> Option<&StaticFile> {
        match &self.content {
            Content::Project(project) => project.statics.get(index as usize),
            Content::Upstream(_) => None,
        }
    }

    pub fn function(&self, index: u32) -> Option<&Arc<Function>> {
        match &self.content {
            Content::Project(project) => project.functions.get(index as usize),
            Content::Upstream(_) => None,
        }
    }

    pub fn functions(&self) -> &[Arc<Function>] {
        match &self.content {
            Content::Project(project) => &project.functions,
            Content::Upstream(_) => &[],
        }
    }

    /// Whether host, path and query decide what answers.
    pub fn is_plain(&self) -> bool {
        match &self.content {
            Content::Project(project) => project.plain,
            Content::Upstream(_) => true,
        }
    }

    pub fn kind(&self) -> &'static str {
        match self.content {
            Content::Project(_) => "project",
            Content::Upstream(_) => "upstream",
        }
    }
}

/// The limits that a deployment is made under, from the configuration.
#[derive(Debug, Clone)]
pub struct Limits {
    pub bundle_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_urls_are_read_or_refused() {
        let check = |url: &str, expected: Option<(bool, &str, u16, &str)>| {
            let got = UpstreamUrl::parse(url);
            let got = got.as_ref().map(|u| (u.tls, u.host.as_str(), u.port, u.authority()));
            assert_eq!(
                got,
                expected.map(|(tls, host, port, authority)| (tls, host, port, authority.to_owned())),
                "{url}"
            );
        };
        check("ftp://x", None);
        check("/x", None);
        check("x", None);
        check("http://", None);
        check("http://127.0.0.1:3000", Some((false, "127.0.0.1", 3000, "127.0.0.1:3000")));
        check("https://example.com/x?y", Some((true, "example.com", 443, "example.com")));
        check("http://[::1]:3000", Some((false, "::1", 3000, "[::1]:3000")));
    }
}
