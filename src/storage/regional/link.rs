//! The connections to the store of a region, and what keeps an operation from waiting for it: a deadline each, a bound on how many are
//! under way, a breaker. Connections are made in the background only; an operation finds one or goes without.
//!
//! ```text
//!   session = small: scripts, and the messages that the store sends     bulk: what is larger than 256 KiB
//! ```
//! A session is one piece: when a part of it breaks, or its server is no longer the right one, it is thrown away as a whole, and both
//! connections are made again to whoever is the right one now.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, PushKind, RedisError, ServerErrorKind, Value};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use super::address::{self, Cause, Places, SETUP};
use super::breaker::Breaker;
use super::reply;
use super::scripts::{self, Call};
use crate::lock::region::Unavailable;

pub const DEADLINE: Duration = Duration::from_millis(100);
/// What is larger goes over a connection of its own, so that small operations do not queue behind it.
pub const INLINE_BYTES_MAX: usize = 256 * 1024;
const PER_MIB: Duration = Duration::from_millis(20);
/// Operations under way at once. At 100 µs each that is 40 times what one server can do in 100 ms, and some MiB at worst.
const SMALL_MAX: usize = 4_096;
const PATIENT_MAX: usize = 256;
const BULK_MAX: usize = 64;

/// Told of each operation: its name, how long it took, whether it was answered.
pub type Observer = Arc<dyn Fn(&'static str, Duration, bool) + Send + Sync>;

pub struct Link {
    places: Places,
    observer: Observer,
    /// Guards which connections are in use. Read by each operation.
    session: RwLock<Option<Session>>,
    breaker: Breaker,
    small: Semaphore,
    patient: Semaphore,
    bulk: Semaphore,
    pub counts: Counts,
}

#[derive(Clone)]
pub struct Session {
    small: MultiplexedConnection,
    bulk: MultiplexedConnection,
    /// It is of no more use.
    pub ended: Arc<Notify>,
}

#[derive(Default)]
pub struct Counts {
    pub operations: AtomicU64,
    pub failures: AtomicU64,
    pub timeouts: AtomicU64,
    pub bytes_read: AtomicU64,
    pub bytes_written: AtomicU64,
}

/// Which connection, and how long at most.
#[derive(Debug, Clone, Copy)]
pub enum Lane {
    Small,
    /// Small, but not to be turned away because requests are many.
    Patient(Duration),
    Bulk {
        bytes: usize,
    },
}

impl Lane {
    /// For a value of that size.
    pub fn of(bytes: usize) -> Lane {
        if bytes > INLINE_BYTES_MAX { Lane::Bulk { bytes } } else { Lane::Small }
    }

    fn deadline(self) -> Duration {
        match self {
            Lane::Small => DEADLINE,
            Lane::Patient(deadline) => deadline,
            Lane::Bulk { bytes } => {
                DEADLINE + PER_MIB * u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX >> 8)
            }
        }
    }
}

impl Link {
    pub fn new(places: Places, observer: Observer) -> Link {
        Link {
            places,
            observer,
            session: RwLock::default(),
            breaker: Breaker::default(),
            small: Semaphore::new(SMALL_MAX),
            patient: Semaphore::new(PATIENT_MAX),
            bulk: Semaphore::new(BULK_MAX),
            counts: Counts::default(),
        }
    }

    /// For a request: not tried while the breaker is open.
    pub async fn call(&self, call: Call, lane: Lane) -> Result<Value, Unavailable> {
        let session = self.session().ok_or(Unavailable)?;
        // What is large is no probe: its time says little about the store.
        let admitted = match lane {
            Lane::Bulk { .. } => !self.breaker.is_open(),
            _ => self.breaker.admits(Instant::now()),
        };
        if !admitted {
            return Err(Unavailable);
        }
        self.call_regardless(&session, call, lane).await
    }

