//! Where the store of a region is, and how to get there: directly, by asking a sentinel for the master, or by asking a cluster for the
//! node that has the region. A region lies in one slot, so whichever way it is found, it is one server, spoken to over plain
//! connections; when it moves, that server says so and is looked for again. (The client's own clients for sentinel and cluster do more
//! than is needed, and under time limits of their own.)

use std::future::Future;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisError,
    TlsCertificates, Value,
};
use tokio::time::timeout;

use super::reply;

/// A connection is there, with TLS and login, or given up.
pub const SETUP: Duration = Duration::from_millis(250);

#[derive(Clone)]
pub struct Address {
    /// `redis://` or `rediss://` for TLS. Of the server, of sentinels, or of some nodes of the cluster; the first that answers.
    pub urls: Vec<String>,
    pub mode: Mode,
    /// For the server. A sentinel is logged in to by what its URL says.
    pub username: Option<String>,
    pub password: Option<String>,
    /// Trusted instead of what the system trusts.
    pub ca_pem: Option<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    Single,
    Sentinel { master: String },
    Cluster,
}

/// Why it is not reached. For the log; no secrets.
pub type Cause = String;

/// An address that was read.
pub struct Places {
    seeds: Vec<ConnectionInfo>,
    mode: Mode,
    username: Option<String>,
    password: Option<String>,
    ca_pem: Option<Vec<u8>>,
}

impl Address {
    pub fn read(&self) -> Result<Places, Cause> {
        if self.urls.is_empty() {
            return Err("a region needs the URL of its store".into());
        }
        let mut seeds = Vec::new();
        for url in &self.urls {
            // Without the URL: it may hold a password.
            let info = url.as_str().into_connection_info().map_err(|error| format!("a URL of a region: {error}"))?;
            seeds.push(info);
        }
        let places = Places {
            seeds,
            mode: self.mode.clone(),
            username: self.username.clone(),
            password: self.password.clone(),
            ca_pem: self.ca_pem.clone(),
        };
        // So that a certificate that cannot be read is found now.
        places.client(&places.seeds[0], places.seeds[0].addr().clone(), false).map_err(|error| error.to_string())?;
        Ok(places)
    }
}

impl Places {
    /// Finds the server that has `key`. Each server that is asked has `SETUP` for its answer.
    pub async fn find(&self, key: &str) -> Result<Client, Cause> {
        let mut cause = Cause::new();
        for seed in &self.seeds {
            match timeout(SETUP, self.find_by(seed, key)).await {
                Ok(Ok(client)) => return Ok(client),
                Ok(Err(error)) => cause = error,
                Err(_) => cause = "no answer in time".into(),
            }
        }
        Err(cause)
    }

    async fn find_by(&self, seed: &ConnectionInfo, key: &str) -> Result<Client, Cause> {
        let text = |error: RedisError| error.to_string();
        let found = match &self.mode {
            // Whether it is there is seen when it is connected to, unless there is a choice.
            Mode::Single if self.seeds.len() == 1 => seed.addr().clone(),
            Mode::Single => {
                connection(&self.client(seed, seed.addr().clone(), true).map_err(text)?).await?;
                seed.addr().clone()
            }
            Mode::Sentinel { master } => {
                let client = self.client(seed, seed.addr().clone(), false).map_err(text)?;
                let mut sentinel = connection(&client).await?;
                let mut ask = redis::cmd("SENTINEL");
                ask.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
                let answer = sentinel.send_packed_command(&ask).await.map_err(text)?;
                let [host, port] = reply::array(answer).ok_or("the sentinel does not know the master")?;
                moved(seed, reply::text(host), reply::text(port).and_then(|port| port.parse().ok()))
                    .ok_or("the sentinel's answer is not understood")?
            }
            Mode::Cluster => {
                let client = self.client(seed, seed.addr().clone(), true).map_err(text)?;
                let mut node = connection(&client).await?;
                let mut ask = redis::cmd("CLUSTER");
                ask.arg("KEYSLOT").arg(key);
                let slot = reply::number(node.send_packed_command(&ask).await.map_err(text)?);
                let slots = node.send_packed_command(redis::cmd("CLUSTER").arg("SLOTS")).await.map_err(text)?;
                owner(seed, slots, slot.ok_or("the cluster's answer is not understood")?)
                    .ok_or("no node of the cluster has the slot")?
            }
        };
        self.client(seed, found, true).map_err(text)
    }

