use estoppel_model::{Actor, EntityId, NewRecord, Severity, Untrusted, journal::Mode};
use uuid::Uuid;

use super::*;
use crate::record::{IncidentKind, PageResult, Source};

/// A ledger of a few records.
#[derive(Default)]
struct Ledger {
    incidents: Incidents,
    seq: u64,
    micros: i64,
}

impl Ledger {
    fn append(&mut self, make: impl FnOnce(Timestamp) -> Result<NewRecord, serde_json::Error>) {
        self.micros += 1_000_000;
        let at = Timestamp::from_micros(1_770_260_400_000_000 + self.micros);
        let NewRecord { kind, key, at, body } = make(at).unwrap();
        self.incidents.apply(&Record { seq: self.seq, kind, key, at, body });
        self.seq += 1;
    }

    fn open(&mut self, scope: Option<&str>, subject: Subject) -> IncidentId {
        let id = IncidentId::new();
        let opened = Opened {
            id,
            title: Untrusted::new("t".to_owned()),
            kind: IncidentKind::PromptInjection,
            severity: Severity::High,
            source: Source::Detection,
            scope: scope.map(|scope| ScopeSet::from(scope.parse::<Scope>().unwrap())),
            subject,
            by: by(),
            description: None,
        };
        self.append(|at| opened.record(at));
        id
    }

    fn found(&self, scope: Option<&str>, subject: &Subject) -> Option<String> {
        let scope = scope.map(|scope| ScopeSet::from(scope.parse::<Scope>().unwrap()));
        self.incidents.find_open(scope.as_ref(), subject).map(|it| it.number.to_string())
    }

    fn state(&self, id: IncidentId) -> IncidentState {
        self.incidents.incident(id).unwrap().state()
    }
}

fn by() -> Actor {
    Actor::new("alice").unwrap()
}

fn session(id: &str) -> Subject {
    let tenant = Some(EntityId::new("acme").unwrap());
    Subject { tenant, ..Subject::session(EntityId::new(id).unwrap()) }
}

/// Row P7: the number is given by the order of the ledger.
#[test]
fn numbers_follow_the_ledger() {
    let mut ledger = Ledger::default();
    let first = ledger.open(None, session("a"));
    ledger.open(None, session("b"));
    let numbers: Vec<_> = ledger.incidents.iter().map(|it| it.number.to_string()).collect();
    assert_eq!(numbers, ["IR-2026-001", "IR-2026-002"]);
    let number = "IR-2026-001".parse().unwrap();
    assert_eq!(ledger.incidents.numbered(number).unwrap().id(), first);
    assert!(ledger.incidents.numbered("IR-2026-009".parse().unwrap()).is_none());
}

#[test]
fn the_same_again_belongs_to_the_same_incident() {
    let mut ledger = Ledger::default();
    let first = ledger.open(None, session("a"));
    assert_eq!(ledger.found(None, &session("a")).as_deref(), Some("IR-2026-001"));
    assert_eq!(
        ledger.found(Some("session:a"), &Subject::default()).as_deref(),
        Some("IR-2026-001")
    );
    // One tenant has many incidents.
    assert_eq!(ledger.found(None, &session("b")), None);
    assert_eq!(ledger.found(Some("tenant:acme"), &Subject::default()), None);
    assert_eq!(ledger.found(Some("global"), &Subject::default()), None);
    assert_eq!(ledger.found(None, &Subject::default()), None, "nothing is known of whom");
    // A halt of a user joins, and from then on that user's halts do.
    let scope = Some(ScopeSet::from("user:u".parse::<Scope>().unwrap()));
    let what = "order".to_owned();
    let joined = Joined {
        incident: first,
        source: Source::Halt,
        scope,
        subject: Subject::default(),
        what,
        by: by(),
    };
    ledger.append(|at| joined.record(at));
    assert_eq!(ledger.found(Some("user:u"), &Subject::default()).as_deref(), Some("IR-2026-001"));
    // What is closed is over.
    let reason = Untrusted::new("done".to_owned());
    ledger.append(|at| Closed { incident: first, reason, by: by() }.record(at));
    assert_eq!(ledger.state(first), IncidentState::Closed);
    assert_eq!(ledger.found(None, &session("a")), None);
    ledger.open(Some("session:a"), Subject::default());
    assert_eq!(ledger.found(None, &session("a")).as_deref(), Some("IR-2026-002"));
}

