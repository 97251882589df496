use std::{fs, thread};

use ed25519_dalek::SigningKey;
use estoppel_ledger::{
    Appended, BODY_BYTES_MAX, KEY_BYTES_MAX, Ledger, LedgerError, Options, RecordError, verify,
};
use estoppel_model::{NewRecord, RecordKind};

use crate::support::{closed, content, fill, open, record, tool};

#[test]
fn records_come_back_in_order_and_as_they_were_given() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
    assert_eq!(ledger.head().size, 0);
    assert!(ledger.read(0, 10).unwrap().is_empty());
    fill(&ledger, 0, 1_500);
    assert_eq!(ledger.head().size, 1_500);

    let read: Vec<_> = ledger.records(3).map(Result::unwrap).collect();
    assert_eq!(read.len(), 1_497);
    for (read, n) in read.into_iter().zip(3..) {
        let NewRecord { kind, key, at, body } = record(n);
        assert_eq!((read.seq, read.kind, read.key, read.at, read.body), (n, kind, key, at, body));
    }
    let some = ledger.read(1_495, 3).unwrap();
    assert_eq!(some.iter().map(|record| record.seq).collect::<Vec<_>>(), [1_495, 1_496, 1_497]);
    assert_eq!(ledger.read(1_498, 10).unwrap().len(), 2);
    assert!(ledger.read(1_500, 10).unwrap().is_empty());
    assert!(ledger.read(u64::MAX, 10).unwrap().is_empty());
}

#[test]
fn a_ledger_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut heads = Vec::new();
    for (from, to) in [(0, 1), (1, 255), (255, 256), (256, 257), (257, 700)] {
        let ledger = open(dir.path()).unwrap();
        assert_eq!(ledger.head().size, from);
        fill(&ledger, from, to);
        heads.push(ledger.head());
        drop(ledger);
        let report = verify(dir.path(), None).unwrap();
        assert!(report.is_intact(), "{:?}", report.damages);
        assert_eq!(report.head, heads.last().copied());
    }
}

#[test]
fn closing_writes_what_nobody_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
    for n in 0..3_000 {
        drop(ledger.append(record(n)));
    }
    drop(ledger);
    assert_eq!(open(dir.path()).unwrap().head().size, 3_000);
}

#[tokio::test]
async fn an_append_can_be_awaited_and_what_is_durable_be_watched() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
    let mut durable = ledger.subscribe();
    assert_eq!(*durable.borrow_and_update(), 0);
    let pending = ledger.append(record(0));
    durable.changed().await.unwrap();
    assert_eq!(*durable.borrow_and_update(), 1);
    assert_eq!(pending.await.unwrap(), Appended::New { seq: 0 });
    // Also inside a runtime: it parks the thread, but needs nothing of the runtime.
    assert_eq!(ledger.append(record(1)).wait().unwrap().seq(), 1);
}

#[test]
fn of_several_records_with_a_key_the_first_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
    let with = |body: &str, kind| NewRecord {
        key: Some("run/1/0".into()),
        body: body.into(),
        kind: RecordKind::new(kind),
        ..record(0)
    };
    // All of one group, before any is durable, and again after.
    for expect in [Appended::New { seq: 0 }, Appended::Existing { seq: 0, same_body: true }] {
        let first = ledger.append(with("{}", "intent"));
        let same = ledger.append(with("{}", "intent"));
        let other_body = ledger.append(with("[]", "intent"));
        let other_kind = ledger.append(with("{}", "result"));
        assert_eq!(first.wait().unwrap(), expect);
        assert_eq!(same.wait().unwrap(), Appended::Existing { seq: 0, same_body: true });
        for other in [other_body, other_kind] {
            assert_eq!(other.wait().unwrap(), Appended::Existing { seq: 0, same_body: false });
        }
    }
    assert_eq!(ledger.head().size, 1);
}

