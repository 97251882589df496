//! How long a server takes to start on a long ledger, with and without a snapshot of it.
//!
//! The ledger is made of what a server really writes: one incident by detection, with a guard's words,
//! notes and an end, is played once; its records are then appended again and again under new ids.
//! Orders are left out, since they are signed; so are runs, which a server would take up.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use estoppel_api::{Allowlist, Client, CloseRequest, Health, NoteRequest, Readiness};
use estoppel_ledger::{Ledger, Options};
use estoppel_model::{NewRecord, Record, Secret};
use estoppel_server::NodeKey;
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{failed, fleet::Stage, served};
use crate::error::Result;

/// Starts of each kind; the middle one counts.
const STARTS: usize = 3;
/// Appends that are under way at a time.
const GROUP: usize = 1_024;
/// Length of a UUID as text, and where its hyphens are.
const UUID_CHARS: usize = 36;
const HYPHENS: [usize; 4] = [8, 13, 18, 23];
const LOOK: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(300);

/// Starts a server on a ledger of so many records.
pub(super) async fn run(records: u64) -> Result<Value> {
    let folder = play().await?;
    let measured = measure(&folder, records).await;
    std::fs::remove_dir_all(&folder)?;
    measured
}

async fn measure(folder: &Path, records: u64) -> Result<Value> {
    let bytes = grow(folder, records)?;
    let snapshots = folder.join("ledger/snapshots");
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        std::fs::remove_dir_all(&snapshots)?;
        without.push(start(folder, &snapshots).await?);
    }
    let snapshot_bytes = std::fs::metadata(story(&snapshots))?.len();
    for _ in 0..STARTS {
        with.push(start(folder, &snapshots).await?);
    }
    Ok(json!({
        "records": records,
        "ledger_bytes": bytes,
        "snapshot_bytes": snapshot_bytes,
        "halts_are_taken_ms": middle(with.iter().map(|(taken, _)| *taken)),
        "ready_without_snapshot_ms": middle(without.iter().map(|(_, ready)| *ready)),
        "ready_with_snapshot_ms": middle(with.iter().map(|(_, ready)| *ready)),
    }))
}

fn story(snapshots: &Path) -> PathBuf {
    snapshots.join("story.snapshot")
}