    /// `login`: as the address says, not as the URL does.
    fn client(&self, seed: &ConnectionInfo, addr: ConnectionAddr, login: bool) -> Result<Client, RedisError> {
        let mut settings = seed.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        if login {
            if let Some(username) = &self.username {
                settings = settings.set_username(username);
            }
            if let Some(password) = &self.password {
                settings = settings.set_password(password);
            }
        }
        let tls = matches!(addr, ConnectionAddr::TcpTls { .. });
        let info = seed
            .clone()
            .set_addr(addr)
            .set_redis_settings(settings)
            // Small requests follow each other closely, and each is waited for.
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        match &self.ca_pem {
            Some(pem) if tls => {
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(pem.clone()) })
            }
            _ => Client::open(info),
        }
    }
}

/// Time limits are the caller's.
fn without_limits() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None)
}

pub fn connection(client: &Client) -> impl Future<Output = Result<MultiplexedConnection, Cause>> {
    connection_with(client, without_limits())
}

/// Hands what the server sends by itself to `news`.
pub async fn listening(
    client: &Client,
    news: impl Fn(redis::PushInfo) -> Result<(), ()> + Send + Sync + 'static,
) -> Result<MultiplexedConnection, Cause> {
    connection_with(client, without_limits().set_push_sender(news)).await
}

async fn connection_with(client: &Client, config: AsyncConnectionConfig) -> Result<MultiplexedConnection, Cause> {
    let config = config.set_pipeline_buffer_size(1_024);
    client.get_multiplexed_async_connection_with_config(&config).await.map_err(|error| error.to_string())
}

/// The same way of speaking, to another host.
fn moved(seed: &ConnectionInfo, host: Option<String>, port: Option<u16>) -> Option<ConnectionAddr> {
    let (mut addr, to_host, to_port) = (seed.addr().clone(), host?, port?);
    match &mut addr {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            *port = to_port;
            // A node that does not know its own address means: the one that you came by.
            if !to_host.is_empty() && to_host != "?" {
                *host = to_host;
            }
        }
        _ => return None,
    }
    Some(addr)
}

/// `CLUSTER SLOTS`: first, last, [host, port, ..] of the master, replicas.
fn owner(seed: &ConnectionInfo, slots: Value, slot: u64) -> Option<ConnectionAddr> {
    reply::list(slots)?.into_iter().find_map(|range| {
        let mut range = reply::list(range)?.into_iter();
        let (first, last) = (reply::number(range.next()?)?, reply::number(range.next()?)?);
        let mut master = reply::list(range.next()?)?.into_iter();
        let (host, port) = (master.next()?, reply::number(master.next()?)?);
        let host = reply::text(host).unwrap_or_default();
        (first <= slot && slot <= last).then(|| moved(seed, Some(host), u16::try_from(port).ok()))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(urls: &[&str]) -> Address {
        let urls = urls.iter().map(|url| url.to_string()).collect();
        Address { urls, mode: Mode::Single, username: None, password: None, ca_pem: None }
    }

    #[test]
    fn a_url_that_is_wrong_is_refused_without_showing_it() {
        for url in ["", "http://a", "redis://:secret@", "redis://:secret@a:x"] {
            let cause = address(&[url]).read().err().expect("it is wrong");
            assert!(!cause.contains("secret"), "{cause}");
        }
        assert!(address(&[]).read().is_err());
        assert!(address(&["redis://a", "rediss://user:word@a:7000/3"]).read().is_ok());
    }

    #[test]
    fn the_owner_of_a_slot_is_found_among_the_ranges() {
        let seed = "rediss://seed:7000".into_connection_info().expect("a URL");
        let range = |first, last, host: &str, port| {
            let master = Value::Array(vec![Value::BulkString(host.into()), Value::Int(port)]);
            Value::Array(vec![Value::Int(first), Value::Int(last), master])
        };
        let slots = Value::Array(vec![range(0, 99, "a", 1), range(100, 16_383, "", 2)]);
        let at = |slot| owner(&seed, slots.clone(), slot).map(|addr| addr.to_string());
        assert_eq!(at(0).as_deref(), Some("a:1"));
        assert_eq!(at(100).as_deref(), Some("seed:2"));
        assert_eq!(at(16_384), None);
    }
}
