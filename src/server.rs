//! Builds the parts, binds the listeners, runs, and drains.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::services::listening::Service;
use pingora_proxy::http_proxy;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin::Admin;
use crate::clock::Clock;
use crate::conf::Conf;
use crate::deployment::alias::Registry;
use crate::exchange;
use crate::front::{Front, Index};
use crate::functions::Functions;
use crate::lock::uncacheable::Uncacheable;
use crate::lock::{Arbiter, NodeLock};
use crate::metrics::Metrics;
use crate::proxy::{Edge, Proxy};
use crate::reload;
use crate::storage::{self, Tiers};
use crate::upstream::Names;

/// What the log shows when `RUST_LOG` does not say. Pingora tells its own errors, and the access lines tell them better.
const LOG_DEFAULT: &str = "info,pingora_proxy=error,pingora_proxy::proxy_cache=off,pingora_core=warn";

/// What a connection reads into: 64 KiB would be Pingora's choice, for every idle connection too.
const READ_BUFFER_BYTES: usize = 16 * 1024;
/// Smaller writes are put together; larger ones go straight to the socket. Small, as a body of announced length that arrives slowly waits
/// here until it is filled.
const WRITE_BUFFER_BYTES: usize = 1460;

/// A purge by another process of this node is seen after this, without a region: one `stat` each time.
const PURGES_LOOKED_FOR: Duration = Duration::from_millis(50);

/// What is on its way to the disk has this long at the end, and so has the good-bye to the region.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);

impl Edge {
    /// Builds what all requests share. `runtime` carries the functions and has to outlive the edge.
    pub fn build(conf: Conf, clock: Clock, runtime: Handle) -> Result<Arc<Edge>, String> {
        let conf = Arc::new(conf);
        let metrics = Arc::new(Metrics::default());
        let registry = Registry::open(conf.clone(), clock.now()).map_err(|error| error.to_string())?;
        let functions = Functions::new(&conf, &registry.store().root().join("run"), runtime.clone(), metrics.clone())
            .map_err(|error| format!("cannot prepare functions: {error}"))?;
        let tiers = storage::open(&conf, clock.clone(), &runtime, metrics.clone())?;
        // Pingora wants these for good: a process has one of each.
        let tiers: &'static Tiers = Box::leak(Box::new(tiers));
        let uncacheable: &'static Uncacheable = Box::leak(Box::new(Uncacheable::new(tiers.region.clone())));
        let arbiter: &'static Arbiter =
            Box::leak(Box::new(Arbiter::new(conf.cache.lock_timeout, tiers, uncacheable, metrics.clone())));
        Ok(Arc::new(Edge {
            registry: Arc::new(registry),
            tiers,
            lock: Box::leak(Box::new(NodeLock(arbiter))),
            uncacheable,
            functions,
            metrics,
            names: Names::default(),
            index: Index::new(conf.cache.memory),
            clock,
            pod: exchange::pod(&conf.node),
            in_flight: Arc::default(),
            ready: AtomicBool::new(false),
        }))
    }

    /// Ends what would outlive the process, and writes what is still to be written.
    async fn shut_down(&self) {
        self.functions.shut_down();
        self.tiers.close(CLOSED_WITHIN).await;
    }

    /// Takes in, soon after, what other processes of the node purged, and notes which log of the region is read.
    pub async fn follow_purges(self: Arc<Edge>) {
        let mut ticks = tokio::time::interval(PURGES_LOOKED_FOR);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.tiers.purges.read_file();
            self.tiers.note_region().await;
        }
    }

    /// What has to be done about once a second.
    pub async fn keep_time(self: Arc<Edge>) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            self.functions.tick();
            self.lock.0.table.sweep(Instant::now());
        }
    }
}

/// `perigee check`: every mistake on stderr, those of the projects that it names too.
pub fn check(path: &Path) -> ExitCode {
    match try_out(path) {
        Ok(()) => {
            println!("{}: no mistakes", path.display());
            ExitCode::SUCCESS
        }
        Err(mistakes) => {
            eprintln!("{mistakes}");
            ExitCode::FAILURE
        }
    }
}

/// Does all that a start would do with a configuration, in a folder that is thrown away.
fn try_out(path: &Path) -> Result<(), String> {
    let mut conf = Conf::load(path).map_err(|mistakes| mistakes.to_string())?;
    let folder = tempfile::tempdir().map_err(|error| format!("cannot make a temporary folder: {error}"))?;
    conf.data = folder.path().to_owned();
    Registry::open(Arc::new(conf), std::time::SystemTime::now()).map(drop).map_err(|error| error.to_string())
}

