//! A node as its operator has it: the program, its configuration file, its ports, its standard error.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::edge::{Answer, request, until};

/// Long enough for a busy machine; nothing waits for this when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

/// The program, as a shell would start it, with nothing of this process's settings. `PERIGEE` names another build of it: what measures
/// wants the release build.
pub fn perigee() -> Command {
    let built = || env!("CARGO_BIN_EXE_perigee").into();
    let mut command = Command::new(std::env::var_os("PERIGEE").unwrap_or_else(built));
    command.env_remove("PERIGEE_ADMIN").env_remove("PERIGEE_TOKEN").env("RUST_LOG", "info").stdin(Stdio::null());
    command
}

pub fn run(command: &mut Command) -> Run {
    Run::of(command.output().expect("the program runs"))
}

/// How a command ended.
#[derive(Debug)]
pub struct Run {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    fn of(output: Output) -> Run {
        Run {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("text"),
            stderr: String::from_utf8(output.stderr).expect("text"),
        }
    }

    pub fn succeeded(self) -> Run {
        assert_eq!(self.status, Some(0), "{self:?}");
        self
    }

    /// It failed with exit status 1, said all of this on standard error, and did not panic.
    pub fn failed(self, said: &[&str]) -> Run {
        assert_eq!(self.status, Some(1), "{self:?}");
        for part in said {
            assert!(self.stderr.contains(part), "{part:?} is not in:\n{}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    pub fn last_line(&self) -> &str {
        self.stdout.lines().last().unwrap_or_default()
    }
}

/// A folder, a loopback address and two ports of its own.
pub struct Place {
    pub dir: Arc<TempDir>,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    /// What the node tells, as `RUST_LOG` has it.
    pub log: &'static str,
}

impl Place {
    pub fn new() -> Place {
        // An address of its own, so that nobody else has a port of it. Not tried by binding: a listener that another test's child
        // inherits between fork and exec would keep it taken for a moment.
        static PLACES: AtomicU8 = AtomicU8::new(1);
        let [.., high, low] = std::process::id().to_be_bytes();
        let ip = Ipv4Addr::new(127, 64 + high % 64, low, PLACES.fetch_add(1, Ordering::Relaxed));
        let address = |port| SocketAddr::from((ip, port));
        let dir = Arc::new(tempfile::tempdir().expect("a folder"));
        Place { dir, http: address(8080), admin: address(9180), log: "info" }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn file(&self) -> PathBuf {
        self.path("perigee.yaml")
    }

    /// Writes the configuration. `yaml`: what follows the keys that every test has; `{dir}` stands for the folder.
    pub fn configure(&self, yaml: &str) {
        let dir = self.dir.path().display().to_string();
        let text = format!(
            "region: sfo1\nnode: test-a\nthreads: 2\ndata: {dir}/data\ndomain: now.test\n\
             listen: {{http: [\"{}\"], admin: \"{}\"}}\n{}\n",
            self.http,
            self.admin,
            yaml.replace("{dir}", &dir)
        );
        std::fs::write(self.file(), text).expect("a file");
    }

    /// Starts a node that is expected to end by itself, and waits for that.
    pub fn serve_in_vain(&self) -> Run {
        run(perigee().arg("-c").arg(self.file()).current_dir(self.dir.path()))
    }

    /// Starts a node and waits until it is ready.
    pub async fn start(&self) -> Server {
        let log = self.path("stderr.log");
        let stderr = std::fs::File::options().create(true).append(true).open(&log).expect("a file");
        let mut command = perigee();
        command.arg("-c").arg(self.file()).current_dir(self.dir.path()).stdout(Stdio::null()).stderr(stderr);
        command.env("RUST_LOG", self.log);
        let child = command.spawn().expect("the program starts");
        let mut server = Server { child, http: self.http, admin: self.admin, log };
        let began = Instant::now();
        while server.admin("GET", "/readyz", b"").await.status != 200 {
            let ended = server.child.try_wait().expect("a status");
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "{ended:?}: {}", server.stderr());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server
    }
}

/// A running node. Dropped, it is killed.
pub struct Server {
    child: Child,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    log: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).expect("a process id")), signal).expect("it runs");
    }

    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        assert_eq!(self.ended().await.signal(), Some(9));
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a status") {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "it does not end: {}", self.stderr());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What it has said so far, together with those before it in this folder.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has said something this often.
    pub async fn said(&self, text: &str, times: usize) {
        until(text, || self.stderr().matches(text).count() >= times).await;
    }

    pub async fn get(&self, host: &str, path: &str) -> Answer {
        request(self.http, "GET", host, path, &[], b"").await
    }

    pub async fn admin(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        request(self.admin, method, "admin.test", path, &[], body).await
    }

    /// A client command that talks to this node.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = perigee();
        command.args(words).args(["--admin", &self.admin.to_string()]);
        command
    }

    pub fn run(&self, words: &[&str]) -> Run {
        run(&mut self.command(words))
    }

    /// Deploys a folder; gives the deployment's URL.
    pub fn deploy(&self, folder: &Path, words: &[&str]) -> Url {
        let folder = folder.display().to_string();
        let told = self.run(&[&["deploy", &folder], words].concat()).succeeded();
        Url::of(told.last_line())
    }

    /// The deployments as the node lists them.
    pub async fn deployments(&self) -> Vec<Value> {
        let answer = self.admin("GET", "/v1/deployments", b"").await;
        let list: Value = serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{}", answer.text()));
        list["deployments"].as_array().cloned().expect("a list")
    }
}

/// The URL of a deployment, and the host in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub whole: String,
    pub host: String,
}

impl Url {
    pub fn of(whole: &str) -> Url {
        let rest = whole.strip_prefix("http://").unwrap_or_else(|| panic!("{whole:?} is not a URL"));
        let host = rest.split([':', '/']).next().unwrap_or_default().to_owned();
        Url { whole: whole.to_owned(), host }
    }
}