/// Intents are compare-and-append: invariant *observe-before-retry* rests on one winner each.
#[test]
fn each_intent_has_exactly_one_winner_among_many_threads() {
    const THREADS: u64 = 8;
    const INTENTS: u64 = 200;
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
    let run = |thread: u64| {
        let mut outcomes = Vec::new();
        for index in 0..INTENTS {
            let intent = NewRecord {
                key: Some(format!("run/7/{index}")),
                body: thread.to_string(),
                ..record(0)
            };
            outcomes.push(ledger.append(intent).wait().unwrap());
            drop(ledger.append(NewRecord { key: None, ..record(thread * INTENTS + index) }));
        }
        outcomes
    };
    let outcomes: Vec<Vec<Appended>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || run(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    drop(ledger);

    let ledger = open(dir.path()).unwrap();
    let records: Vec<_> = ledger.records(0).map(Result::unwrap).collect();
    assert_eq!(records.len() as u64, INTENTS + THREADS * INTENTS);
    for index in 0..usize::try_from(INTENTS).unwrap() {
        let of_intent: Vec<_> = outcomes.iter().map(|outcomes| outcomes[index]).collect();
        let seq = of_intent[0].seq();
        assert!(of_intent.iter().all(|outcome| outcome.seq() == seq), "intent {index}");
        let won = |outcome: &&Appended| matches!(outcome, Appended::New { .. });
        assert_eq!(of_intent.iter().filter(won).count(), 1, "intent {index}");
        // The record that is kept is the winner's.
        let winner = of_intent.iter().position(|outcome| won(&outcome)).unwrap();
        assert_eq!(records[usize::try_from(seq).unwrap()].body, winner.to_string());
    }
    assert!(verify(dir.path(), None).unwrap().is_intact());
}

#[test]
fn a_record_out_of_bounds_is_refused_and_harms_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
    let check = |record: NewRecord, expect: &str| {
        let error = ledger.append(record).wait().unwrap_err();
        assert!(matches!(error, LedgerError::Record(_)), "{error}");
        let text = error.to_string();
        assert!(text.starts_with(expect), "{text}");
        assert!(text.is_ascii(), "an error must be inert: {text}");
    };
    let kind = |kind: &str| NewRecord { kind: RecordKind::from_stored(kind.into()), ..record(0) };
    check(kind(""), "record kind ``");
    check(kind("Note"), "record kind `Note`");
    check(kind("a\u{202e}b"), "record kind `a\\u{202e}b`");
    check(kind(&"x".repeat(65)), "record kind `xxx");
    let keyed = |key: String| NewRecord { key: Some(key), ..record(0) };
    check(keyed(String::new()), "record key ``");
    check(keyed("a\0b".into()), "record key `a\\u{0}b`");
    check(keyed("x".repeat(KEY_BYTES_MAX + 1)), "record key `xxx");
    let body = |body: String| NewRecord { body, ..record(0) };
    check(body(String::new()), "record body is not JSON");
    check(body("{".into()), "record body is not JSON");
    check(body("[".repeat(100_000)), "record body is not JSON");
    check(body("{} {}".into()), "record body is not JSON");
    check(body(format!("\"{}\"", "x".repeat(BODY_BYTES_MAX))), "record body of 4194306 bytes");

    let largest = format!("\"{}\"", "x".repeat(BODY_BYTES_MAX - 2));
    let kept = [keyed("x".repeat(KEY_BYTES_MAX)), body(largest.clone())];
    for (record, seq) in kept.into_iter().zip(0..) {
        assert_eq!(ledger.append(record).wait().unwrap(), Appended::New { seq });
    }
    assert_eq!(ledger.read(1, 1).unwrap()[0].body, largest);
}

#[test]
fn more_than_can_wait_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
    // A lock that another tool holds keeps the writer waiting, longer than this takes.
    let other = tool(dir.path());
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let body = format!("\"{}\"", "x".repeat(1024 * 1024));
    let large = || NewRecord { key: None, body: body.clone(), ..record(0) };
    let pending: Vec<_> = (0..90).map(|_| ledger.append(large())).collect();
    other.execute_batch("ROLLBACK").unwrap();
    let results: Vec<_> = pending.into_iter().map(estoppel_ledger::Pending::wait).collect();
    let kept = results.iter().filter(|result| result.is_ok()).count();
    assert!((64..90).contains(&kept), "{kept}");
    for result in &results[..64] {
        result.as_ref().unwrap();
    }
    let refused = results.into_iter().find_map(Result::err).unwrap();
    assert!(matches!(refused, LedgerError::Overloaded { waiting: 1.. }), "{refused}");
    // Room again.
    assert_eq!(ledger.append(large()).wait().unwrap().seq(), kept as u64);
}

