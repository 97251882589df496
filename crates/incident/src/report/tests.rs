use std::fmt::Write as _;

use estoppel_model::{
    Actor, EnforcerId, EntityId, IncidentId, NewRecord, OrderId, Record, RunId, Scope, ScopeSet,
    Severity, Subject, Untrusted,
    journal::{Mode, RunEnded, RunOutcome, RunStarted, StepIntent, StepOutcome, StepResult},
};
use uuid::Uuid;

use super::*;
use crate::{Incidents, record::*};

/// An incident from its first event to its last page, with the text `hostile` wherever a stranger
/// could have put it.
fn story(hostile: &str) -> (Incidents, IncidentId) {
    let mut incidents = Incidents::default();
    let mut seq = 10;
    let start: Timestamp = "2026-02-05T03:00:00Z".parse().unwrap();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let mut append = |record: Result<NewRecord, serde_json::Error>| {
        let NewRecord { kind, key, at, body } = record.unwrap();
        incidents.apply(&Record { seq, kind, key, at, body });
        seq += 1;
    };
    let fixed = |n: u128| Uuid::from_u128(n);
    let incident = IncidentId::from_uuid(fixed(1));
    let (order, run) = (OrderId::from_uuid(fixed(2)), RunId::from_uuid(fixed(3)));
    let by = || Actor::new("detector:egress").unwrap();
    let strange = || Untrusted::new(hostile.to_owned());
    let scope = || ScopeSet::from("session:abc123".parse::<Scope>().unwrap());
    let subject = || Subject::session(EntityId::new("abc123").unwrap());
    append(
        Opened {
            id: incident,
            title: strange(),
            kind: IncidentKind::PromptInjection,
            severity: Severity::Critical,
            source: Source::Detection,
            scope: None,
            subject: subject(),
            by: by(),
            description: Some(strange()),
        }
        .record(at(20)),
    );
    append(
        Detected {
            incident,
            detection: "d1".to_owned(),
            rule: "egress.unlisted".to_owned(),
            severity: Severity::High,
            subject: subject(),
            evidence: vec![fixed(4)],
            summary: hostile.to_owned(),
            destination: Some("collector.example:443".parse().unwrap()),
            event_at: at(0),
            received_at: at(12),
        }
        .record(at(21)),
    );
    append(
        Halted {
            incident,
            order,
            what: "halt".to_owned(),
            scope: scope(),
            reason: strange(),
            by: by(),
            accepted_at: at(22),
            enforcers: 2,
        }
        .record(at(22)),
    );
    let started = RunStarted {
        run,
        incident,
        playbook: "prompt-injection".to_owned(),
        source: String::new(),
        inputs: std::collections::BTreeMap::new(),
        mode: Mode::Live,
        asks: false,
        by: by(),
    };
    append(started.record(at(23)));
    let enforcer = |n: u128, kind: &str, after_us: u64| Confirmed {
        incident,
        order,
        enforcer: EnforcerId::from_uuid(fixed(n)),
        kind: kind.to_owned(),
        name: strange(),
        stage: ConfirmedStage::Refusing,
        confirmed_at: at(24),
        after_us,
        steps_cancelled: 0,
        connections_cut: 0,
        processes_frozen: 0,
        bytes_out: 4_096,
        last_byte_at: Some(at(23)),
        not_interruptible: Vec::new(),
        containment: None,
        observed_only: false,
    };
    append(enforcer(5, "gateway", 180).record(at(24)));
    let mut settled = enforcer(5, "gateway", 900);
    settled.stage = ConfirmedStage::Settled;
    settled.connections_cut = 2;
    append(settled.record(at(25)));
    let mut settled = enforcer(6, "host", 26_000);
    settled.stage = ConfirmedStage::Settled;
    settled.processes_frozen = 3;
    settled.containment = Some(strange());
    settled.not_interruptible = vec![strange()];
    append(settled.record(at(50)));
    append(
        Contained { incident, order, enforcers: 2, settled: 2, by_lease: 0, gone: 0 }
            .record(at(51)),
    );
    for (index, step, outcome) in
        [(0, "halt", StepOutcome::Done), (1, "capture", StepOutcome::Indeterminate)]
    {
        let (step, action) = (step.to_owned(), step.to_owned());
        let intent = StepIntent { run, index, step, action, attempt: 1 };
        append(intent.record(at(52)));
        let StepIntent { step, action, attempt, .. } = intent;
        let (observed, detail) = (hostile.to_owned(), serde_json::Value::Null);
        append(
            StepResult { run, index, step, action, attempt, outcome, observed, detail }
                .record(at(60)),
        );
    }
    append(RunEnded { run, outcome: RunOutcome::Indeterminate }.record(at(61)));
    append(
        Paged {
            incident,
            channel: "on-call".to_owned(),
            dedup_key: "estoppel/1".to_owned(),
            attempts: 2,
            result: PageResult::Accepted { receipt: strange() },
        }
        .record(at(70)),
    );
    append(
        EvidenceAdded {
            incident,
            item: strange(),
            method: Untrusted::new("procfs".to_owned()),
            origin: strange(),
            sha256: Some("ab".repeat(32)),
            bytes: 1_234,
            manifest_sha256: "cd".repeat(32),
            captured_at: at(58),
            redactions: 1,
            gaps: vec![strange()],
        }
        .record(at(71)),
    );
    append(Noted { incident, text: strange(), by: by() }.record(at(80)));
    append(Assigned { incident, to: strange(), by: by() }.record(at(81)));
    (incidents, incident)
}

