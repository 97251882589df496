//! Thousands of subscribers in one process, for measurements.
//!
//! One thread and one epoll instance hold plain sockets that speak just enough of a protocol: the
//! stream of Estoppel, or pub/sub of Redis. Both are driven by this same loop, so that what differs
//! is the server. Real subscribers have machines of their own, on which one's answer delays nobody
//! else's receipt: here answers go out when there is nothing to read. A real enforcer also checks each
//! order's signature; what that costs is measured apart (`estoppel bench halt`).

mod redis;
mod stream;

pub(super) use redis::command as redis_command;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    io::{BufRead as _, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use estoppel_model::{Boottime, Clock as _, SystemClock};
use rustix::{
    event::{
        PollFd, PollFlags,
        epoll::{self, CreateFlags, EventData, EventFlags},
        poll,
    },
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt},
    time::Timespec,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Connections that are made at the same time while the swarm gathers.
const GATHERING: usize = 256;
/// Answers between two looks at what there is to read.
const ANSWERS_AT_ONCE: usize = 64;
/// Events of one look at the sockets.
const EVENTS_MAX: usize = 1_024;
const READ_BYTES: usize = 64 * 1024;
/// The end of the standard input, which ends the swarm.
const STDIN: u64 = u64::MAX;

/// What the subscribers speak.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Language {
    /// Estoppel's stream, with this token.
    Stream {
        /// Of an agent.
        token: String,
    },
    /// Redis pub/sub on the channel [`CHANNEL`].
    Redis {
        /// Whether each message is answered by `INCR` of [`ANSWERS`].
        answer: bool,
    },
}

/// The channel of Redis.
pub(super) const CHANNEL: &str = "orders";
/// The key of Redis that counts answers.
pub(super) const ANSWERS: &str = "answers";

/// What a swarm is told, on one line of its standard input; the input's end ends it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spec {
    pub address: SocketAddr,
    pub subscribers: usize,
    pub language: Language,
}

/// What a swarm says, one JSON text a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// Every subscriber is subscribed.
    Gathered {
        /// How long each was away: from the loss of its connection, or from the swarm's start.
        away: Vec<Duration>,
    },
    /// Every subscriber has heard this.
    Heard {
        /// The order's id, or the message's number.
        id: String,
        /// When each heard it, in nanoseconds of the boot clock.
        at_ns: Vec<u64>,
    },
}

/// What one message was.
enum Heard {
    /// The subscription stands.
    Subscribed,
    /// Something that everyone is told.
    Told(String),
    /// Something else.
    Other,
}

/// One protocol, from a subscriber's side.
trait Speaker {
    /// The first words on a new connection.
    fn open(&mut self, subscriber: usize) -> Vec<u8>;
    /// Takes one whole message off the inbox, and adds what is to be answered; `None` when there is
    /// none.
    fn take(&mut self, inbox: &mut Inbox, answer: &mut Vec<u8>) -> Result<Option<Heard>>;
    /// How often to say [`Speaker::beat`].
    fn every(&self) -> Option<Duration>;
    /// What is said from time to time.
    fn beat(&mut self) -> Vec<u8>;
}

/// What came and was not yet taken.
#[derive(Debug, Default)]
struct Inbox {
    bytes: Vec<u8>,
    /// The answer to the upgrade has been taken.
    upgraded: bool,
}

struct Subscriber {
    socket: Option<TcpStream>,
    inbox: Inbox,
    subscribed: bool,
    since: Boottime,
    failures: usize,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Connect,
    Beat,
}

struct Swarm {
    address: SocketAddr,
    epoll: OwnedFd,
    speaker: Box<dyn Speaker>,
    subscribers: Vec<Subscriber>,
    due: BinaryHeap<Reverse<(Boottime, usize, Due)>>,
    /// What subscribers are about to say.
    answers: VecDeque<(usize, Vec<u8>)>,
    subscribed: usize,
    /// The next one to connect for the first time.
    next: usize,
    away: Vec<Duration>,
    heard: HashMap<String, Vec<u64>>,
}

