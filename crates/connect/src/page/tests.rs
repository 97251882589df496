use serde_json::Value;

use super::*;

const KEY: &str = "0123456789abcdef0123456789ABCDEF";

fn page(summary: &str) -> Page {
    Page {
        incident: "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap(),
        number: Some("IR-2026-001".parse().unwrap()),
        severity: Severity::High,
        summary: Untrusted::new(summary.to_owned()),
        url: Some(Url::parse("https://estoppel.example/incidents/IR-2026-001").unwrap()),
        incident_url: None,
        halt: None,
        dedup_key: "incident/01890a5d".to_owned(),
        checkpoint: Some("estoppel/ledger\n12\nabc=\n".to_owned()),
        at: "2026-02-05T03:00:00Z".parse().unwrap(),
        subject: "session:abc123".to_owned(),
        action: PageAction::Trigger,
    }
}

fn pagerduty_format() -> Format {
    Format::PagerDuty { routing_key: RoutingKey::new(Secret::new(KEY.to_owned())).unwrap() }
}

fn text<'a>(body: &'a Value, pointer: &str) -> &'a str {
    body.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer}: {body}"))
}

/// Row K2: the fields of PagerDuty's Events API v2, with their documented bounds and words.
#[test]
fn a_pagerduty_event_has_the_documented_fields() {
    let body = pagerduty_format().body(&page("data went to collector.example"));
    let known =
        ["routing_key", "event_action", "dedup_key", "payload", "links", "client", "client_url"];
    assert!(body.as_object().unwrap().keys().all(|key| known.contains(&key.as_str())), "{body}");
    let known = [
        "summary",
        "source",
        "severity",
        "timestamp",
        "component",
        "group",
        "class",
        "custom_details",
    ];
    assert!(body["payload"].as_object().unwrap().keys().all(|key| known.contains(&key.as_str())));
    assert_eq!(text(&body, "/routing_key"), KEY);
    assert_eq!(text(&body, "/event_action"), "trigger");
    assert_eq!(text(&body, "/dedup_key"), "incident/01890a5d");
    assert_eq!(text(&body, "/payload/summary"), "IR-2026-001: data went to collector.example");
    assert_eq!(text(&body, "/payload/source"), "estoppel");
    assert_eq!(text(&body, "/payload/timestamp"), "2026-02-05T03:00:00.000000Z");
    assert!(text(&body, "/payload/custom_details/checkpoint").starts_with("estoppel/ledger"));
    assert!(text(&body, "/links/0/href").starts_with("https://estoppel.example/"));
    for (severity, word) in [
        (Severity::Critical, "critical"),
        (Severity::High, "error"),
        (Severity::Medium, "warning"),
        (Severity::Low, "info"),
    ] {
        let body = pagerduty_format().body(&Page { severity, ..page("x") });
        assert_eq!(text(&body, "/payload/severity"), word);
    }
    let resolved = pagerduty_format().body(&Page { action: PageAction::Resolve, ..page("x") });
    assert_eq!(text(&resolved, "/event_action"), "resolve");
    assert_eq!(text(&resolved, "/dedup_key"), "incident/01890a5d");
}

#[test]
fn bounds_hold_whatever_an_agent_wrote() {
    for summary in ["x".repeat(5_000), "\u{202e}".repeat(5_000), "ü".repeat(5_000)] {
        let long = Page { dedup_key: "ä".repeat(300), ..page(&summary) };
        let body = pagerduty_format().body(&long);
        assert!(text(&body, "/payload/summary").chars().count() <= 1_024);
        assert!(text(&body, "/dedup_key").len() <= 255);
    }
    let hostile = pagerduty_format().body(&page("a\u{1b}[2J\r\nb\u{202e}c"));
    assert_eq!(
        text(&hostile, "/payload/summary"),
        "IR-2026-001: a\\u{1b}[2J\\u{d}\\u{a}b\\u{202e}c"
    );
}

#[test]
fn a_generic_page_is_a_cloud_event() {
    let body = Format::Generic.body(&page("x"));
    for required in ["/specversion", "/id", "/source", "/type"] {
        assert!(!text(&body, required).is_empty());
    }
    assert_eq!(text(&body, "/specversion"), "1.0");
    assert_eq!(text(&body, "/id"), text(&body, "/data/dedup_key"), "a repetition is recognised");
    assert_eq!(text(&body, "/type"), "dev.estoppel.incident.page.v1");
    assert_eq!(text(&body, "/subject"), "IR-2026-001");
    assert_eq!(text(&body, "/data/severity"), "high");
    let unnumbered = Format::Generic.body(&Page { number: None, ..page("x") });
    assert_eq!(text(&unnumbered, "/subject"), "01890a5d-ac96-774b-bcce-b302099a8057");
}

#[test]
fn a_routing_key_is_checked_and_never_shown() {
    for wrong in ["", "short", &"x".repeat(33), &"-".repeat(32), &"ü".repeat(16)] {
        let error = RoutingKey::new(Secret::new(wrong.to_owned())).unwrap_err().to_string();
        assert!(wrong.is_empty() || !error.contains(wrong), "{error}");
    }
    assert!(!format!("{:?}", pagerduty_format()).contains(KEY));
}