fn middle(times: impl Iterator<Item = Duration>) -> f64 {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// A server plays one incident, and ends; its data folder.
async fn play() -> Result<PathBuf> {
    let stage = Stage::open("start").await?;
    let client = stage.client.clone();
    client.set_allowlist(&Allowlist { domains: Some(vec!["good.example".to_owned()]) }).await?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let _told = stage.guard(&tasks, &stop).await?;
    let event = json!({
        "kind": "network", "session_id": "s", "destination": "evil.example", "port": 443,
        "verdict": "would_block",
    });
    client.events(event.to_string().into_bytes()).await?;
    let number = until_contained(&client).await?;
    for count in 1..=3 {
        let text = format!("looked at it for the {count}th time, and wrote down what was seen");
        client.note(&number, &NoteRequest { text }).await?;
    }
    let (reason, root_cause) = ("it is over".to_owned(), Some("a hidden instruction".to_owned()));
    client.close(&number, &CloseRequest { reason, root_cause }).await?;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(stage.end().await)
}

/// The number of the incident, once its halt was carried out by the guard.
async fn until_contained(client: &Client) -> Result<String> {
    let begun = Instant::now();
    loop {
        if let Some(incident) = client.incidents().await?.first() {
            let number = incident.number.to_string();
            let found = client.incident(&number).await?;
            if found["contained"].as_array().is_some_and(|words| !words.is_empty()) {
                return Ok(number);
            }
        }
        patient(begun, "the end of an incident's halt")?;
        tokio::time::sleep(LOOK).await;
    }
}

/// Appends the records of the incident under new ids until there are so many; the ledger's size.
fn grow(folder: &Path, records: u64) -> Result<u64> {
    let key = NodeKey::open(folder).map_err(failed)?;
    let dir = folder.join("ledger");
    let ledger = Ledger::open(&dir, key.signing().clone(), Options::default()).map_err(failed)?;
    let template: Vec<Record> = ledger
        .records(0)
        .filter(|record| record.as_ref().map_or(true, belongs_to_an_incident))
        .collect::<std::result::Result<_, _>>()
        .map_err(failed)?;
    let mut pending = Vec::with_capacity(GROUP);
    let mut size = ledger.head().size;
    while size < records && !template.is_empty() {
        let mut ids = HashMap::new();
        for record in &template {
            pending.push(ledger.append(NewRecord {
                kind: record.kind.clone(),
                key: record.key.as_deref().map(|key| renamed(key, &mut ids)),
                at: record.at,
                body: renamed(&record.body, &mut ids),
            }));
            size += 1;
        }
        if pending.len() >= GROUP {
            for pending in pending.drain(..) {
                pending.wait().map_err(failed)?;
            }
        }
    }
    for pending in pending {
        pending.wait().map_err(failed)?;
    }
    drop(ledger);
    Ok(std::fs::metadata(dir.join("ledger.db"))?.len())
}

fn belongs_to_an_incident(record: &Record) -> bool {
    let kind = record.kind.as_str();
    ["incident.", "evidence."].iter().any(|family| kind.starts_with(family))
}

/// The text with each UUID in it replaced, the same one by the same.
fn renamed(text: &str, ids: &mut HashMap<Uuid, Uuid>) -> String {
    let (mut renamed, mut at) = (String::with_capacity(text.len()), 0);
    while let Some(rest) = text.get(at..) {
        let has_hyphens = |word: &&str| HYPHENS.iter().all(|at| word.as_bytes()[*at] == b'-');
        let word = rest.get(..UUID_CHARS).filter(has_hyphens);
        let found = word.and_then(|word| Uuid::try_parse(word).ok());
        if let Some(id) = found {
            renamed.push_str(&ids.entry(id).or_insert_with(Uuid::now_v7).to_string());
            at += UUID_CHARS;
        } else if let Some(next) = rest.chars().next() {
            renamed.push(next);
            at += next.len_utf8();
        } else {
            break;
        }
    }
    renamed
}

/// Starts a server and ends it in order: the times until it takes halts, and until all of it works.
async fn start(folder: &Path, snapshots: &Path) -> Result<(Duration, Duration)> {
    let address = served::free_address()?;
    let token = std::fs::read_to_string(folder.join("admin.token"))?;
    let client = Client::new(&format!("http://{address}"), Secret::new(token))?;
    let begun = Instant::now();
    let mut process = served::start(folder, address)?;
    let mut taken = None;
    let ready = loop {
        if taken.is_none() && client.get::<Health>("/healthz").await.is_ok() {
            taken = Some(begun.elapsed());
        }
        if taken.is_some() && client.get::<Readiness>("/readyz").await.is_ok() {
            break begun.elapsed();
        }
        patient(begun, "the server")?;
        tokio::time::sleep(LOOK).await;
    };
    // A start without a snapshot writes one soon; the end waits for it, and then for the next.
    while !story(snapshots).exists() {
        patient(begun, "a snapshot")?;
        tokio::time::sleep(LOOK).await;
    }
    process.end_in_order()?;
    Ok((taken.unwrap_or(ready), ready))
}

fn patient(begun: Instant, what: &str) -> Result<()> {
    if begun.elapsed() > PATIENCE {
        return Err(failed(anyhow::anyhow!("waited in vain for {what}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_renamed_and_nothing_else_is() {
        let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
        let mut ids = HashMap::new();
        let text = format!("ü/{one}/x{other}-{one}, 00000000-0000");
        let renamed = renamed(&text, &mut ids);
        let expect = text
            .replace(&one.to_string(), &ids[&one].to_string())
            .replace(&other.to_string(), &ids[&other].to_string());
        assert_eq!((renamed, ids.len()), (expect, 2));
        assert_ne!(ids[&one], one);
    }
}
