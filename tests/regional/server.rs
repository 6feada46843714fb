//! A Redis server of a test's own: on a free port, in a directory of its own, killed when dropped.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Server {
    pub port: u16,
    dir: tempfile::TempDir,
    args: Vec<String>,
    process: Option<Child>,
}

impl Server {
    pub fn start(args: &[&str]) -> Server {
        let port = free_port();
        let mut server = Server::prepare(args);
        server.port = port;
        server.resume_from_nothing();
        server
    }

    /// Not started yet.
    pub fn prepare(args: &[&str]) -> Server {
        let args = args.iter().map(|arg| arg.to_string()).collect();
        Server { port: free_port(), dir: tempfile::tempdir().expect("a directory"), args, process: None }
    }

    /// A sentinel, which wants a configuration file that it may write.
    pub fn sentinel(master_port: u16) -> Server {
        let server = Server::prepare(&[]);
        let file = server.dir.path().join("sentinel.conf");
        let text = format!(
            "sentinel monitor main 127.0.0.1 {master_port} 1\nsentinel down-after-milliseconds main 300\n\
             sentinel failover-timeout main 2000\n"
        );
        std::fs::write(&file, text).expect("written");
        let mut server = server;
        server.args = vec![file.to_str().expect("utf-8").into(), "--sentinel".into()];
        server.resume_from_nothing();
        server
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts it without data, on the same port.
    pub fn resume_from_nothing(&mut self) {
        let mut command = Command::new("redis-server");
        let dir = self.dir.path();
        command.args(&self.args).arg("--dir").arg(dir).args(["--save", "", "--bind", "127.0.0.1"]);
        // With TLS there is no other port.
        if !self.args.iter().any(|arg| arg == "--tls-cert-file") {
            command.args(["--port", &self.port.to_string()]);
        } else {
            command.args(["--port", "0", "--tls-port", &self.port.to_string()]);
        }
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("redis-server is installed");
        self.process = Some(process);
        let until = Instant::now() + Duration::from_secs(5);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < until, "redis-server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub fn stop(&self) {
        self.signal("-STOP");
    }

    pub fn go_on(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &process]).status().expect("kill").success());
    }

    /// A command, spoken directly.
    pub fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(self.url()).expect("a URL");
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(2)).expect("it listens");
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query(&mut connection).expect("answered")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port()
}