/// `perigee serve`: runs until a signal ends it.
pub fn run(path: &Path) -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(LOG_DEFAULT)).init();
    match serve(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perigee: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(path: &Path) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Two: what is written to a slow disk (purges) must not hold up what is said to the region.
        .worker_threads(2)
        .thread_name("background")
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    // Before anything else: a SIGHUP that comes while we start must not kill us.
    let signals =
        runtime.block_on(async { Signals::take() }).map_err(|error| format!("cannot take signals: {error}"))?;
    let conf = Conf::load(path).map_err(|mistakes| mistakes.to_string())?;
    for address in conf.listen.http.iter().chain(&conf.listen.admin) {
        can_bind(*address)?;
    }
    let listen = conf.listen.clone();
    let server_conf = pingora_conf(&conf);
    let grace = conf.grace;
    let edge = Edge::build(conf, Clock::default(), runtime.handle().clone())?;
    let mut server = Server::new_with_opt_and_conf(None, server_conf);
    server.bootstrap();
    let proxy = http_proxy(&server.configuration, Proxy(edge.clone()));
    let mut http = Service::new("http".to_owned(), Front::new(edge.clone(), proxy));
    for address in &listen.http {
        let buffers = L4BufferSettings::default().read(READ_BUFFER_BYTES).write(WRITE_BUFFER_BYTES);
        http.add_listener(ListenerConfig::tcp(address.to_string()).l4_buffer(buffers));
    }
    server.add_service(http);
    if let Some(address) = listen.admin {
        let mut admin = Service::new("admin".to_owned(), Admin::new(edge.clone()));
        admin.threads = Some(1);
        admin.add_tcp(&address.to_string());
        server.add_service(admin);
    }
    runtime.spawn(edge.clone().keep_time());
    runtime.spawn(edge.clone().follow_purges());
    runtime.spawn(reload::on_signal(edge.clone(), path.to_owned(), signals.hangup));
    runtime.spawn(drain(edge.clone(), signals.terminate, grace));
    runtime.spawn(become_ready(edge.clone(), listen.http));
    server.run(pingora::server::RunArgs::default());
    runtime.block_on(edge.shut_down());
    shut_down(runtime);
    Ok(())
}

/// What Pingora is told. Its own defaults are one thread, 16 tries of a request and 5 minutes of sleep at the end.
pub fn pingora_conf(conf: &Conf) -> ServerConf {
    ServerConf {
        threads: conf.threads,
        work_stealing: true,
        // `drain` ends the process earlier, as soon as nothing is in flight.
        grace_period_seconds: Some(conf.grace.as_secs() + 1),
        graceful_shutdown_timeout_seconds: Some(1),
        max_retries: 2,
        upstream_keepalive_pool_size: 1024,
        ..ServerConf::default()
    }
}

/// The signals that Perigee acts upon by itself; Pingora takes the others.
struct Signals {
    hangup: Signal,
    terminate: Signal,
}

impl Signals {
    fn take() -> std::io::Result<Signals> {
        Ok(Signals { hangup: signal(SignalKind::hangup())?, terminate: signal(SignalKind::terminate())? })
    }
}

/// Pingora would panic in a thread of its own; this says what is wrong.
fn can_bind(address: SocketAddr) -> Result<(), String> {
    TcpListener::bind(address).map(drop).map_err(|error| format!("cannot listen on {address}: {error}"))
}

/// After SIGTERM: Pingora closes the listeners and lets requests finish; this ends the process when the last one has, or when the
/// time is up. (Pingora by itself would sleep through all of the grace time.)
async fn drain(edge: Arc<Edge>, mut terminate: Signal, grace: Duration) {
    terminate.recv().await;
    edge.ready.store(false, Ordering::Release);
    let deadline = Instant::now() + grace;
    log::info!("SIGTERM: {} requests in flight, at most {grace:?} for them", edge.in_flight());
    // A request that was accepted a moment ago has to be seen first.
    let mut look = tokio::time::interval(Duration::from_millis(100));
    look.tick().await;
    loop {
        look.tick().await;
        let left = edge.in_flight();
        if left == 0 || Instant::now() >= deadline {
            if left > 0 {
                log::warn!("{left} requests did not end within {grace:?} and are cut");
            }
            edge.shut_down().await;
            log::info!("done");
            std::process::exit(0);
        }
    }
}

/// Pingora opens its listeners in threads of their own; ready is who answers.
async fn become_ready(edge: Arc<Edge>, addresses: Vec<SocketAddr>) {
    for mut address in addresses {
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    edge.ready.store(true, Ordering::Release);
    announce(&edge);
}

fn announce(edge: &Edge) {
    let world = edge.registry.world();
    for deployment in world.deployments() {
        let aliases: Vec<String> = world.aliases_of(&deployment.id).into_iter().map(|host| world.url(host)).collect();
        if !aliases.is_empty() {
            log::info!("{} ({}) answers at {}", deployment.name, world.url(&deployment.host), aliases.join(", "));
        }
    }
    if let Some(admin) = world.conf.listen.admin {
        log::info!("admin at http://{admin}");
    }
}

fn shut_down(runtime: Runtime) {
    runtime.shutdown_timeout(Duration::from_secs(1));
}
