//! A halt to many enforcers: received by all and confirmed by all, beside Redis pub/sub to as many
//! subscribers in the same run; what an idle enforcer costs the server; and the return of all of
//! them after a crash of the server.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use estoppel_api::{EnforcerProgress, HaltRequest, HaltStatus};
use estoppel_model::{Clock as _, EntityId, Kind, Scope, SystemClock};
use serde_json::{Value, json};

use super::{
    super::hidden,
    distribution, failed, guards,
    served::{Helper, Process, Served, free_address},
    swarm::{ANSWERS, CHANNEL, Language, Said, Spec, redis_command},
};
use crate::error::Result;

const HALTS: usize = 20;
const LOOK: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(60);
/// How often an enforcer pings, as the server asks.
const PING: Duration = Duration::from_secs(3);

/// Halt accepted → each guard refuses → each has settled, by the words' arrival at the server, of
/// real guards in a process of their own.
pub(super) async fn halt(guards: usize) -> Result<Value> {
    let served = Served::open("halt").await?;
    let spec = guards::Spec {
        server: served.client.url().to_string(),
        token: served.agent_token().await?,
        guards,
    };
    let mut fleet = Helper::start(hidden::BENCH_GUARDS, &spec)?;
    let _: bool = fleet.next()?;
    let mut words = Words::default();
    for index in 0..HALTS {
        let begun = Instant::now();
        let status = halted(&served, &format!("s{index}"), guards, begun, &mut words).await?;
        words.add(&status);
    }
    let mut measured = words.json();
    measured["guards"] = guards.into();
    Ok(measured)
}

/// The same for a swarm that speaks just the protocol, beside Redis.
pub(super) async fn scale(subscribers: usize) -> Result<Value> {
    let mut served = Served::open("scale").await?;
    // What the first requests allocate is not the fleet's.
    let _ = served.client.incidents().await?;
    let before = served.process.memory_bytes()?;
    let language = Language::Stream { token: served.agent_token().await? };
    let mut swarm = gather(served.address, subscribers, language)?;
    // A lease is renewed by then, and what the connecting took is given back.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let idle = served.process.memory_bytes()?.saturating_sub(before);
    let cost = Cost::of_idling(&served.process).await?;
    let (mut words, mut received) = (Words::default(), Vec::new());
    for index in 0..HALTS {
        let (begun, boot) = (Instant::now(), SystemClock.boottime());
        let status = halted(&served, &format!("s{index}"), subscribers, begun, &mut words).await?;
        received.push(heard_by_all(&mut swarm, boot.as_nanos())?);
        words.add(&status);
    }
    let mut estoppel = words.json();
    estoppel["received_by_all"] = distribution(received);
    estoppel["processor_time_each"] = cost.json(&served.process, subscribers)?;
    let crashed = SystemClock.boottime();
    served.crash_and_restart()?;
    let away = match swarm.next()? {
        Said::Gathered { away } => away,
        Said::Heard { .. } => return Err(failed(anyhow::anyhow!("something was heard twice"))),
    };
    let all_back = SystemClock.boottime().since(crashed);
    drop(swarm);
    drop(served);
    let lease = Duration::from_secs(15);
    let redis = Redis::start()?;
    let published = redis.measure(subscribers, false)?;
    let answered = redis.measure(subscribers, true)?;
    let ratio =
        |ours: &Value, theirs: &Value| Some(ours["p50_us"].as_f64()? / theirs["p50_us"].as_f64()?);
    Ok(json!({
        "subscribers": subscribers,
        "halts": HALTS,
        "memory_bytes_each": idle as f64 / subscribers as f64,
        "received_over_redis": ratio(&estoppel["received_by_all"], &published["received_by_all"]),
        "confirmed_over_redis": ratio(&estoppel["settled_all"], &answered["answered_by_all"]),
        "estoppel": estoppel,
        "redis_pubsub": published,
        "redis_pubsub_with_answers": answered,
        "after_a_crash": {
            "all_back_us": all_back.as_secs_f64() * 1e6,
            "away_longer_than_a_lease": away.iter().filter(|away| **away > lease).count(),
            "away": distribution(away),
        },
    }))
}

/// Processor time that a fleet costs its server.
struct Cost {
    /// Of one interval between two pings, all enforcers together.
    pings: Duration,
    spent: Duration,
    since: Instant,
}

impl Cost {
    /// Looks on while each enforcer pings once.
    async fn of_idling(server: &Process) -> Result<Self> {
        let before = server.processor_time()?;
        tokio::time::sleep(PING).await;
        let spent = server.processor_time()?;
        Ok(Self { pings: spent.saturating_sub(before), spent, since: Instant::now() })
    }

    /// What a ping costs, and what a halt costs beyond the pings, looking at its progress included.
    fn json(&self, server: &Process, subscribers: usize) -> Result<Value> {
        let each = |time: f64| time * 1e6 / subscribers as f64;
        let pings = self.pings.as_secs_f64();
        let intervals = self.since.elapsed().as_secs_f64() / PING.as_secs_f64();
        let spent = server.processor_time()?.saturating_sub(self.spent).as_secs_f64();
        let halt = (spent - intervals * pings) / HALTS as f64;
        Ok(json!({ "ping_us": each(pings), "halt_us": each(halt) }))
    }
}

