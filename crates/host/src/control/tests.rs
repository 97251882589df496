use std::sync::Arc;

use estoppel_model::{Scope, SystemClock};

use super::*;

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[test]
fn a_line_is_an_order_of_the_peer_or_refused() {
    let parse = |line: &str| parse(line, own_uid(), &SystemClock);
    let order = parse(r#"{"halt": {"scope": "session:a", "reason": "r"}}"#).unwrap();
    assert_eq!(order.body, OrderBody::Halt { until: None });
    assert!(order.issued_by.as_str().starts_with(&format!("local:uid-{}@", own_uid())));
    let check = |line: &str, expect: &str| {
        let error = parse(line).unwrap_err();
        assert!(error.contains(expect), "{line}: {error}");
    };
    check("", "send {\"halt\"");
    check(r#"{"release": {"scope": "global", "reason": "r"}}"#, "release");
    check(r#"{"halt": {"scope": "sesion:a", "reason": "r"}}"#, "did you mean `session:a`?");
    check(r#"{"halt": {"scope": "global"}}"#, "reason");
    check(r#"{"halt": {"scope": "global", "reason": "r", "issued_by": "ceo"}}"#, "issued_by");
    let long = format!(r#"{{"halt": {{"scope": "global", "reason": "{}"}}}}"#, "x".repeat(2_001));
    check(&long, "at most 2000");
}

#[test]
fn another_user_is_refused() {
    let line = r#"{"halt": {"scope": "global", "reason": "r"}}"#;
    let error = parse(line, own_uid() + 12_345, &SystemClock).unwrap_err();
    assert!(error.contains("must not"), "{error}");
}

#[tokio::test]
async fn a_folder_that_others_can_enter_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path().join("run");
    fs::create_dir(&run_dir).unwrap();
    fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o755)).unwrap();
    let error = Door::open(&run_dir).unwrap_err();
    assert!(matches!(error, ControlError::Open { mode: 0o755, .. }), "{error}");
}

#[tokio::test]
async fn a_host_where_nothing_runs_answers_with_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let scope = || Scope::Global.into();
    for run_dir in [folder.path().to_owned(), folder.path().join("none")] {
        let (_, reports) = halt_local(&run_dir, scope(), "r", &SystemClock).await.unwrap();
        assert!(reports.is_empty());
    }
}

#[tokio::test]
async fn a_client_that_says_nonsense_too_much_or_nothing_is_answered_or_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path().join("run");
    let door = Door::open(&run_dir).unwrap();
    let path = door.path.clone();
    let (requests, mut received) = mpsc::channel(1);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let (serving, stopping) = (tasks.clone(), stop.clone());
    tasks.spawn(async move {
        serve(door, requests, Arc::new(SystemClock), &serving, stopping).await;
    });
    let say = async |text: Vec<u8>| {
        let (from, mut to) = UnixStream::connect(&path).await.unwrap().into_split();
        // The other side may hang up in the middle of too much.
        let _ = to.write_all(&text).await;
        let _ = to.shutdown().await;
        read_line(from).await.unwrap_or_default()
    };
    assert!(say(b"nonsense\n".to_vec()).await.contains("refused"));
    assert_eq!(say(b"no line feed".to_vec()).await, "");
    assert_eq!(say(b"\xff\xfe\n".to_vec()).await, "");
    assert_eq!(say(vec![b'x'; 200_000]).await, "");
    // A supervisor that ends while it is asked.
    let asking = say(b"{\"halt\": {\"scope\": \"global\", \"reason\": \"r\"}}\n".to_vec());
    let ending = async { drop(received.recv().await.unwrap()) };
    let (answer, ()) = tokio::join!(asking, ending);
    assert!(answer.contains("ending"), "{answer}");
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    assert!(!path.exists());
}