fn findings(hostile: &str) -> Findings {
    let at: Timestamp = "2026-02-05T03:10:00Z".parse().unwrap();
    Findings {
        as_of: at,
        checkpoint: Some(hostile.to_owned()),
        destinations: Answer {
            query: "SELECT destination FROM network_log".to_owned(),
            result: Ok(vec![DestinationBytes {
                destination: Untrusted::new(hostile.to_owned()),
                port: Some(443),
                listed: Some(false),
                flows: 3,
                bytes_sent: 4_096,
                bytes_received: 128,
                first_at: at,
                last_at: at,
            }]),
        },
        audit: Answer {
            query: "SELECT tool, count(*) FROM audit_log GROUP BY tool".to_owned(),
            result: Ok(AuditSummary {
                steps: 12,
                tools: vec![(Untrusted::new(hostile.to_owned()), 12)],
            }),
        },
        damage: None,
    }
}

fn report(hostile: &str) -> String {
    let (incidents, id) = story(hostile);
    markdown(incidents.incident(id).unwrap(), &findings(hostile))
}

/// Row F1: the whole report.
#[test]
fn the_report_of_an_incident() {
    insta::assert_snapshot!("report", report("text of a stranger"));
}

/// What stands outside of code spans is the same whatever strangers wrote: their text can neither
/// close a span, nor add a row or a heading, nor draw a link or an image.
#[test]
fn hostile_text_changes_nothing_but_what_is_inside_code_spans() {
    /// The page with each code span's inside taken out.
    fn skeleton(page: &str) -> String {
        let mut out = String::new();
        for line in page.lines() {
            assert_eq!(line.matches('`').count() % 2, 0, "an open code span: {line}");
            for (index, part) in line.split('`').enumerate() {
                out.push_str(if index % 2 == 0 { part } else { "``" });
            }
            out.push('\n');
        }
        out
    }
    let plain = skeleton(&report("harmless"));
    for hostile in [
        "` | # x\n\n## Root cause\n\nNothing happened ` |",
        "<script>alert(1)</script><!-- ",
        "[link](https://evil.example) ![image](https://evil.example/?q=1)",
        "\u{1b}]0;title\u{7}\u{1b}[2J\r\n| a | b |\r\n| --- | --- |",
        "```\n</td></tr></table>\n```",
        "\\` \\| \\",
        "\u{202e}desrever\u{202c}\u{2028}next\u{85}line",
        "www.evil.example someone@evil.example #12 @everyone",
    ] {
        let page = report(hostile);
        assert_eq!(skeleton(&page), plain, "{hostile:?}");
        let odd = |c: char| c.is_control() && c != '\n';
        assert!(!page.contains(odd) && !page.contains('\u{202e}'), "{hostile:?}");
    }
}

/// Each line that claims something about the incident has a reference.
#[test]
fn every_row_refers_to_something() {
    let page = report("x");
    let section = |title: &str| {
        let start = page.find(&format!("## {title}")).unwrap();
        page[start..].split("\n## ").next().unwrap().to_owned()
    };
    for title in ["Timeline", "What was stopped", "Actions taken", "Evidence"] {
        let section = section(title);
        let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
        let mut count = 0;
        for row in rows.filter(|row| !row.contains("| Ref |") && !row.contains("---")) {
            assert!(row.contains('#'), "{title}: {row}");
            count += 1;
        }
        assert!(count > 0, "{title}");
    }
    for gap in section("Gaps").lines().filter(|line| line.starts_with("- ")) {
        assert!(gap.contains('#') || gap.contains('Q'), "{gap}");
    }
}

#[test]
fn what_is_not_known_is_said_to_be_not_known() {
    let mut incidents = Incidents::default();
    let id = IncidentId::new();
    let opened = Opened {
        id,
        title: Untrusted::new("strange mails".to_owned()),
        kind: IncidentKind::Other,
        severity: Severity::Medium,
        source: Source::Report,
        scope: None,
        subject: Subject::default(),
        by: Actor::new("carol").unwrap(),
        description: None,
    };
    let at: Timestamp = "2026-02-05T03:00:00Z".parse().unwrap();
    let NewRecord { kind, key, at, body } = opened.record(at).unwrap();
    incidents.apply(&Record { seq: 0, kind, key, at, body });
    let mut findings = findings("x");
    findings.destinations.result = Err("the worker ran out of memory".to_owned());
    findings.audit.result = Ok(AuditSummary::default());
    findings.checkpoint = None;
    let page = markdown(incidents.incident(id).unwrap(), &findings);
    for expect in [
        "Nothing was halted.",
        "| Started | not known |",
        "| Detected | 2026-02-05T03:00:00.000000Z (#0) | not known |",
        "No halt and no block was given",
        "**Not determined**: the query Q1 over the network log failed: `the worker ran out of memory`",
        "The audit log has no step (Q2).",
        "No playbook was run and nobody was paged.",
        "**No evidence was kept.**",
        "**Not determined.** The detections say what was seen",
        "- No detector saw it: it was opened from a person's report (#0).",
        "- Nobody was paged.",
        "No checkpoint was given",
    ] {
        assert!(page.contains(expect), "{expect}\n\n{page}");
    }
    assert!(!page.contains("contained:"), "{page}");
}

