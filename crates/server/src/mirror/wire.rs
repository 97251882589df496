//! One connection to Redis, with what it is asked.
//!
//! Changes are told by Redis itself: RESP3 client tracking in broadcast mode for our prefix, which
//! needs no setting of the server and names each changed, deleted, expired or evicted key, and not
//! what this connection writes. Where that is not to be had (before Redis 6, behind some proxies,
//! or not permitted) the connection says so, and the mirror polls.
//!
//! A write happens only if the key still says what was read: keys are watched from the read on
//! (`WATCH`), so that a halt that somebody writes in between is never overwritten unseen.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use estoppel_model::Untrusted;
use redis::{
    AsyncConnectionConfig, ErrorKind, ProtocolVersion, PushInfo, PushKind, RedisError, RedisResult,
    Value, aio::MultiplexedConnection,
};
use tokio::sync::mpsc;

use super::{
    book::Write,
    config::RedisConfig,
    value::{Key, PREFIX, VALUE_BYTES_MAX},
};

/// How long Redis may take to let us in, and to answer.
const CONNECT_MAX: Duration = Duration::from_secs(3);
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Messages about changes that wait to be read; when there are more, all keys are looked at.
const PUSHES_MAX: usize = 1_024;
/// How long Redis keeps the value of a scope that is not halted any more. What is gone says the same.
const RELEASED_KEPT: Duration = Duration::from_hours(24 * 30);

/// What Redis tells of its own accord.
#[derive(Debug)]
pub(super) enum Push {
    /// These keys changed or are gone.
    Changed(Vec<Vec<u8>>),
    /// Everything is gone.
    Flushed,
    /// The connection has ended.
    Ended,
}

/// Why Redis did not answer, or not as it should. Its words are a stranger's.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("{}", words(.0))]
    Redis(#[from] RedisError),
    #[error("an answer that makes no sense")]
    Answer,
    #[error("the connection was closed")]
    Closed,
}

impl WireError {
    /// Whether Redis took the question and refused it, so that the connection is as good as before.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Redis(error) if matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
        )
    }
}

fn words(error: &RedisError) -> String {
    Untrusted::new(error.to_string()).inline(200)
}

/// A connection, used by one task alone: what it watches is the connection's.
pub(super) struct Wire {
    connection: MultiplexedConnection,
    /// Whether messages about changes were lost for want of room.
    lost: Arc<AtomicBool>,
    /// Why changes are not told, if they are not.
    pub(super) untold: Option<String>,
    /// Kept, so that the channel ends with the connection and not before.
    _pushes: mpsc::Sender<Push>,
}

