//! Functions: who runs, who waits, and what an invocation costs. `pool` decides, this file does it.

pub mod bridge;
pub mod instance;
pub mod pool;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use self::instance::{Instance, Message, Messages, Setting, Started};
use self::pool::{Action, Bounds, Census, Event, FunctionKey, InstanceId, Pool, Refusal, Ticket};
use crate::conf;
use crate::deployment::project::{FunctionSpec, Project};
use crate::deployment::{DeploymentId, store};
use crate::lock::breaker::Breaker;
use crate::metrics::Metrics;

/// The program that loads a function inside its process.
const LAUNCHER: &str = include_str!("launcher.mjs");

/// A socket's path has 107 bytes at most, and `/PID-XXXXXX/NUMBER.control` belongs to it.
const RUN_BYTES_MAX: usize = 70;

/// Instances that start at the same time, per core.
const STARTS_PER_CORE: usize = 2;

/// How long an invocation waits for an instance to become free, at most.
const QUEUE_WAIT_MAX: Duration = Duration::from_secs(30);

/// One function of one deployment.
#[derive(Debug)]
pub struct Function {
    /// The deployment's id and the path, with a space between.
    pub key: FunctionKey,
    /// The path in the URL: `/api/date`.
    pub path: String,
    pub entry: PathBuf,
    /// The folder that it runs in.
    pub root: PathBuf,
    /// What the project asks for; the configuration's limit holds as well.
    max_duration: Option<Duration>,
    /// Bytes; the same.
    memory: Option<u64>,
    pub breaker: Breaker,
    env: Vec<(String, String)>,
    deployment: DeploymentId,
    host: String,
}

impl Function {
    pub fn new(id: &DeploymentId, host: &str, spec: &FunctionSpec, project: &Project, files: &Path) -> Function {
        Function {
            key: format!("{id} {}", spec.path).into(),
            path: spec.path.clone(),
            entry: files.join(&spec.entry),
            root: files.to_owned(),
            max_duration: spec.max_duration_s.map(Duration::from_secs),
            memory: spec.memory_mb.map(|mb| mb << 20),
            breaker: Breaker::default(),
            env: project.env.clone(),
            deployment: id.clone(),
            host: host.to_owned(),
        }
    }

    /// What the function sees of the world: what the platform documents and what the deployment names, nothing of ours.
    fn environment(&self, region: &str) -> BTreeMap<String, String> {
        let mut env: BTreeMap<String, String> = [
            ("PATH", std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned())),
            ("HOME", "/tmp".to_owned()),
            ("LANG", "en_US.UTF-8".to_owned()),
            ("TZ", ":UTC".to_owned()),
            ("NODE_ENV", "production".to_owned()),
            ("NOW_REGION", region.to_owned()),
            ("VERCEL_REGION", region.to_owned()),
            ("VERCEL", "1".to_owned()),
            ("VERCEL_ENV", "production".to_owned()),
            ("VERCEL_URL", self.host.clone()),
            ("VERCEL_DEPLOYMENT_ID", self.deployment.0.clone()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        env.extend(self.env.iter().cloned());
        env
    }
}

/// Why there is no instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotLent {
    /// Too many wait already, or it waited too long. Carries when to come again.
    Throttled(Duration),
    /// It does not start.
    StartFailed,
}

pub struct Functions {
    pool: Mutex<Pool>,
    instances: Mutex<HashMap<InstanceId, Arc<Instance>>>,
    tickets: Mutex<HashMap<Ticket, oneshot::Sender<Result<InstanceId, Refusal>>>>,
    /// The functions that instances are being asked for, by key.
    known: Mutex<HashMap<FunctionKey, Arc<Function>>>,
    /// End what runs too long, by instance.
    watchdogs: Mutex<HashMap<InstanceId, AbortHandle>>,
    numbers: AtomicU64,
    limits: Mutex<conf::Functions>,
    region: String,
    folder: tempfile::TempDir,
    runtime: Handle,
    metrics: Arc<Metrics>,
}

impl Functions {
    /// `runtime` carries the processes; it has to outlive them.
    /// Sockets go below `run`, which the next process clears after us, unless its path leaves no room for a socket's name.
    pub fn new(conf: &conf::Conf, run: &Path, runtime: Handle, metrics: Arc<Metrics>) -> io::Result<Arc<Functions>> {
        let prefix = store::own_prefix();
        let mut folder = tempfile::Builder::new();
        let folder = folder.prefix(&prefix);
        let folder = if run.as_os_str().len() <= RUN_BYTES_MAX { folder.tempdir_in(run)? } else { folder.tempdir()? };
        std::fs::write(folder.path().join("launcher.mjs"), LAUNCHER)?;
        Ok(Arc::new(Functions {
            pool: Mutex::new(Pool::new(bounds(&conf.functions))),
            instances: Mutex::default(),
            tickets: Mutex::default(),
            known: Mutex::default(),
            watchdogs: Mutex::default(),
            numbers: AtomicU64::new(1),
            limits: Mutex::new(conf.functions.clone()),
            region: conf.region.clone(),
            folder,
            runtime,
            metrics,
        }))
    }