    /// For what keeps the region going, and for purges: tried in any case.
    pub async fn call_regardless(&self, session: &Session, call: Call, lane: Lane) -> Result<Value, Unavailable> {
        let (places, connection) = match lane {
            Lane::Bulk { .. } => (&self.bulk, &session.bulk),
            Lane::Small => (&self.small, &session.small),
            Lane::Patient(_) => (&self.patient, &session.small),
        };
        let _place = places.try_acquire().map_err(|_| Unavailable)?;
        self.counts.operations.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes_written.fetch_add(call.bytes as u64, Ordering::Relaxed);
        let began = Instant::now();
        let answer = timeout(lane.deadline(), ask(connection.clone(), &call)).await;
        let now = Instant::now();
        (self.observer)(call.operation, now - began, matches!(answer, Ok(Ok(_))));
        let answer = match answer {
            Ok(Ok(value)) => {
                self.counts.bytes_read.fetch_add(reply::size(&value) as u64, Ordering::Relaxed);
                self.breaker.succeeded(began);
                return Ok(value);
            }
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        match &answer {
            Some(error) if is_the_end(error) => session.ended.notify_one(),
            Some(error) => log::debug!("region: {} failed: {error}", call.operation),
            None => _ = self.counts.timeouts.fetch_add(1, Ordering::Relaxed),
        }
        // Large values that queue up for a slow network are no reason to stop asking small questions.
        if !matches!(lane, Lane::Bulk { .. }) {
            self.breaker.failed(now);
        }
        Err(Unavailable)
    }

    /// Sends without waiting for the answer, after what was sent before. For what is good to be done, and no harm if it is not.
    pub async fn tell(&self, call: Call) {
        if self.breaker.is_open() {
            return;
        }
        if let (Some(session), Ok(_place)) = (self.session(), self.small.try_acquire()) {
            let (mut connection, mut cmd) = (session.small, call.cmd);
            cmd.set_no_response(true);
            let _ = timeout(DEADLINE, connection.send_packed_command(&cmd)).await;
        }
    }

    /// Connects to whoever has the region, subscribes, and teaches it the scripts. Nobody uses the session before `use_session`.
    pub async fn connect(
        &self,
        key: &str,
        channel: &str,
        news: impl Fn(&[u8]) + Send + Sync + 'static,
    ) -> Result<Session, Cause> {
        let client = self.places.find(key).await?;
        let ended = Arc::new(Notify::new());
        let broken = ended.clone();
        let listen = move |push: redis::PushInfo| {
            match (push.kind, push.data.get(1)) {
                (PushKind::Message, Some(Value::BulkString(message))) => news(message),
                (PushKind::Disconnection, _) => broken.notify_one(),
                _ => {}
            }
            Ok(())
        };
        let connections = async { tokio::try_join!(address::listening(&client, listen), address::connection(&client)) };
        let (small, bulk) = timeout(SETUP, connections).await.map_err(|_| "no connection in time")??;
        let mut session = Session { small, bulk, ended };
        let mut load = redis::pipe();
        for script in scripts::all() {
            load.cmd("SCRIPT").arg("LOAD").arg(script.text);
        }
        let prepare = async {
            session.small.subscribe(channel).await?;
            load.exec_async(&mut session.small).await
        };
        let prepared = timeout(SETUP, prepare).await.map_err(|_| "connected, but no answer in time")?;
        prepared.map_err(|error| error.to_string())?;
        Ok(session)
    }

    pub fn use_session(&self, session: &Session) {
        *self.session.write() = Some(session.clone());
        self.breaker.close();
    }

    /// What was in use, if any; nothing is now.
    pub fn drop_session(&self) -> Option<Session> {
        self.session.write().take()
    }

    pub fn session(&self) -> Option<Session> {
        self.session.read().clone()
    }

    pub fn is_connected(&self) -> bool {
        self.session.read().is_some()
    }

    pub fn breaker_is_open(&self) -> bool {
        self.breaker.is_open()
    }
}

async fn ask(mut connection: MultiplexedConnection, call: &Call) -> Result<Value, RedisError> {
    let answer = plain(connection.send_packed_command(&call.cmd).await);
    match (answer, call.script) {
        // The server forgot it: SCRIPT FLUSH, or a replica that became the master.
        (Err(error), Some(script)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
            plain(connection.send_packed_command(redis::cmd("SCRIPT").arg("LOAD").arg(script.text)).await)?;
            plain(connection.send_packed_command(&call.cmd).await)
        }
        (answer, _) => answer,
    }
}

fn plain(answer: Result<Value, RedisError>) -> Result<Value, RedisError> {
    answer.and_then(Value::extract_error)
}

/// The connection broke, or the server is not the one to ask any more.
fn is_the_end(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, MasterDown, Moved, ReadOnly};
    error.is_unrecoverable_error()
        || matches!(error.kind(), ErrorKind::Server(Moved | Ask | ReadOnly | MasterDown | ClusterDown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_grows_with_what_is_large_only() {
        let ms = |bytes| Lane::of(bytes).deadline().as_millis();
        assert_eq!(ms(0), 100);
        assert_eq!(ms(INLINE_BYTES_MAX), 100);
        assert_eq!(ms(INLINE_BYTES_MAX + 1), 120);
        assert_eq!(ms(10 << 20), 300);
        assert_eq!(ms((10 << 20) + 1), 320);
    }
}