#[test]
fn a_folder_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let error = open(dir.path()).map(|_| ()).unwrap_err();
    assert!(matches!(error, LedgerError::Locked { .. }), "{error}");
    let second = first.clone();
    drop(first);
    assert!(open(dir.path()).is_err(), "a clone still has it open");
    drop(second);
    open(dir.path()).unwrap();
}

#[test]
fn a_folder_of_another_key_or_of_something_else_is_left_alone() {
    let dir = closed(3);
    let before = content(dir.path()).unwrap();
    let other = SigningKey::from_bytes(&[2; 32]);
    let error = Ledger::open(dir.path(), other, Options::default()).map(|_| ()).unwrap_err();
    assert!(matches!(error, LedgerError::OtherKey { .. }), "{error}");
    assert_eq!(content(dir.path()).unwrap(), before);

    tool(dir.path()).pragma_update(None, "user_version", 2).unwrap();
    let error = open(dir.path()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("not a ledger of format 1"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ledger.db"), "something else\n".repeat(1_000)).unwrap();
    assert!(open(dir.path()).is_err());
    assert!(fs::read(dir.path().join("ledger.db")).unwrap().starts_with(b"something else\n"));

    let dir = tempfile::tempdir().unwrap();
    tool(dir.path()).execute_batch("CREATE TABLE theirs (x)").unwrap();
    let error = open(dir.path()).map(|_| ()).unwrap_err();
    assert!(matches!(error, LedgerError::Format { .. }), "{error}");

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let error = open(&dir.path().join("file")).map(|_| ()).unwrap_err();
    assert!(matches!(error, LedgerError::File { .. }), "{error}");
}

#[test]
fn reading_and_opening_find_a_record_that_was_changed() {
    let dir = closed(600);
    let change = |seq: u64| {
        let sql = "UPDATE record SET body = '{}' WHERE seq = ?1";
        assert_eq!(tool(dir.path()).execute(sql, [i64::try_from(seq).unwrap()]).unwrap(), 1);
    };
    // An old one opens, and is found when it is read.
    change(10);
    let ledger = open(dir.path()).unwrap();
    assert_eq!(ledger.read(0, 10).unwrap().len(), 10);
    let error = ledger.read(0, 11).unwrap_err();
    assert!(error.to_string().contains("record 10"), "{error}");
    let (good, bad): (Vec<_>, Vec<_>) = ledger.records(0).partition(Result::is_ok);
    assert!(good.is_empty() && bad.len() == 1, "it ends with the first error");
    drop(ledger);
    // One of the newest keeps the ledger from opening.
    change(599);
    let error = open(dir.path()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("record 599"), "{error}");
    assert!(error.to_string().contains("estoppel ledger verify"), "{error}");
}

#[test]
fn a_live_ledger_exports_its_checkpoint_when_it_closes() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
    let file = || fs::read_to_string(dir.path().join("checkpoint")).unwrap();
    assert_eq!(file(), ledger.checkpoint().as_str());
    fill(&ledger, 0, 5);
    let last = ledger.checkpoint();
    assert_eq!(last.head(), ledger.head());
    drop(ledger);
    assert_eq!(file(), last.as_str());
    assert_eq!(last.verify(&open(dir.path()).unwrap().verifier_key()), Ok(()));
}

#[test]
fn the_errors_of_bad_json_keep_their_source() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
    let bad = NewRecord { body: "{".into(), ..record(0) };
    let Err(LedgerError::Record(RecordError::BodyNotJson { source })) = ledger.append(bad).wait()
    else {
        panic!("taken");
    };
    assert!(source.is_eof());
}