    /// Takes on new limits.
    pub fn reconfigure(&self, conf: &conf::Functions) {
        self.pool.lock().set_bounds(bounds(conf));
        *self.limits.lock() = conf.clone();
    }

    /// Lends an instance, starting one if need be.
    pub async fn lend(self: &Arc<Functions>, function: &Arc<Function>) -> Result<Loan, NotLent> {
        let ticket = Ticket(self.numbers.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = oneshot::channel();
        self.tickets.lock().insert(ticket, sender);
        self.known.lock().insert(function.key.clone(), function.clone());
        let mut asking = Asking { functions: self, ticket, function, receiver, over: false };
        self.apply(Event::Ask { ticket, function: function.key.clone() });
        let told = tokio::time::timeout(QUEUE_WAIT_MAX, &mut asking.receiver).await;
        asking.over = matches!(told, Ok(Ok(_)));
        match told {
            Ok(Ok(Ok(id))) => {
                let instance = self.instances.lock().get(&id).cloned();
                match instance {
                    Some(instance) => Ok(Loan::new(self.clone(), instance, self.limit(function))),
                    None => Err(NotLent::StartFailed),
                }
            }
            Ok(Ok(Err(Refusal::StartFailed | Refusal::Retired))) => Err(NotLent::StartFailed),
            Ok(Ok(Err(Refusal::Throttled)) | Err(_)) | Err(_) => {
                self.metrics.functions_throttled.inc();
                Err(NotLent::Throttled(Duration::from_secs(1)))
            }
        }
    }

    /// How long an invocation of this function may take.
    fn limit(&self, function: &Function) -> Duration {
        let most = self.limits.lock().max_duration;
        function.max_duration.map_or(most, |own| own.min(most))
    }

    pub fn census(&self) -> Census {
        self.pool.lock().census()
    }

    /// Stops the instances of a deployment that is gone.
    pub fn retire(self: &Arc<Functions>, deployment: &DeploymentId) {
        self.known.lock().retain(|_, function| function.deployment != *deployment);
        self.apply(Event::Retire { deployment: deployment.0.clone() });
    }

    /// Lets time pass; to be called about once a second.
    pub fn tick(self: &Arc<Functions>) {
        self.apply(Event::Tick);
    }

    /// Ends all instances; nothing is lent and nothing starts any more.
    pub fn shut_down(self: &Arc<Functions>) {
        self.apply(Event::Close);
        // The process may end without running destructors.
        let _ = std::fs::remove_dir_all(self.folder.path());
    }

    fn apply(self: &Arc<Functions>, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let actions = self.pool.lock().apply(event, Instant::now());
            for action in actions {
                events.extend(self.perform(action));
            }
        }
    }

    /// Does what the pool wants; says what came of it where that is known at once.
    fn perform(self: &Arc<Functions>, action: Action) -> Vec<Event> {
        match action {
            Action::Start { instance, function } => {
                let Some(function) = self.known.lock().get(&function).cloned() else {
                    return vec![Event::Exited(instance)];
                };
                self.runtime.spawn(self.clone().run(instance, function));
                Vec::new()
            }
            Action::Stop(id) => {
                if let Some(instance) = self.instances.lock().get(&id) {
                    instance.kill();
                }
                Vec::new()
            }
            Action::Lend { ticket, instance } => {
                let told = self.tickets.lock().remove(&ticket).is_some_and(|sender| sender.send(Ok(instance)).is_ok());
                if told { Vec::new() } else { vec![Event::Done(instance)] }
            }
            Action::Refuse { ticket, refusal } => {
                if let Some(sender) = self.tickets.lock().remove(&ticket) {
                    // Whoever asked may be gone.
                    let _ = sender.send(Err(refusal));
                }
                Vec::new()
            }
        }
    }

    /// The invocation is over: nothing has to watch it.
    fn call_off(&self, id: InstanceId) {
        if let Some(watchdog) = self.watchdogs.lock().remove(&id) {
            watchdog.abort();
        }
    }

    /// The life of one instance.
    async fn run(self: Arc<Functions>, id: InstanceId, function: Arc<Function>) {
        let began = Instant::now();
        let limits = self.limits.lock().clone();
        let memory = function.memory.map_or(limits.memory, |own| own.min(limits.memory));
        let launcher = self.folder.path().join("launcher.mjs");
        let setting = Setting {
            node: &limits.node,
            launcher: &launcher,
            sockets: self.folder.path(),
            region: &self.region,
            memory,
        };
        match instance::start(id, function.clone(), &setting) {
            Ok(started) => {
                self.metrics.function_starts.inc();
                self.instances.lock().insert(id, started.instance.clone());
                // Stopped before there was anything to stop.
                if !self.pool.lock().is_wanted(id) {
                    started.instance.kill();
                }
                self.attend(id, &function, started, began).await;
                self.instances.lock().remove(&id);
                self.call_off(id);
            }
            Err(error) => log::error!("{}: {error}", function.key),
        }
        self.apply(Event::Exited(id));
    }