/// "Contained" is said when each halt was carried out everywhere, and taken back by a further one.
#[test]
fn contained_is_what_every_enforcer_carried_out() {
    let mut ledger = Ledger::default();
    let incident = ledger.open(None, session("a"));
    let halt = |ledger: &mut Ledger| {
        let order = OrderId::new();
        ledger.append(|at| {
            let what = "halt".to_owned();
            let scope = ScopeSet::from("session:a".parse::<Scope>().unwrap());
            let reason = Untrusted::new("r".to_owned());
            let (accepted_at, enforcers) = (at, 3);
            Halted { incident, order, what, scope, reason, by: by(), accepted_at, enforcers }
                .record(at)
        });
        order
    };
    let contain = |ledger: &mut Ledger, order, enforcers, settled, by_lease| {
        let contained = Contained { incident, order, enforcers, settled, by_lease, gone: 0 };
        ledger.append(|at| contained.record(at));
    };
    let gone = Contained {
        incident,
        order: OrderId::new(),
        enforcers: 3,
        settled: 1,
        by_lease: 1,
        gone: 1,
    };
    assert!(gone.is_complete(), "who is gone refuses by its lease");
    assert!(!Contained { enforcers: 4, ..gone.clone() }.is_complete());
    let text = serde_json::to_string(&gone).unwrap();
    assert_eq!(serde_json::from_str::<Contained>(&text).unwrap(), gone);
    let older = text.replace(",\"gone\":1", "");
    assert_eq!(serde_json::from_str::<Contained>(&older).unwrap().gone, 0, "{older}");
    assert_eq!(ledger.state(incident), IncidentState::Open);
    let first = halt(&mut ledger);
    assert_eq!(ledger.state(incident), IncidentState::Open);
    contain(&mut ledger, first, 3, 2, 0);
    assert_eq!(ledger.state(incident), IncidentState::Open);
    contain(&mut ledger, first, 3, 2, 1);
    assert_eq!(ledger.state(incident), IncidentState::Contained);
    // One that only observes has carried nothing out, whatever it settled.
    let mut observer = confirmed(
        incident,
        first,
        EnforcerId::new(),
        ConfirmedStage::Settled,
        1,
        Timestamp::default(),
    );
    let mut watched = ledger.incidents.clone();
    observer.observed_only = true;
    let NewRecord { kind, key, at, body } = observer.record(Timestamp::default()).unwrap();
    watched.apply(&Record { seq: 99, kind, key, at, body });
    assert_eq!(watched.incident(incident).unwrap().state(), IncidentState::Open);
    let second = halt(&mut ledger);
    assert_eq!(ledger.state(incident), IncidentState::Open);
    contain(&mut ledger, second, 0, 0, 0);
    assert_eq!(ledger.state(incident), IncidentState::Open, "nobody carried it out");
    let reason = Untrusted::new("r".to_owned());
    ledger.append(|at| Released { incident, orders: vec![second], reason, by: by() }.record(at));
    assert_eq!(ledger.state(incident), IncidentState::Contained);
}

#[test]
fn an_enforcers_furthest_word_counts() {
    let mut ledger = Ledger::default();
    let incident = ledger.open(None, session("a"));
    let (order, enforcer) = (OrderId::new(), EnforcerId::new());
    for (stage, after_us) in [
        (ConfirmedStage::Refusing, 300),
        (ConfirmedStage::Settled, 9_000),
        (ConfirmedStage::Refusing, 400),
    ] {
        ledger.append(|at| confirmed(incident, order, enforcer, stage, after_us, at).record(at));
    }
    let view = ledger.incidents.incident(incident).unwrap();
    let enforcement = &view.enforcement[&order][&enforcer];
    assert_eq!(enforcement.last.stage, ConfirmedStage::Settled);
    assert_eq!(
        (enforcement.refusing_after_us, enforcement.settled_after_us),
        (Some(300), Some(9_000))
    );
}

fn confirmed(
    incident: IncidentId,
    order: OrderId,
    enforcer: EnforcerId,
    stage: ConfirmedStage,
    after_us: u64,
    confirmed_at: Timestamp,
) -> Confirmed {
    Confirmed {
        incident,
        order,
        enforcer,
        kind: "gateway".to_owned(),
        name: Untrusted::new("gw".to_owned()),
        stage,
        confirmed_at,
        after_us,
        steps_cancelled: 0,
        connections_cut: 1,
        processes_frozen: 0,
        bytes_out: 7,
        last_byte_at: None,
        not_interruptible: Vec::new(),
        containment: None,
        observed_only: false,
    }
}

