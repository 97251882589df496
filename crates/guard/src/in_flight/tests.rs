use super::*;

const NOW: Boottime = Boottime::from_nanos(1_000_000_000);

fn order(scope: &str, kind: &str) -> Arc<Order> {
    let text = format!(
        r#"{{"id":"{}","scope":"{scope}","reason":"r","issued_by":"alice","issued_at":"2026-02-05T03:00:00Z",{kind}}}"#,
        OrderId::new()
    );
    Arc::new(serde_json::from_str(&text).unwrap())
}

fn halt(scope: &str) -> Arc<Order> {
    order(scope, r#""kind":"halt""#)
}

fn running(session: &str, spec: StepSpec, interruptible: bool) -> Arc<Running> {
    let subject = Subject { tool: spec.tool.clone(), ..Subject::session(session.parse().unwrap()) };
    Arc::new(Running::new(subject, spec, interruptible, Timestamp::default(), NOW))
}

fn fetch() -> StepSpec {
    StepSpec::tool("fetch").unwrap()
}

#[test]
fn an_order_that_reaches_nothing_is_settled_at_once() {
    let register = InFlight::default();
    let other = running("other", fetch(), true);
    register.enter(Arc::clone(&other));
    let order = halt("session:a");
    let settled = register.ordered(&order, Mode::Enforce, NOW);
    assert_eq!(settled, Some((order.id, Settlement::default())));
    assert!(other.stopped_by().is_none());
}

#[test]
fn an_order_is_settled_when_the_last_step_that_it_stopped_has_ended() {
    let register = InFlight::default();
    let steps: Vec<_> = ["a", "a", "b"]
        .map(|session| {
            let running = running(session, fetch(), true);
            (register.enter(Arc::clone(&running)), running)
        })
        .into();
    let (one, all) = (halt("session:a"), halt("global"));
    assert_eq!(register.ordered(&one, Mode::Enforce, NOW), None);
    assert_eq!(register.ordered(&all, Mode::Enforce, NOW), None);
    // A step that both stopped tells the first.
    assert_eq!(steps[0].1.stopped_by().unwrap().order().unwrap().id, one.id);
    assert_eq!(steps[2].1.stopped_by().unwrap().order().unwrap().id, all.id);
    assert!(register.leave(steps[0].0, Leaving::Dropped).is_empty());
    let settled = register.leave(steps[1].0, Leaving::ByItself);
    assert_eq!(settled.len(), 1);
    assert_eq!((settled[0].0, settled[0].1.steps_cancelled), (one.id, 1));
    assert_eq!(
        settled[0].1.not_interruptible,
        ["tool fetch: ended by itself, its result is withheld"]
    );
    let settled = register.leave(steps[2].0, Leaving::NeverBegan);
    assert_eq!((settled[0].0, settled[0].1.steps_cancelled), (all.id, 1));
    assert!(register.leave(steps[2].0, Leaving::Dropped).is_empty(), "twice is once");
}

/// Notes whether the other step is stopped when this one is told.
struct LooksAt {
    other: Arc<Running>,
    saw: Arc<Mutex<Vec<bool>>>,
}

impl OnStop for LooksAt {
    fn stopped(&self) {
        self.saw.lock().unwrap().push(self.other.stopped_by().is_some());
    }
}

#[test]
fn work_that_ends_with_a_step_around_it_finds_itself_stopped() {
    let register = InFlight::default();
    let saw = Arc::new(Mutex::default());
    for _ in 0..20 {
        let inner = running("a", fetch(), true);
        let looks = LooksAt { other: Arc::clone(&inner), saw: Arc::clone(&saw) };
        register.enter(inner);
        let outer = Arc::into_inner(running("a", fetch(), true)).unwrap();
        register.enter(Arc::new(outer.telling(Arc::new(looks))));
    }
    register.ordered(&halt("session:a"), Mode::Enforce, NOW);
    assert_eq!(*saw.lock().unwrap(), [true; 20]);
}

#[test]
fn what_cannot_be_interrupted_is_named_and_not_waited_for() {
    let register = InFlight::default();
    let blocking = running("a", fetch(), false);
    let id = register.enter(Arc::clone(&blocking));
    let (_, settlement) = register.ordered(&halt("session:a"), Mode::Enforce, NOW).unwrap();
    assert_eq!(settlement.not_interruptible, ["tool fetch: blocking work, its result is withheld"]);
    assert_eq!(settlement.steps_cancelled, 0);
    assert!(blocking.stopped_by().is_some());
    assert!(register.leave(id, Leaving::ByItself).is_empty());
}

#[test]
fn a_step_that_does_not_yield_is_named_after_a_while() {
    let register = InFlight::default();
    let id = register.enter(running("a", StepSpec::action("think"), true));
    let order = halt("session:a");
    assert_eq!(register.ordered(&order, Mode::Enforce, NOW), None);
    assert_eq!(register.next_overdue(), Some(NOW + YIELD_MAX));
    assert!(register.overdue(NOW).is_empty());
    let settled = register.overdue(NOW + YIELD_MAX);
    assert_eq!(settled[0].1.not_interruptible, ["a step without a tool: has not yielded"]);
    assert_eq!(register.next_overdue(), None);
    assert!(register.leave(id, Leaving::Dropped).is_empty(), "it is settled once");
}

#[test]
fn a_settlement_names_no_more_than_its_bound() {
    let register = InFlight::default();
    for _ in 0..2 * NAMED_MAX {
        register.enter(running("a", fetch(), false));
    }
    let (_, settlement) = register.ordered(&halt("global"), Mode::Enforce, NOW).unwrap();
    assert_eq!(settlement.not_interruptible.len(), NAMED_MAX + 1);
    assert_eq!(settlement.not_interruptible[NAMED_MAX], "further steps");
}

#[test]
fn observing_stops_nothing_and_says_what_it_would_have() {
    let register = InFlight::default();
    let running = running("a", fetch(), true);
    register.enter(Arc::clone(&running));
    let (_, settlement) = register.ordered(&halt("session:a"), Mode::Observe, NOW).unwrap();
    assert!(settlement.observed_only);
    assert_eq!(settlement.steps_cancelled, 1);
    assert!(running.stopped_by().is_none() && running.would_stop().is_some());
    register
        .stop_where(Mode::Observe, |_| Some(Cause::Want(crate::denied::DeniedReason::LeaseLost)));
    assert!(running.stopped_by().is_none());
}

#[test]
fn each_kind_of_order_stops_what_it_is_for() {
    let check = |kind: &str, expect: bool| {
        let register = InFlight::default();
        let spec = fetch().destination("API.example.com").unwrap();
        let running = running("a", spec, true);
        register.enter(Arc::clone(&running));
        register.ordered(&order("session:a", kind), Mode::Enforce, NOW);
        assert_eq!(running.stopped_by().is_some(), expect, "{kind}");
    };
    check(r#""kind":"halt""#, true);
    check(r#""kind":"teleport""#, true);
    check(r#""kind":"block","destination":"api.example.com""#, true);
    check(r#""kind":"block","destination":"api.example.com:443""#, true);
    check(r#""kind":"block","destination":"api.example.com:80""#, false);
    check(r#""kind":"block","destination":"example.com""#, false);
    check(r#""kind":"watch""#, false);
    check(r#""kind":"limit","limit":{"read_only":true}"#, false);
}

/// A limit to what changes nothing says of the steps that it leaves to go on that it does.
#[test]
fn a_limit_is_settled_with_the_word_of_what_goes_on() {
    let check = |limit: &str, spec: StepSpec, expect: Option<&str>| {
        let register = InFlight::default();
        register.enter(running("a", spec, true));
        let limit = order("session:a", &format!(r#""kind":"limit","limit":{limit}"#));
        let (_, settlement) = register.ordered(&limit, Mode::Enforce, NOW).unwrap();
        assert_eq!(settlement.containment.as_deref(), expect, "{limit:?}");
        let other = Order {
            scope: "session:b".parse::<estoppel_model::Scope>().unwrap().into(),
            ..(*limit).clone()
        };
        let (_, settlement) = register.ordered(&Arc::new(other), Mode::Enforce, NOW).unwrap();
        assert_eq!(settlement.containment, None);
    };
    let goes_on = "steps that may change something and are under way go on to their end";
    check(r#"{"read_only":true}"#, fetch(), Some(goes_on));
    check(r#"{"read_only":true}"#, fetch().read_only(), None);
    check(r#"{"read_only":true}"#, StepSpec::action("model_call"), None);
    check(r#"{"read_only":true}"#, StepSpec::action("deploy"), Some(goes_on));
    check(r#"{"requests_per_minute":1}"#, fetch(), None);
}

/// K6: a plugin's versions and a tool are reached as well as a session.
#[test]
fn a_step_is_reached_by_its_tool_and_its_plugin() {
    let check = |scope: &str, expect: bool| {
        let register = InFlight::default();
        let spec = fetch().plugin("scraper", Some("2.2.0")).unwrap();
        let subject =
            Subject { tool: spec.tool.clone(), plugin: spec.plugin.clone(), ..Subject::default() };
        let running = Arc::new(Running::new(subject, spec, true, Timestamp::default(), NOW));
        register.enter(Arc::clone(&running));
        register.ordered(&halt(scope), Mode::Enforce, NOW);
        assert_eq!(running.stopped_by().is_some(), expect, "{scope}");
    };
    check("tool:fetch", true);
    check("tool:post", false);
    check("plugin:scraper@>=2.1", true);
    check("plugin:scraper@<2", false);
}
