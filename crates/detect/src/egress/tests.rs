use std::sync::Arc;

use estoppel_extract::Allowlist;
use estoppel_model::{Event, EventLimits, Timestamp};

use super::*;
use crate::Detectors;

fn event(json: &str) -> ReceivedEvent {
    let now: Timestamp = "2026-02-05T03:00:00Z".parse().unwrap();
    Event::parse(json).unwrap().receive(now, EventLimits::at(now)).unwrap()
}

fn flow(session: &str, destination: &str, port: u16) -> ReceivedEvent {
    event(&format!(
        r#"{{"kind":"network","session_id":"{session}","destination":"{destination}","port":{port},"bytes_sent":4096,"verdict":"would_block"}}"#
    ))
}

fn listed(entries: &[&str]) -> DetectPolicy {
    let allowlist = Some(Arc::new(Allowlist::parse(entries).unwrap()));
    DetectPolicy { allowlist, ..DetectPolicy::default() }
}

/// Row P1, in each spelling.
#[test]
fn what_is_not_on_the_list_is_detected() {
    let policy = listed(&["api.example", "*.cdn.example", "192.0.2.1:8443"]);
    let check = |destination: &str, port: u16, expect: bool| {
        let found = Detectors::new().observe(&flow("s", destination, port), &policy);
        assert_eq!(!found.is_empty(), expect, "{destination}:{port}");
    };
    check("api.example", 443, false);
    check("API.Example.", 443, false);
    check("a.cdn.example", 80, false);
    check("192.0.2.1", 8443, false);
    check("api.example", 8443, true);
    check("cdn.example", 443, true);
    check("api.example.evil.io", 443, true);
    check("evilapi.example", 443, true);
    check("192.0.2.1", 443, true);
    check("not a host at all", 443, true);
}

#[test]
fn a_detection_says_what_and_whom_and_rests_on_its_event() {
    let event = flow("abc123", "Collector.Example", 8443);
    let found = Detectors::new().observe(&event, &listed(&["api.example"]));
    let [detection] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(detection.rule, "egress.unlisted");
    assert_eq!(detection.severity, Severity::High);
    assert_eq!(detection.subject.to_string(), "session:abc123");
    assert_eq!(detection.evidence, [event.id]);
    assert_eq!(detection.destination.as_ref().unwrap().to_string(), "collector.example:8443");
    assert_eq!(
        detection.summary,
        "a flow to `collector.example:8443`, which is not on the allowlist, 4096 bytes sent by then"
    );
    // The same event after a restart is the same detection.
    let again = Detectors::new().observe(&event, &listed(&["api.example"]));
    assert_eq!(again[0].id, detection.id);
    assert_eq!(detection.id.as_str().len(), 64);
}

#[test]
fn hostile_destinations_are_inert_and_cannot_be_blocked_by_name() {
    for (json, shown) in [(r"\u001b[2J\u202eevil", r"\u{1b}[2J\u{202e}evil"), ("a b`c", "a b`c")] {
        let found = Detectors::new().observe(&flow("s", json, 443), &listed(&[]));
        let summary = &found[0].summary;
        assert!(summary.contains(shown), "{summary}");
        assert!(summary.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{summary:?}");
        assert_eq!(found[0].destination, None);
    }
}

#[test]
fn each_session_and_destination_is_news_once() {
    let mut detectors = Detectors::new();
    let policy = listed(&["api.example"]);
    let mut count = |event: &ReceivedEvent| detectors.observe(event, &policy).len();
    assert_eq!(count(&flow("a", "evil.example", 443)), 1);
    assert_eq!(count(&flow("a", "evil.example", 443)), 0);
    assert_eq!(count(&flow("a", "EVIL.example", 443)), 0);
    assert_eq!(count(&flow("a", "evil.example", 8443)), 1);
    assert_eq!(count(&flow("b", "evil.example", 443)), 1);
}

#[test]
fn an_attempt_is_less_bad_than_a_flow() {
    let policy = listed(&[]);
    let severity = |verdict: &str| {
        let json = format!(
            r#"{{"kind":"network","session_id":"s","destination":"x.example","port":443,"verdict":"{verdict}"}}"#
        );
        Detectors::new().observe(&event(&json), &policy)[0].severity
    };
    assert_eq!(severity("blocked"), Severity::Medium);
    assert_eq!(severity("failed"), Severity::Medium);
    assert_eq!(severity("would_block"), Severity::High);
    assert_eq!(severity("allowed"), Severity::High, "the gateway's list may be older");
}

#[test]
fn without_a_list_egress_is_learned_and_suggested() {
    let mut detectors = Detectors::new();
    let policy = DetectPolicy::default();
    for (session, destination, port) in [
        ("a", "api.example", 443),
        ("b", "api.example", 80),
        ("a", "api.example", 443),
        ("a", "db.example", 5432),
        ("a", "192.0.2.1", 443),
        ("a", "2001:db8::1", 8443),
        ("a", "not a host", 443),
    ] {
        for detection in detectors.observe(&flow(session, destination, port), &policy) {
            assert_eq!(
                (detection.rule.as_str(), detection.severity),
                ("egress.learned", Severity::Low)
            );
        }
    }
    let suggested = detectors.learned().suggest();
    let entries: Vec<_> =
        suggested.iter().map(|it| (it.entry.as_str(), it.flows, it.sessions)).collect();
    assert_eq!(entries[0], ("api.example", 3, 2));
    let names: Vec<_> = entries.iter().map(|(name, _, _)| *name).collect();
    assert_eq!(names, ["api.example", "192.0.2.1:443", "[2001:db8::1]:8443", "db.example:5432"]);
    Allowlist::parse(&names).expect("each suggestion is an entry");
    // Once there is a list, what was learned and is not on it is news.
    let found = detectors.observe(&flow("a", "db.example", 5432), &listed(&["api.example"]));
    assert_eq!(found[0].rule, "egress.unlisted");
}

#[test]
fn memory_is_bounded() {
    let mut egress = Egress::new();
    let policy = DetectPolicy::default();
    for index in 0..LEARNED_MAX + 10 {
        let event = flow("a", &format!("h{index}.example"), 443);
        let Event::Network(network) = &event.event else { unreachable!() };
        egress.observe(&event, network, &Subject::default(), &policy);
    }
    assert_eq!(egress.learned.destinations.len(), LEARNED_MAX);
    assert_eq!(egress.learned.left_out(), 10);
}

#[test]
fn events_that_say_little_are_no_errors() {
    let policy = listed(&[]);
    for (json, expect) in [
        (r#"{"kind":"network"}"#, 0),
        (r#"{"kind":"network","destination":"x.example"}"#, 1),
        (r#"{"kind":"network","destination":"","port":0}"#, 1),
        (r#"{"kind":"audit"}"#, 0),
        (r#"{"kind":"audit","params":{},"result":null}"#, 0),
    ] {
        assert_eq!(Detectors::new().observe(&event(json), &policy).len(), expect, "{json}");
    }
}