/// The journal of `playbook` is read from the same values that it writes.
#[test]
fn runs_are_read_from_their_journal() {
    let mut ledger = Ledger::default();
    let incident = ledger.open(None, session("a"));
    let run = RunId::new();
    let started = RunStarted {
        run,
        incident,
        playbook: "p".to_owned(),
        source: String::new(),
        inputs: BTreeMap::new(),
        mode: Mode::Live,
        asks: false,
        by: by(),
    };
    ledger.append(|at| started.record(at));
    let (step, action) = ("halt".to_owned(), "halt".to_owned());
    let intent = StepIntent { run, index: 0, step, action, attempt: 1 };
    ledger.append(|at| intent.record(at));
    let view = |ledger: &Ledger| ledger.incidents.incident(incident).unwrap().runs[0].clone();
    assert_eq!(view(&ledger).steps[&0].outcome, None);
    let result = StepResult {
        run,
        index: 0,
        step: intent.step,
        action: intent.action,
        attempt: 1,
        outcome: StepOutcome::Done,
        observed: "seen".to_owned(),
        detail: serde_json::Value::Null,
    };
    ledger.append(|at| result.record(at));
    ledger.append(|at| RunEnded { run, outcome: RunOutcome::Completed }.record(at));
    let run = view(&ledger);
    assert_eq!(run.steps[&0].outcome, Some(StepOutcome::Done));
    assert_eq!(run.ended, Some((4, RunOutcome::Completed)));
}

#[test]
fn records_of_others_and_broken_ones_change_nothing() {
    let mut ledger = Ledger::default();
    let incident = ledger.open(None, session("a"));
    let before = ledger.incidents.clone();
    let raw = |ledger: &mut Ledger, kind: &'static str, body: &str| {
        let kind = estoppel_model::RecordKind::new(kind);
        let body = body.to_owned();
        ledger.append(|at| Ok(NewRecord { kind, key: None, at, body }));
    };
    raw(&mut ledger, "order", "{}");
    raw(&mut ledger, "incident.teleported", "{}");
    let nobody = IncidentId::new();
    let text = Untrusted::new("x".to_owned());
    ledger.append(|at| Noted { incident: nobody, text, by: by() }.record(at));
    assert_eq!(ledger.incidents, before);
    raw(&mut ledger, "incident.noted", "{\"incident\":3}");
    raw(&mut ledger, "incident.opened", "not json");
    assert_eq!(ledger.incidents.unreadable(), 2);
    assert_eq!(ledger.incidents.iter().count(), 1);
    // A field of a newer version does not hide the record.
    let body = format!(r#"{{"incident":"{incident}","text":"x","by":"alice","mood":"calm"}}"#);
    raw(&mut ledger, "incident.noted", &body);
    assert_eq!(ledger.incidents.incident(incident).unwrap().notes.len(), 1);
}

/// A fold that is kept and read back goes on as if it had never stopped.
#[test]
fn the_fold_can_be_kept() {
    let mut ledger = Ledger::default();
    let incident = ledger.open(Some("session:a"), session("a"));
    let (order, enforcer) = (OrderId::new(), EnforcerId::new());
    ledger.append(|at| {
        confirmed(incident, order, enforcer, ConfirmedStage::Settled, 5, at).record(at)
    });
    let paged = Paged {
        incident,
        channel: "c".to_owned(),
        dedup_key: "k".to_owned(),
        attempts: 1,
        result: PageResult::Accepted { receipt: Untrusted::new("202".to_owned()) },
    };
    ledger.append(|at| paged.record(at));
    ledger.append(|at| {
        Detected {
            incident,
            detection: "d".to_owned(),
            rule: "egress.unlisted".to_owned(),
            severity: Severity::High,
            subject: session("a"),
            evidence: vec![Uuid::nil()],
            summary: "s".to_owned(),
            destination: Some("evil.example:443".parse().unwrap()),
            event_at: at,
            received_at: at,
        }
        .record(at)
    });
    let text = serde_json::to_string(&ledger.incidents).unwrap();
    assert_eq!(serde_json::from_str::<Incidents>(&text).unwrap(), ledger.incidents);
}
