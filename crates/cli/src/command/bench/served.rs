//! Processes of a measurement: the server as users start it, and what stands around it. Each ends
//! with its handle.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use estoppel_api::{Client, Role, TokenRequest};
use estoppel_model::{EntityId, Secret};
use serde::{Serialize, de::DeserializeOwned};

use super::failed;
use crate::error::Result;

/// How long a process may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);
/// Lines of a process that nobody has taken yet.
const LINES_WAITING_MAX: usize = 64;

/// A child process that ends with its handle.
pub(super) struct Process(pub(super) Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Asks it to end, and waits until it has.
    pub(super) fn end_in_order(&mut self) -> Result<()> {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.ok_or_else(|| failed(anyhow::anyhow!("a process without an id")))?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(std::io::Error::from)?;
        let ended = self.0.wait()?;
        if ended.success() { Ok(()) } else { Err(failed(anyhow::anyhow!("it ended by {ended}"))) }
    }

    /// Memory in use that is the process's own, in bytes (`RssAnon`): without pages of the binary.
    pub(super) fn memory_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        Ok(kib.ok_or_else(|| failed(anyhow::anyhow!("/proc/PID/status has no RssAnon")))? * 1024)
    }

    /// Processor time of all its threads so far.
    pub(super) fn processor_time(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let stat = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            let on_cpu_ns = stat.split(' ').next().and_then(|field| field.parse().ok());
            sum += Duration::from_nanos(on_cpu_ns.unwrap_or_default());
        }
        Ok(sum)
    }
}

/// A port of loopback that was free a moment ago.
pub(super) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// `estoppel serve` on a folder of its own.
pub(super) struct Served {
    pub(super) process: Process,
    pub(super) client: Client,
    pub(super) address: SocketAddr,
    folder: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Served {
    pub(super) async fn open(name: &str) -> Result<Self> {
        let folder =
            std::env::temp_dir().join(format!("estoppel-bench-{}-{name}", std::process::id()));
        let address = free_address()?;
        std::fs::create_dir_all(&folder)?;
        let process = start(&folder, address)?;
        let url = format!("http://{address}");
        let token_file = folder.join("admin.token");
        let begun = Instant::now();
        let client = loop {
            if let Ok(token) = std::fs::read_to_string(&token_file)
                && let Ok(client) = Client::new(&url, Secret::new(token))
                && client.incidents().await.is_ok()
            {
                break client;
            }
            if begun.elapsed() > PATIENCE {
                return Err(failed(anyhow::anyhow!("the server is not ready after {PATIENCE:?}")));
            }
            tokio::time::sleep(LOOK).await;
        };
        Ok(Self { process, client, address, folder })
    }

    /// Ends the server as a power cut would, and starts it on the same folder and address.
    pub(super) fn crash_and_restart(&mut self) -> Result<()> {
        self.process.0.kill()?;
        self.process.0.wait()?;
        self.process = start(&self.folder, self.address)?;
        Ok(())
    }

    pub(super) async fn agent_token(&self) -> Result<String> {
        let name = EntityId::new("bench").map_err(failed)?;
        let request = TokenRequest::new(name, Role::Agent);
        Ok(self.client.mint_token(&request).await?.token)
    }
}

/// Starts `estoppel serve` on a folder.
pub(super) fn start(folder: &std::path::Path, address: SocketAddr) -> Result<Process> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log"))?;
    let child = Command::new(std::env::current_exe()?)
        .args(["serve", "--no-gateway", "--listen", &address.to_string(), "--data"])
        .arg(folder)
        .env("RUST_LOG", "error")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    Ok(Process(child))
}

/// This binary in a hidden role: told what to do on a line, it answers in lines.
pub(super) struct Helper {
    process: Process,
    answers: mpsc::Receiver<std::io::Result<String>>,
    /// Its end ends the process.
    _input: ChildStdin,
}

impl Helper {
    pub(super) fn start(role: &str, spec: &impl Serialize) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(anyhow::anyhow!("a process without pipes")));
        };
        let mut line = serde_json::to_vec(spec)?;
        line.push(b'\n');
        input.write_all(&line)?;
        // Taken off its hands at once: a line of thousands of times is longer than a pipe, and who
        // waits in the middle of it hears nothing more.
        let (said, answers) = mpsc::sync_channel(LINES_WAITING_MAX);
        std::thread::spawn(move || {
            BufReader::new(output).lines().try_for_each(|line| said.send(line))
        });
        Ok(Self { process: Process(child), answers, _input: input })
    }

    /// The next answer; waits for it.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Result<T> {
        let Ok(line) = self.answers.recv() else {
            let ended = self.process.0.wait()?;
            return Err(failed(anyhow::anyhow!("a process of the measurement ended: {ended}")));
        };
        Ok(serde_json::from_str(&line?)?)
    }
}