fn gather(address: SocketAddr, subscribers: usize, language: Language) -> Result<Helper> {
    let mut swarm = Helper::start(hidden::BENCH_SWARM, &Spec { address, subscribers, language })?;
    match swarm.next()? {
        Said::Gathered { .. } => Ok(swarm),
        Said::Heard { .. } => Err(failed(anyhow::anyhow!("something was heard before its time"))),
    }
}

/// When the last of a swarm heard what was told, from an instant of the boot clock on.
fn heard_by_all(swarm: &mut Helper, begun_ns: u64) -> Result<Duration> {
    match swarm.next()? {
        Said::Heard { at_ns, .. } => {
            let last = at_ns.into_iter().max().unwrap_or_default();
            Ok(Duration::from_nanos(last.saturating_sub(begun_ns)))
        }
        Said::Gathered { .. } => Err(failed(anyhow::anyhow!("connections were lost"))),
    }
}

/// Halts a session and waits until everyone has settled.
async fn halted(
    served: &Served,
    session: &str,
    expected: usize,
    begun: Instant,
    words: &mut Words,
) -> Result<HaltStatus> {
    let id = EntityId::new(session).map_err(failed)?;
    let request = HaltRequest::new(Scope::entity(Kind::Session, id).into(), "bench");
    let accepted = served.client.halt(&request).await?;
    words.answered.push(begun.elapsed());
    loop {
        // Long after the last word: a look copies thousands of them.
        tokio::time::sleep(Duration::from_millis(100 + expected as u64 / 20)).await;
        let status = served.client.halt_status(accepted.id).await?;
        if status.settled >= expected {
            return Ok(status);
        }
        if begun.elapsed() > PATIENCE {
            let settled = status.settled;
            return Err(failed(anyhow::anyhow!("{settled} of {expected} guards settled")));
        }
    }
}

/// What the enforcers of many halts said.
#[derive(Default)]
struct Words {
    answered: Vec<Duration>,
    each: BTreeMap<&'static str, Vec<Duration>>,
    all: BTreeMap<&'static str, Vec<Duration>>,
}

impl Words {
    fn add(&mut self, status: &HaltStatus) {
        self.stage("refusing", status, |word| word.refusing_after_us);
        self.stage("settled", status, |word| word.settled_after_us);
    }

    fn stage(
        &mut self,
        stage: &'static str,
        status: &HaltStatus,
        after_us: fn(&EnforcerProgress) -> Option<u64>,
    ) {
        let words = status.enforcers.iter().filter_map(after_us);
        let times: Vec<_> = words.map(Duration::from_micros).collect();
        self.all.entry(stage).or_default().extend(times.iter().max());
        self.each.entry(stage).or_default().extend(times);
    }

    fn json(self) -> Value {
        let mut json = json!({ "halts": HALTS, "answered": distribution(self.answered) });
        for (which, stages) in [("each", self.each), ("all", self.all)] {
            for (stage, times) in stages {
                json[format!("{stage}_{which}")] = distribution(times);
            }
        }
        json
    }
}

/// `redis-server` of this machine, with nothing kept on a disk.
struct Redis {
    _process: Process,
    address: SocketAddr,
}

impl Redis {
    #[expect(clippy::disallowed_methods, reason = "a benchmark waits for another process")]
    fn start() -> Result<Self> {
        let address = free_address()?;
        let process = Command::new("redis-server")
            .args(["--port", &address.port().to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--maxclients", "19000"])
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| {
                let error = anyhow::Error::new(error).context("redis-server");
                failed(error).hint("apt-get install redis-server")
            })?;
        let this = Self { _process: Process(process), address };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            if begun.elapsed() > PATIENCE {
                return Err(failed(anyhow::anyhow!("redis-server does not answer")));
            }
            std::thread::sleep(LOOK);
        }
        Ok(this)
    }

    /// Published → received by all; and, where each answers, → all answers counted.
    fn measure(&self, subscribers: usize, answer: bool) -> Result<Value> {
        let mut swarm = gather(self.address, subscribers, Language::Redis { answer })?;
        let mut people = People::connect(self.address)?;
        let (mut received, mut answered) = (Vec::new(), Vec::new());
        for index in 0..HALTS {
            // As long as an order on the stream.
            let text = format!("{index} {}", "x".repeat(ORDER_BYTES));
            people.ask(&["SET", ANSWERS, "0"])?;
            let (begun, boot) = (Instant::now(), SystemClock.boottime());
            people.ask(&["PUBLISH", CHANNEL, &text])?;
            if answer {
                while people.ask(&["GET", ANSWERS])? != subscribers.to_string() {
                    if begun.elapsed() > PATIENCE {
                        return Err(failed(anyhow::anyhow!("answers are missing")));
                    }
                }
                answered.push(begun.elapsed());
            }
            received.push(heard_by_all(&mut swarm, boot.as_nanos())?);
        }
        let mut json = json!({ "received_by_all": distribution(received) });
        if answer {
            json["answered_by_all"] = distribution(answered);
        }
        Ok(json)
    }
}

/// About the length of a signed order's frame.
const ORDER_BYTES: usize = 600;

/// A plain client of Redis.
struct People {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
}

impl People {
    fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { answers: BufReader::new(stream.try_clone()?), stream })
    }

    /// The answer to a command, on one line, or the text that follows its length.
    fn ask(&mut self, words: &[&str]) -> Result<String> {
        self.stream.write_all(&redis_command(words))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.starts_with('$') {
            line.clear();
            self.answers.read_line(&mut line)?;
        }
        Ok(line.trim_end().to_owned())
    }
}
