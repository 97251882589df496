//! This program as the server that dies, and its handle.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use estoppel_connect::{
    Channel, Endpoint, Format, Http, HttpLimits, Pager, Plaintext, RetryPolicy,
};
use estoppel_eventlog::WorkerCommand;
use estoppel_model::EntityId;
use estoppel_server::{EgressResponse, Server, ServerConfig};
use serde_json::Value;

use crate::play::PATIENCE;

/// The server that dies at the given moment, once the test has made the file `armed`.
pub(crate) fn serve(args: &[String]) -> ExitCode {
    let (folder, pager, crash_at) = (Path::new(&args[2]).to_owned(), &args[3], args[4].clone());
    let (egress, lease) = (&args[5], args[6].parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let worker = WorkerCommand {
            program: std::env::current_exe().unwrap(),
            args: vec!["sql-worker".into()],
        };
        let channel = Channel {
            name: EntityId::new("webhook").unwrap(),
            endpoint: Endpoint::parse(pager, Plaintext::LoopbackOnly).unwrap(),
            format: Format::Generic,
            token: None,
        };
        let http = Http::new(HttpLimits::default()).unwrap();
        let seen = Mutex::new(HashMap::<String, usize>::new());
        let (armed, log) = (folder.join("armed"), folder.join("moments"));
        let config = ServerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            lease: Duration::from_secs(lease),
            egress: if egress == "auto" { EgressResponse::Auto } else { EgressResponse::Ask },
            playbooks: Some(folder.join("playbooks")),
            pager: Some(Pager::new(http, channel, RetryPolicy::default())),
            at_moment: Some(Arc::new(move |moment| {
                if !armed.exists() {
                    return;
                }
                // The lock is held over the death: no other moment comes to pass after it.
                let mut seen = seen.lock().unwrap();
                let count = seen.entry(moment.to_string()).or_default();
                *count += 1;
                let name = format!("{moment} {count}");
                let mut log =
                    std::fs::File::options().append(true).create(true).open(&log).unwrap();
                writeln!(log, "{name}").unwrap();
                if name == crash_at {
                    let own = rustix::process::getpid();
                    let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
                    loop {
                        std::thread::park();
                    }
                }
            })),
            ..ServerConfig::new(folder.join("data"), worker)
        };
        let running = Server::start(config).await.unwrap();
        running.recovered().await;
        println!("{}", running.address());
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}

pub(crate) struct Process {
    child: Child,
    pub(crate) address: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server is started with beside its folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) egress: &'static str,
    pub(crate) lease_s: u64,
}

pub(crate) const ACTS: Policy = Policy { egress: "auto", lease_s: 15 };

impl Process {
    pub(crate) fn start(folder: &Path, pager: &str, crash_at: &str, policy: Policy) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["serve", folder.to_str().unwrap(), pager, crash_at])
            .args([policy.egress, &policy.lease_s.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { child, address: address.trim().to_owned() }
    }

    pub(crate) fn died(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends a request; `None` when the server died over it.
    pub(crate) fn send(
        &self,
        folder: &Path,
        method: &str,
        path: &str,
        body: &str,
    ) -> Option<Value> {
        let token = std::fs::read_to_string(folder.join("data/admin.token")).unwrap();
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        assert!(head.starts_with("HTTP/1.1 2"), "{method} {path}: {answer}");
        serde_json::from_str(body).ok()
    }
}