    async fn attend(
        self: &Arc<Functions>,
        id: InstanceId,
        function: &Arc<Function>,
        mut started: Started,
        began: Instant,
    ) {
        let instance = started.instance.clone();
        let connected = tokio::select! {
            connected = instance::connected(&started.control) => connected.ok(),
            _ = started.child.wait() => None,
        };
        let listening = async {
            if let Some(messages) = connected {
                self.listen(id, function, &instance, messages, began).await;
            }
        };
        tokio::join!(listening, started.ended());
    }

    /// Hears the launcher out. When it falls silent, the process is gone or useless.
    async fn listen(
        self: &Arc<Functions>,
        id: InstanceId,
        function: &Function,
        instance: &Instance,
        mut messages: Messages,
        began: Instant,
    ) {
        while let Some(message) = messages.next().await {
            match message {
                Message::Ready => {
                    self.metrics.function_start_seconds.observe(began.elapsed().as_secs_f64());
                    self.apply(Event::Ready(id));
                }
                Message::StartFailed { message, stack } => {
                    log::error!(target: "function", "{} instance={} does not start: {message} {}", function.key, id.0, stack.escape_debug());
                    self.apply(Event::StartFailed(id));
                }
                Message::End { .. } => {
                    self.call_off(id);
                    self.apply(Event::Done(id));
                }
                Message::Error { id: invocation, message, stack } => log::error!(
                    target: "function",
                    "{} instance={} invocation={} failed: {message} {}",
                    function.key, id.0, invocation.as_deref().unwrap_or("-"), stack.escape_debug()
                ),
            }
        }
        instance.kill();
    }
}

fn bounds(conf: &conf::Functions) -> Bounds {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Bounds {
        instances_max: conf.instances,
        starting_max: cores * STARTS_PER_CORE,
        queue_max: conf.queue,
        idle: conf.idle,
        start: conf.start_timeout,
    }
}

/// Somebody waits for an instance; if it stops waiting, its place is given up.
struct Asking<'a> {
    functions: &'a Arc<Functions>,
    ticket: Ticket,
    function: &'a Function,
    receiver: oneshot::Receiver<Result<InstanceId, Refusal>>,
    over: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.functions.tickets.lock().remove(&self.ticket);
            self.functions.apply(Event::Forget { ticket: self.ticket, function: self.function.key.clone() });
            // Lent in the moment in which nobody looked any more.
            self.receiver.close();
            if let Ok(Ok(id)) = self.receiver.try_recv() {
                self.functions.apply(Event::Done(id));
            }
        }
    }
}

/// The use of an instance for one invocation. Given back by `Drop`.
pub struct Loan {
    functions: Arc<Functions>,
    instance: Arc<Instance>,
    invocation: String,
    began: Instant,
    limit: Duration,
    sent: bool,
    timed_out: Arc<AtomicBool>,
}

impl Loan {
    fn new(functions: Arc<Functions>, instance: Arc<Instance>, limit: Duration) -> Loan {
        let number = functions.numbers.fetch_add(1, Ordering::Relaxed);
        let timed_out = Arc::new(AtomicBool::new(false));
        let watchdog = functions.runtime.spawn({
            let (instance, timed_out) = (instance.clone(), timed_out.clone());
            async move {
                tokio::time::sleep(limit).await;
                timed_out.store(true, Ordering::Release);
                log::error!(target: "function", "{} instance={} ran longer than {limit:?}", instance.function.key, instance.id.0);
                instance.kill();
            }
        });
        // Stays after the loan: work that goes on after the answer has the rest of the time limit.
        functions.watchdogs.lock().insert(instance.id, watchdog.abort_handle());
        Loan {
            functions,
            instance,
            invocation: number.to_string(),
            began: Instant::now(),
            limit,
            sent: false,
            timed_out,
        }
    }

    pub fn socket(&self) -> &str {
        &self.instance.socket
    }

    pub fn invocation(&self) -> &str {
        &self.invocation
    }

    pub fn max_duration(&self) -> Duration {
        self.limit
    }

    /// From now on the function may be at it.
    pub fn mark_sent(&mut self) {
        self.sent = true;
    }

    pub fn timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Acquire)
    }

    /// Whether the process ended by itself and without an error code, which means that it did not care to answer.
    pub async fn ended_quietly(&self) -> bool {
        let end = tokio::time::timeout(Duration::from_millis(250), self.instance.end()).await;
        matches!(end, Ok(Some(status)) if status.success())
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.functions.metrics.function_seconds.observe(self.began.elapsed().as_secs_f64());
        let id = self.instance.id;
        if !self.sent {
            self.functions.call_off(id);
            self.functions.apply(Event::Done(id));
        }
    }
}