/// The process `estoppel bench-swarm`.
pub(crate) fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "estoppel bench: the swarm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let spec: Spec = serde_json::from_str(&line).context("what to do")?;
    let speaker: Box<dyn Speaker> = match &spec.language {
        Language::Stream { token } => Box::new(stream::Stream::new(spec.address, token)?),
        Language::Redis { answer } => Box::new(redis::Redis::new(*answer)),
    };
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, std::io::stdin(), EventData::new_u64(STDIN), EventFlags::IN)?;
    let begun = SystemClock.boottime();
    let subscriber = || Subscriber {
        socket: None,
        inbox: Inbox::default(),
        subscribed: false,
        since: begun,
        failures: 0,
    };
    let mut swarm = Swarm {
        address: spec.address,
        epoll,
        speaker,
        subscribers: std::iter::repeat_with(subscriber).take(spec.subscribers).collect(),
        due: BinaryHeap::new(),
        answers: VecDeque::new(),
        subscribed: 0,
        next: 0,
        away: Vec::new(),
        heard: HashMap::new(),
    };
    swarm.run()
}

impl Swarm {
    fn run(&mut self) -> Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            self.gather();
            let now = SystemClock.boottime();
            while self.due.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
                let Some(Reverse((_, index, due))) = self.due.pop() else { break };
                match due {
                    Due::Connect => self.connect(index),
                    Due::Beat => self.beat(index, now),
                }
            }
            let wait = self.due.peek().map(|Reverse((at, ..))| at.since(SystemClock.boottime()));
            let wait = if self.answers.is_empty() { wait } else { Some(Duration::ZERO) };
            let wait = wait.map(Timespec::try_from).transpose()?;
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                wait.as_ref(),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                match event.data.u64() {
                    STDIN => return Ok(()),
                    index => self.ready(usize::try_from(index)?, event.flags, &mut buffer)?,
                }
            }
            if events.is_empty() {
                self.answer();
            }
        }
    }

    /// Starts a few connections more while the swarm is not complete.
    fn gather(&mut self) {
        while self.next < self.subscribers.len() && self.next < self.away.len() + GATHERING {
            self.connect(self.next);
            self.next += 1;
        }
    }

    fn connect(&mut self, index: usize) {
        let connecting = || -> Result<TcpStream> {
            let family = AddressFamily::INET;
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(family, SocketType::STREAM, flags, None)?;
            sockopt::set_tcp_nodelay(&socket, true)?;
            match connect(&socket, &self.address) {
                Ok(()) | Err(Errno::INPROGRESS) => {}
                Err(error) => return Err(error.into()),
            }
            // Written to once it stands, which is when it becomes writable.
            let data = EventData::new_u64(index as u64);
            epoll::add(&self.epoll, &socket, data, EventFlags::OUT)?;
            Ok(socket.into())
        };
        match connecting() {
            Ok(socket) => {
                if let Some(subscriber) = self.subscribers.get_mut(index) {
                    subscriber.socket = Some(socket);
                    subscriber.inbox = Inbox::default();
                }
            }
            Err(_) => self.lost(index),
        }
    }

    fn beat(&mut self, index: usize, now: Boottime) {
        let words = self.speaker.beat();
        let Some(every) = self.speaker.every() else { return };
        if self.subscribers.get(index).is_some_and(|subscriber| subscriber.subscribed) {
            self.say(index, &words);
            self.due.push(Reverse((now + every, index, Due::Beat)));
        }
    }

    fn ready(&mut self, index: usize, flags: EventFlags, buffer: &mut [u8]) -> Result<()> {
        if flags.contains(EventFlags::OUT) {
            let Some(socket) = self.subscribers.get(index).and_then(|it| it.socket.as_ref()) else {
                return Ok(());
            };
            if sockopt::socket_error(socket)?.is_err() {
                self.lost(index);
                return Ok(());
            }
            let data = EventData::new_u64(index as u64);
            epoll::modify(&self.epoll, socket, data, EventFlags::IN)?;
            let words = self.speaker.open(index);
            self.say(index, &words);
            return Ok(());
        }
        let now = SystemClock.boottime();
        let Some(subscriber) = self.subscribers.get_mut(index) else { return Ok(()) };
        let Some(socket) = &mut subscriber.socket else { return Ok(()) };
        match socket.read(buffer) {
            Ok(0) => {
                self.lost(index);
                return Ok(());
            }
            Ok(read) => {
                subscriber.inbox.bytes.extend_from_slice(buffer.get(..read).unwrap_or_default())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(_) => {
                self.lost(index);
                return Ok(());
            }
        }
        let mut answer = Vec::new();
        while let Some(subscriber) = self.subscribers.get_mut(index) {
            match self.speaker.take(&mut subscriber.inbox, &mut answer)? {
                None => break,
                Some(Heard::Other) => {}
                Some(Heard::Subscribed) => self.subscribed(index, now)?,
                Some(Heard::Told(id)) => self.told(id, now)?,
            }
        }
        if !answer.is_empty() {
            self.answers.push_back((index, answer));
        }
        Ok(())
    }

    fn answer(&mut self) {
        for _ in 0..ANSWERS_AT_ONCE {
            let Some((index, words)) = self.answers.pop_front() else { return };
            self.say(index, &words);
        }
    }

    fn subscribed(&mut self, index: usize, now: Boottime) -> Result<()> {
        let Some(subscriber) = self.subscribers.get_mut(index) else { return Ok(()) };
        subscriber.subscribed = true;
        subscriber.failures = 0;
        self.subscribed += 1;
        self.away.push(now.since(subscriber.since));
        if let Some(every) = self.speaker.every() {
            // Each at a moment of its own: real enforcers were not started together.
            let share = u32::try_from(index % 1_000)? + 1;
            self.due.push(Reverse((now + every * share / 1_000, index, Due::Beat)));
        }
        if self.subscribed == self.subscribers.len() {
            let away = std::mem::take(&mut self.away);
            self.next = self.subscribers.len();
            say(&Said::Gathered { away })?;
        }
        Ok(())
    }

    fn told(&mut self, id: String, now: Boottime) -> Result<()> {
        let count = self.subscribers.len();
        let at_ns = self.heard.entry(id.clone()).or_insert_with(|| Vec::with_capacity(count));
        at_ns.push(now.as_nanos());
        if at_ns.len() == count
            && let Some(at_ns) = self.heard.remove(&id)
        {
            say(&Said::Heard { id, at_ns })?;
        }
        Ok(())
    }

    /// A connection is gone: it is made again after the pause that enforcers make.
    fn lost(&mut self, index: usize) {
        let now = SystemClock.boottime();
        let Some(subscriber) = self.subscribers.get_mut(index) else { return };
        // Closing takes it off the watch list, too.
        subscriber.socket = None;
        self.answers.retain(|(whose, _)| *whose != index);
        if std::mem::take(&mut subscriber.subscribed) {
            self.subscribed -= 1;
            subscriber.since = now;
        }
        let pause = estoppel_link::reconnect_pause(subscriber.failures, 1);
        subscriber.failures += 1;
        self.due.push(Reverse((now + pause, index, Due::Connect)));
    }

    fn say(&mut self, index: usize, words: &[u8]) {
        let Some(subscriber) = self.subscribers.get_mut(index) else { return };
        let Some(socket) = &mut subscriber.socket else { return };
        if write(socket, words).is_err() {
            self.lost(index);
        }
    }
}

/// Writes all of it; a full socket is waited for, which small messages do not meet.
fn write(socket: &mut TcpStream, mut words: &[u8]) -> Result<()> {
    while !words.is_empty() {
        match socket.write(words) {
            Ok(0) => bail!("it takes nothing"),
            Ok(written) => words = words.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut waiting = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT)];
                poll(&mut waiting, Some(&Timespec { tv_sec: 5, tv_nsec: 0 }))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn say(said: &Said) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, &json!(said))?;
    stdout.write_all(b"\n")?;
    Ok(stdout.flush()?)
}
