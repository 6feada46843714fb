//! The cache key: everything that reaches an origin and is not the same for all or named by `Vary`.
//!
//! ```text
//! key = blake3("perigee 1", deployment uid, kind, origin, scheme, authority, path, query)[..16]      function, upstream
//! key = blake3("perigee 1", deployment uid, kind, origin, "", "", "", "")[..16]                       static file
//! ```
//! The origin is the function's path, the target of a rewrite, or the file: routes can choose it by cookies and other fields.
//! Each part is preceded by its length, so that no two lists of parts read alike. The method is not a part: only GET and HEAD come
//! here, and they share an entry. The scheme and the host are parts for functions and upstreams, because both see them.
//! A cryptographic hash rather than a fast one: URLs are chosen by strangers, 128 bits of it cannot be made to collide, and every
//! process and node that will ever share an entry computes the same key without sharing a secret.

use std::fmt;

/// What kind of origin fills the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Static,
    Function,
    Upstream,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(pub [u8; 16]);

/// The parts of a key, as sent by the client after the authority was brought to its one form.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    pub deployment: &'a str,
    pub kind: Kind,
    pub origin: &'a str,
    pub scheme: &'a str,
    pub authority: &'a str,
    pub path: &'a str,
    pub query: Option<&'a str>,
}

impl Key {
    pub fn of(parts: &Parts<'_>) -> Key {
        let kind: &[u8] = match parts.kind {
            Kind::Static => b"s",
            Kind::Function => b"f",
            Kind::Upstream => b"u",
        };
        let (scheme, authority, path, query) = match parts.kind {
            Kind::Static => ("", "", "", None),
            _ => (parts.scheme, parts.authority, parts.path, parts.query),
        };
        // `?` is part of the query's form: "/a" and "/a?" are two URLs, and an origin can tell them apart.
        let asked = if query.is_some() { "?" } else { "" };
        let mut hasher = blake3::Hasher::new();
        for part in [
            b"perigee 1".as_slice(),
            parts.deployment.as_bytes(),
            kind,
            parts.origin.as_bytes(),
            scheme.as_bytes(),
            authority.as_bytes(),
            path.as_bytes(),
            asked.as_bytes(),
            query.unwrap_or("").as_bytes(),
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Key(key)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: Parts<'static> = Parts {
        deployment: "d",
        kind: Kind::Function,
        origin: "/f",
        scheme: "http",
        authority: "h",
        path: "/a",
        query: None,
    };

    #[test]
    fn every_part_that_an_origin_sees_makes_another_key() {
        let variants = [
            PARTS,
            Parts { deployment: "e", ..PARTS },
            Parts { kind: Kind::Upstream, ..PARTS },
            Parts { origin: "/g", ..PARTS },
            Parts { scheme: "https", ..PARTS },
            Parts { authority: "h:8080", ..PARTS },
            Parts { path: "/b", ..PARTS },
            Parts { query: Some(""), ..PARTS },
            Parts { query: Some("a=1"), ..PARTS },
            Parts { query: Some("A=1"), ..PARTS },
            Parts { authority: "h/", path: "a", ..PARTS },
            Parts { path: "/a?", query: Some("a=1"), ..PARTS },
        ];
        let keys: std::collections::HashSet<Key> = variants.iter().map(Key::of).collect();
        assert_eq!(keys.len(), variants.len());
    }

    #[test]
    fn static_files_are_shared_by_all_hosts_of_a_deployment() {
        let file = Parts { kind: Kind::Static, ..PARTS };
        assert_eq!(
            Key::of(&file),
            Key::of(&Parts { scheme: "https", authority: "other", path: "/about", query: Some("a"), ..file })
        );
    }
}