/// Connects, with changes told if that can be had.
pub(super) async fn connect(
    config: &RedisConfig,
) -> Result<(Wire, mpsc::Receiver<Push>), WireError> {
    let (sender, pushes) = mpsc::channel(PUSHES_MAX);
    let lost = Arc::new(AtomicBool::new(false));
    let (mut connection, mut untold) = match open(config, Some((sender.clone(), &lost))).await {
        Ok(connection) => (connection, None),
        Err(error) if speaks_no_resp3(&error) => {
            (open(config, None).await?, Some(error.to_string()))
        }
        Err(error) => return Err(error),
    };
    if untold.is_none() {
        let mut tracking = redis::cmd("CLIENT");
        tracking.arg(&["TRACKING", "ON", "BCAST", "PREFIX", PREFIX, "NOLOOP"]);
        match tracking.query_async::<()>(&mut connection).await.map_err(WireError::from) {
            Ok(()) => {}
            Err(error) if error.is_refusal() => untold = Some(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    Ok((Wire { connection, lost, untold, _pushes: sender }, pushes))
}

async fn open(
    config: &RedisConfig,
    told: Option<(mpsc::Sender<Push>, &Arc<AtomicBool>)>,
) -> Result<MultiplexedConnection, WireError> {
    let options = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_MAX))
        .set_response_timeout(Some(ANSWER_MAX));
    let (client, options) = match told {
        None => (config.client(ProtocolVersion::RESP2)?, options),
        Some((sender, lost)) => {
            let lost = Arc::clone(lost);
            let take = move |info: PushInfo| -> Result<(), mpsc::error::TrySendError<()>> {
                // Its task must not wait: what finds no room is found by looking at all keys.
                if let Some(push) = read(info)
                    && sender.try_send(push).is_err()
                {
                    lost.store(true, Ordering::Relaxed);
                }
                Ok(())
            };
            (config.client(ProtocolVersion::RESP3)?, options.set_push_sender(take))
        }
    };
    let connecting = client.get_multiplexed_async_connection_with_config(&options);
    match tokio::time::timeout(CONNECT_MAX, connecting).await {
        Ok(connection) => Ok(connection?),
        Err(_) => Err(WireError::Timeout(CONNECT_MAX)),
    }
}

/// Whether the other side answered that it does not know `HELLO 3`.
fn speaks_no_resp3(error: &WireError) -> bool {
    match error {
        WireError::Redis(error) => {
            error.kind() == ErrorKind::RESP3NotSupported
                || error.code() == Some("NOPROTO")
                || error.detail().is_some_and(|detail| detail.contains("unknown command"))
        }
        _ => false,
    }
}

fn read(info: PushInfo) -> Option<Push> {
    match info.kind {
        PushKind::Invalidate => {}
        PushKind::Disconnection => return Some(Push::Ended),
        _ => return None,
    }
    match info.data.into_iter().next()? {
        Value::Nil => Some(Push::Flushed),
        Value::Array(keys) => {
            let bytes = |key| match key {
                Value::BulkString(name) => Some(name),
                _ => None,
            };
            Some(Push::Changed(keys.into_iter().filter_map(bytes).collect()))
        }
        _ => None,
    }
}

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Held {
    /// A string's first bytes, none if there is no key.
    Bytes(Vec<u8>),
    /// Something else: a list, a hash.
    OtherType,
}

impl Wire {
    /// Whether messages about changes were lost since this was last asked.
    pub(super) fn lost(&self) -> bool {
        self.lost.swap(false, Ordering::Relaxed)
    }

    /// Reads keys, and watches them until [`Wire::write`] or [`Wire::unwatch`].
    pub(super) async fn read(&mut self, keys: &[Key]) -> Result<Vec<Held>, WireError> {
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        let watch = pipe.cmd("WATCH");
        for key in keys {
            watch.arg(key.name());
        }
        for key in keys {
            pipe.cmd("GETRANGE").arg(key.name()).arg(0).arg(VALUE_BYTES_MAX);
        }
        let answers: Vec<RedisResult<Value>> = pipe.query_async(&mut self.connection).await?;
        let mut answers = answers.into_iter();
        answers.next().ok_or(WireError::Answer)??;
        let held = |answer: RedisResult<Value>| match answer {
            Ok(Value::BulkString(bytes)) => Ok(Held::Bytes(bytes)),
            Ok(Value::Nil) => Ok(Held::Bytes(Vec::new())),
            Ok(_) => Err(WireError::Answer),
            Err(error) if error.code() == Some("WRONGTYPE") => Ok(Held::OtherType),
            Err(error) => Err(error.into()),
        };
        let held = answers.map(held).collect::<Result<Vec<_>, _>>()?;
        if held.len() == keys.len() { Ok(held) } else { Err(WireError::Answer) }
    }

    /// Writes, all or nothing: `false` when a key that is watched has changed since it was read.
    pub(super) async fn write(&mut self, writes: &[(Key, Write)]) -> Result<bool, WireError> {
        let mut pipe = redis::pipe();
        pipe.atomic();
        for (key, write) in writes {
            let set = pipe.cmd("SET").arg(key.name()).arg(&write.text);
            if !write.active {
                set.arg("EX").arg(RELEASED_KEPT.as_secs());
            }
        }
        Ok(pipe.query_async::<Value>(&mut self.connection).await? != Value::Nil)
    }

    /// Watches nothing any more.
    pub(super) async fn unwatch(&mut self) -> Result<(), WireError> {
        Ok(redis::cmd("UNWATCH").query_async(&mut self.connection).await?)
    }

    /// One step of a walk over all keys that begin as ours do: the next cursor, 0 at the end.
    pub(super) async fn scan(&mut self, cursor: u64) -> Result<(u64, Vec<Vec<u8>>), WireError> {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{PREFIX}*")).arg("COUNT").arg(1_000);
        Ok(scan.query_async(&mut self.connection).await?)
    }
}
