//! One instance: a Node process with the launcher, its two sockets, and its end.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use once_cell::sync::OnceCell;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};

use super::Function;
use super::pool::InstanceId;

/// A line of output is cut at this (seed "Functions": "a string chunk of up to 1kb").
const LINE_BYTES_MAX: usize = 1024;

/// A message of the launcher is not longer than this; a stack trace may be long.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

pub struct Instance {
    pub id: InstanceId,
    pub function: Arc<Function>,
    /// Where it listens for invocations.
    pub socket: String,
    group: Pid,
    ended: OnceCell<Option<ExitStatus>>,
    end: tokio::sync::Notify,
}

/// What the launcher says.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Message {
    Ready,
    StartFailed {
        #[serde(default)]
        message: String,
        #[serde(default)]
        stack: String,
    },
    End {
        id: String,
    },
    Error {
        #[serde(default)]
        id: Option<String>,
        #[serde(default)]
        message: String,
        #[serde(default)]
        stack: String,
    },
}

/// What an instance is started with.
pub struct Setting<'a> {
    pub node: &'a Path,
    pub launcher: &'a Path,
    /// Holds the sockets; short, because a socket's path has 107 bytes at most.
    pub sockets: &'a Path,
    pub region: &'a str,
    /// Bytes that the instance may use.
    pub memory: u64,
}

/// A started process, before it is ready.
pub struct Started {
    pub instance: Arc<Instance>,
    pub child: Child,
    pub control: UnixListener,
    control_path: PathBuf,
}

/// Starts the process. It is ready when its launcher says so.
pub fn start(id: InstanceId, function: Arc<Function>, setting: &Setting<'_>) -> io::Result<Started> {
    let path = |what: &str| setting.sockets.join(format!("{}.{what}", id.0));
    let (socket, control_path) = (path("http"), path("control"));
    let control = UnixListener::bind(&control_path)?;
    let mut command = Command::new(setting.node);
    command
        // The heap ends where the function's memory does; an instance that needs more ends alone.
        .arg(format!("--max-old-space-size={}", setting.memory >> 20))
        .arg(setting.launcher)
        .current_dir(&function.root)
        .env_clear()
        .envs(function.environment(setting.region))
        .env("PERIGEE_SOCKET", &socket)
        .env("PERIGEE_CONTROL", &control_path)
        .env("PERIGEE_ENTRY", &function.entry)
        .env("PERIGEE_HELPERS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: whatever it starts ends with it.
        .process_group(0)
        .kill_on_drop(true);
    end_with_us(&mut command);
    let mut child = command.spawn().map_err(|error| {
        let _ = std::fs::remove_file(&control_path);
        io::Error::new(
            error.kind(),
            format!("cannot start {}: {error}; is Node installed (functions.node)?", setting.node.display()),
        )
    })?;
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .ok_or_else(|| io::Error::other("the process ended at once"))?;
    if let Some(stdout) = child.stdout.take() {
        tokio::spawn(log_lines(stdout, function.clone(), id, "stdout"));
    }
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(log_lines(stderr, function.clone(), id, "stderr"));
    }
    let instance = Instance {
        id,
        function,
        socket: socket.to_string_lossy().into_owned(),
        group: Pid::from_raw(pid),
        ended: OnceCell::new(),
        end: tokio::sync::Notify::new(),
    };
    Ok(Started { instance: Arc::new(instance), child, control, control_path })
}

/// Makes the kernel end the process when the thread that started it is gone, which lives as long as we do. The launcher ends itself when
/// its control connection closes, but not while a function keeps it busy.
#[allow(
    unsafe_code,
    reason = "what runs between fork and exec is one system call, which is async-signal-safe; there is no other way to it"
)]
fn end_with_us(command: &mut Command) {
    unsafe {
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from));
    }
}

/// Waits for the launcher's connection.
pub async fn connected(control: &UnixListener) -> io::Result<Messages> {
    let (stream, _) = control.accept().await?;
    Ok(Messages { lines: BufReader::new(stream) })
}

impl Started {
    /// Waits for the end of the process and cleans up.
    pub async fn ended(mut self) {
        let status = self.child.wait().await.ok();
        self.instance.kill();
        let _ = std::fs::remove_file(&self.control_path);
        let _ = std::fs::remove_file(&self.instance.socket);
        let _ = self.instance.ended.set(status);
        self.instance.end.notify_waiters();
    }
}

impl Instance {
    /// Ends it with everything that it started.
    pub fn kill(&self) {
        // It may be gone already, which is what was wanted.
        let _ = killpg(self.group, Signal::SIGKILL);
    }

    /// Waits for the end.
    pub async fn end(&self) -> Option<ExitStatus> {
        loop {
            let end = self.end.notified();
            if let Some(status) = self.ended.get() {
                return *status;
            }
            end.await;
        }
    }
}

/// What the launcher says, line by line.
pub struct Messages {
    lines: BufReader<UnixStream>,
}

impl Messages {
    /// The next message; `None` at the end.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            let mut line = Vec::new();
            let read = (&mut self.lines).take(MESSAGE_BYTES_MAX).read_until(b'\n', &mut line).await.ok()?;
            if read == 0 || line.last() != Some(&b'\n') {
                return None;
            }
            match serde_json::from_slice(&line) {
                Ok(message) => return Some(message),
                Err(error) => log::warn!("a launcher said something that cannot be read: {error}"),
            }
        }
    }
}

/// Tells what an instance prints, line by line, and never makes it wait: what is too long is cut, not collected.
async fn log_lines(output: impl AsyncRead + Unpin, function: Arc<Function>, id: InstanceId, stream: &'static str) {
    let mut output = BufReader::new(output);
    let mut line = Vec::with_capacity(LINE_BYTES_MAX);
    let tell = |line: &mut Vec<u8>| {
        if !line.is_empty() {
            let text = String::from_utf8_lossy(line);
            log::info!(target: "function", "{} instance={} {stream}: {}", function.key, id.0, text.escape_debug());
            line.clear();
        }
    };
    loop {
        let chunk = match output.fill_buf().await {
            Ok([]) | Err(_) => break,
            Ok(chunk) => chunk,
        };
        let used = chunk.len();
        for byte in chunk {
            match byte {
                b'\n' => tell(&mut line),
                byte if line.len() < LINE_BYTES_MAX => line.push(*byte),
                _ => {}
            }
        }
        output.consume(used);
    }
    tell(&mut line);
}