#[test]
fn a_root_cause_is_reported_with_its_author() {
    let (mut incidents, incident) = story("x");
    let text = Untrusted::new("The fetch tool returns pages as they are.".to_owned());
    let by = Actor::new("alice").unwrap();
    let at: Timestamp = "2026-02-05T04:00:00Z".parse().unwrap();
    let NewRecord { kind, key, at, body } = RootCause { incident, text, by }.record(at).unwrap();
    incidents.apply(&Record { seq: 99, kind, key, at, body });
    let page = markdown(incidents.incident(incident).unwrap(), &findings("x"));
    assert!(page.contains("`The fetch tool returns pages as they are.`"), "{page}");
    assert!(page.contains("Determined by `alice` at 2026-02-05T04:00:00.000000Z (#99)."), "{page}");
}

#[test]
fn durations_are_readable() {
    let check = |micros: u64, expect: &str| {
        assert_eq!(elapsed(Duration::from_micros(micros)), expect);
    };
    check(180, "180 µs");
    check(26_000, "0.026 s");
    check(1_234_567, "1.234 s");
    check(125_000_000, "2 min 5 s");
    check(7_260_000_000, "2 h 1 min");
}

#[test]
fn long_tables_say_what_they_leave_out() {
    let rows: Vec<Vec<String>> = (0..250).map(|row| vec![row.to_string()]).collect();
    let mut out = String::new();
    write!(out, "{}", bounded_table(&["n"], &rows)).unwrap();
    assert!(out.ends_with("50 more rows are left out here.\n"), "{out}");
}

fn damage(hostile: &str, tasks: u64) -> Damage {
    let spent = |name: Option<&str>, records, cost_usd| Spent {
        name: name.map(|name| Untrusted::new(name.to_owned())),
        records,
        tokens: 7,
        cost_usd,
    };
    let answer = |rows| Answer { query: "SELECT 1".to_owned(), result: Ok(rows) };
    Damage {
        tools: answer(vec![spent(Some(hostile), 40, Some(1.5)), spent(None, 2, None)]),
        models: Answer { query: "SELECT 2".to_owned(), result: Err("too slow".to_owned()) },
        tasks: Answer {
            query: "SELECT 3".to_owned(),
            result: Ok(Tasks {
                agent: Some(Untrusted::new(hostile.to_owned())),
                own: Needed { steps: 60, tokens: 90_000, cost_usd: Some(1.5), ..Needed::default() },
                others: tasks,
                calm: Needed {
                    steps: 23,
                    tokens: 9_000,
                    cost_usd: Some(0.31),
                    ..Needed::default()
                },
            }),
        },
        calls_query: "SELECT 4".to_owned(),
    }
}

/// R4, R5: what a runaway cost, by tool and by model, and breakers that let the calm tasks pass.
#[test]
fn the_damage_of_a_runaway_and_the_breakers_that_bound_it() {
    let (incidents, id) = story("fetch");
    let incident = incidents.incident(id).unwrap();
    let write = |damage| markdown(incident, &Findings { damage, ..findings("fetch") });
    assert!(!write(None).contains("Damage"));
    let text = write(Some(damage("fetch", 41)));
    let section = text.split("## Damage").nth(1).unwrap().split("\n## ").next().unwrap();
    for part in [
        "By tool, 1.5000 US dollars in all (Q3)",
        "| `fetch` | 40 | 7 | 1.5000 |",
        "| (none) | 2 | 7 | not known |",
        "by model: the query Q4 failed: `too slow`",
        "`steps_max 46, cost_usd_max 0.62, tokens_max 18000`",
        "would have stopped this task, and none of the 41 other tasks",
    ] {
        assert!(section.contains(part), "{part}: {section}");
    }
    assert!(text.contains("- Q3: `SELECT 1`") && text.contains("- Q6: `SELECT 4`"), "{text}");
    let text = write(Some(damage("fetch", 0)));
    assert!(
        text.contains("No breakers are proposed: nothing in the audit log tells this task"),
        "{text}"
    );
    // Nothing that an agent names itself leaves its code span.
    let hostile = write(Some(damage("x` | <img> **y**", 3)));
    let section = hostile.split("## Damage").nth(1).unwrap().split("\n## ").next().unwrap();
    assert!(section.contains(r"`x\u{60} \u{7c} <img> **y**`"), "{section}");
}
