use std::sync::Arc;

use estoppel_extract::Allowlist;
use estoppel_model::{EntityId, Event, EventLimits, PluginRef, Severity};

use super::*;
use crate::{Detectors, detection::INJECTION};

fn policy(egress: EgressMode) -> DetectPolicy {
    let list = Allowlist::parse(&["api.example"]).unwrap();
    DetectPolicy { allowlist: Some(Arc::new(list)), egress, ..DetectPolicy::default() }
}

fn at(seconds: u64) -> Timestamp {
    "2026-02-05T03:00:00Z".parse::<Timestamp>().unwrap() + Duration::from_secs(seconds)
}

fn egress(session: &str, host: &str, seconds: u64, policy: &DetectPolicy) -> Detection {
    let json = format!(
        r#"{{"kind":"network","session_id":"{session}","destination":"{host}","port":443,"verdict":"allowed"}}"#
    );
    let now = at(seconds);
    let event = Event::parse(&json).unwrap().receive(now, EventLimits::at(now)).unwrap();
    Detectors::new().observe(&event, policy).remove(0)
}

fn injection(session: &str, severity: Severity, seconds: u64) -> Detection {
    let now = at(seconds);
    let event = Event::parse(r#"{"kind":"audit"}"#).unwrap();
    let event = event.receive(now, EventLimits::at(now)).unwrap();
    let subject = Subject::session(EntityId::new(session).unwrap());
    Detection::new(INJECTION, severity, subject, &event, "x".to_owned())
}

#[test]
fn unlisted_egress_alone_asks_and_a_second_signal_acts() {
    let ask = policy(EgressMode::Ask);
    let auto = policy(EgressMode::Auto);
    let open = DetectPolicy::default();
    let flow = || egress("s", "evil.example", 0, &ask);
    let other = || egress("s", "evil2.example", 1, &ask);
    let text = || injection("s", Severity::Medium, 2);
    let grave = || injection("s", Severity::High, 2);
    let check = |detections: &[Detection], policy: &DetectPolicy, expect: Response| {
        assert_eq!(assess(detections, policy), expect, "{detections:#?}");
    };
    check(&[], &ask, Response::Report);
    check(&[flow()], &ask, Response::Ask);
    check(&[flow(), other()], &ask, Response::Ask);
    check(&[flow(), text()], &ask, Response::Act);
    check(&[text(), flow()], &ask, Response::Act);
    check(&[text()], &ask, Response::Report);
    check(&[grave()], &ask, Response::Ask);
    check(&[flow()], &auto, Response::Act);
    check(&[grave()], &auto, Response::Ask);
    // Without an allowlist, nothing is known to be foreign.
    check(&[flow(), grave()], &open, Response::Report);
    check(&[egress("s", "evil.example", 0, &open), grave()], &ask, Response::Ask);
}

/// For who was released lately, what else would ask acts, and what would be reported asks.
#[test]
fn a_watch_tightens_what_follows() {
    let ask = policy(EgressMode::Ask);
    let open = DetectPolicy::default();
    let flow = || egress("s", "evil.example", 0, &ask);
    let mild = || injection("s", Severity::Low, 2);
    let check = |detections: &[Detection], policy: &DetectPolicy, usual, watched| {
        assert_eq!(assess(detections, policy), usual, "{detections:#?}");
        assert_eq!(assess(detections, &policy.tightened()), watched, "watched: {detections:#?}");
    };
    check(&[flow()], &ask, Response::Ask, Response::Act);
    check(&[mild()], &ask, Response::Report, Response::Ask);
    check(&[mild()], &open, Response::Report, Response::Ask);
    check(&[egress("s", "evil.example", 0, &open)], &open, Response::Report, Response::Report);
    check(&[], &ask, Response::Report, Response::Report);
    let mut responses = Responses::new();
    let decision = responses.respond(&flow(), &ask.tightened());
    assert_eq!(decision.scope.unwrap().to_string(), "session:s", "it acts as narrowly as ever");
}

#[test]
fn a_signal_beyond_the_window_does_not_count() {
    let policy = policy(EgressMode::Ask);
    let old = injection("s", Severity::High, 0);
    let act =
        |seconds| assess(&[old.clone(), egress("s", "evil.example", seconds, &policy)], &policy);
    assert_eq!(act(3_600), Response::Act);
    assert_eq!(act(3_601), Response::Ask);
}

/// *bounded automation*: a session, else a task, else a plugin, and nothing wider.
#[test]
fn what_follows_by_itself_is_narrow() {
    let id = |text: &str| EntityId::new(text).unwrap();
    let plugin = Some(PluginRef { name: id("p"), version: None });
    let wide = Subject {
        user: Some(id("u")),
        tenant: Some(id("t")),
        agent: Some(id("a")),
        ..Subject::default()
    };
    let scope =
        |subject: &Subject| halt_scope(Family::Injection, subject).map(|scope| scope.to_string());
    assert_eq!(scope(&wide), None);
    assert_eq!(
        scope(&Subject { plugin: plugin.clone(), ..wide.clone() }).as_deref(),
        Some("plugin:p")
    );
    let task = Subject { task: Some(id("k")), plugin, ..wide.clone() };
    assert_eq!(scope(&task).as_deref(), Some("task:k"));
    assert_eq!(scope(&Subject { session: Some(id("s")), ..task }).as_deref(), Some("session:s"));

    let policy = policy(EgressMode::Auto);
    let mut detection = egress("s", "evil.example", 0, &policy);
    detection.subject = wide;
    let decision = Responses::new().respond(&detection, &policy);
    assert_eq!((decision.response, decision.scope), (Response::Ask, None));
    assert!(decision.held_back.unwrap().contains("a person must decide"));
}

#[test]
fn decisions_fold_over_a_session() {
    let policy = policy(EgressMode::Ask);
    let mut responses = Responses::new();
    let mut decide = |detection: &Detection| responses.respond(detection, &policy);
    let flow = egress("s", "evil.example", 0, &policy);
    assert_eq!(decide(&flow).response, Response::Ask);
    assert_eq!(decide(&injection("other", Severity::High, 1)).response, Response::Ask);
    let text = injection("s", Severity::Medium, 2);
    let decision = decide(&text);
    assert_eq!(decision.response, Response::Act);
    assert_eq!(decision.scope.as_ref().unwrap().to_string(), "session:s");
    assert_eq!(decision.because, [flow.id.clone(), text.id]);
    // It is halted once; a further signal is only recorded, until a person releases the halt.
    let again = decide(&egress("s", "evil3.example", 3, &policy));
    assert_eq!(again.response, Response::Report);
    assert!(again.held_back.unwrap().contains("halted for this before"));
    responses.released(&decision.scope.unwrap());
    let after = responses.respond(&egress("s", "evil4.example", 4, &policy), &policy);
    assert_eq!(after.response, Response::Ask);
}

#[test]
fn halts_by_detection_are_capped() {
    let policy = DetectPolicy { halts_per_hour_max: 3, ..policy(EgressMode::Auto) };
    let mut responses = Responses::new();
    let mut decide = |session: usize, seconds: u64| {
        let detection = egress(&format!("s{session}"), "evil.example", seconds, &policy);
        responses.respond(&detection, &policy)
    };
    for session in 0..3 {
        assert_eq!(decide(session, 0).response, Response::Act);
    }
    let capped = decide(3, 3_599);
    assert_eq!(capped.response, Response::Ask);
    assert!(capped.held_back.unwrap().contains("used up"));
    assert_eq!(decide(4, 3_600).response, Response::Act);
}
