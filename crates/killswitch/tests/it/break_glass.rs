//! Going on without a server: what a break-glass file lets happen, and what it does not.

use std::time::Duration;

use estoppel_killswitch::{
    Now,
    break_glass::{
        BreakGlass, FILE_BYTES_MAX, GRACE, GlassAudience, GlassError, GlassUse, SLICE,
        SignedBreakGlass, VALID_MAX,
    },
    enforcer::{Effect, Enforcer, Input, Keep, Kept, Profile},
    frame::{EnforcerKind, PROTOCOL, ToEnforcer, ToServer, Welcome},
    invariant::{EnforcerWatch, Tally},
    server::{self, ConnectionId, Identity, Switch, SwitchConfig},
};
use estoppel_model::{Actor, EnforcerId, SignedOrder, Subject, Timestamp};
use estoppel_testkit::keys::{Keys, SERVER, sign};
use uuid::Uuid;

use crate::support::{at, halt, id, order_id, signed};

const LEASE: u64 = 15_000;

/// An enforcer under its watch, on a disk that takes everything.
struct Node {
    enforcer: Enforcer,
    watch: EnforcerWatch,
    effects: Vec<Effect>,
}

impl Node {
    fn start(kept: Kept) -> Self {
        let profile = Profile {
            id: EnforcerId::new(),
            kind: EnforcerKind::Guard,
            name: "web-3".to_owned(),
            subjects: Vec::new(),
            key: "0".repeat(64),
            gaps: Vec::new(),
        };
        let (enforcer, wrong) = Enforcer::new(profile, Box::new(Keys), kept);
        assert_eq!(wrong, 0);
        let watch = EnforcerWatch::new(std::sync::Arc::new(Tally::default()));
        let mut this = Self { enforcer, watch, effects: Vec::new() };
        this.step(Input::Disconnected, at(0));
        this
    }

    /// With a lease until 15 s after the start.
    fn leased() -> Self {
        let mut this = Self::start(Kept::default());
        this.greet(at(0));
        this
    }

    fn greet(&mut self, now: Now) {
        self.effects.clear();
        self.step(Input::Connected, now);
        let welcome = Welcome {
            protocol: PROTOCOL,
            key: SERVER.to_owned(),
            tenant: Some(id("acme")),
            lease_ms: LEASE,
            ping_ms: 3_000,
            buckets: None,
            checkpoint: None,
            contact: None,
        };
        self.step(Input::Frame(ToEnforcer::Welcome(Box::new(welcome))), now);
        let effects = self.step(Input::Frame(ToEnforcer::InSync), now);
        self.effects.extend(effects.iter().cloned());
        let nonce = effects.iter().find_map(|effect| match effect {
            Effect::Send(ToServer::Ping { nonce }) => Some(*nonce),
            _ => None,
        });
        let nonce = nonce.unwrap();
        let pong = Input::Frame(ToEnforcer::Pong { nonce, staleness_ms: 0 });
        let answered = self.step(pong, now);
        self.effects.extend(answered);
    }

    fn step(&mut self, input: Input, now: Now) -> Vec<Effect> {
        let (effects, violations) = self.watch.step(&mut self.enforcer, input, now);
        assert_eq!(violations, []);
        effects
    }

    /// The file lies there; the disk takes what is to be kept. Why it was refused, if it was.
    fn finds(&mut self, file: &SignedBreakGlass, now: Now) -> Option<GlassError> {
        let effects = self.step(Input::BreakGlass(Some(Box::new(file.clone()))), now);
        self.effects = effects;
        let mut refused = None;
        for effect in self.effects.clone() {
            match effect {
                Effect::Keep(Keep::BreakGlass(usage)) => {
                    let kept = self.step(Input::BreakGlassKept(usage), now);
                    self.effects.extend(kept);
                }
                Effect::BreakGlassRefused(error) => refused = Some(error),
                _ => {}
            }
        }
        refused
    }

    /// Whether agents may act at all, as enforcement code judges.
    fn goes(&self, now: Now) -> bool {
        let ends = [self.enforcer.lease_until(), self.enforcer.goes_on_until()];
        ends.into_iter().flatten().any(|until| now.boot < until)
    }

    fn used(&self) -> Duration {
        let used = self.enforcer.break_glass_uses().map(|usage| usage.used_ms).sum();
        Duration::from_millis(used)
    }
}

fn glass(until_ms: u64, use_seconds_max: u64) -> BreakGlass {
    BreakGlass {
        id: Uuid::from_u128(7),
        issued_by: Actor::new("alice").unwrap(),
        issued_at: at(0).wall,
        until: at(until_ms).wall,
        use_seconds_max,
        reason: "Estoppel is down".to_owned(),
        audience: GlassAudience::Everyone,
    }
}

fn file_by(key: &str, glass: &BreakGlass) -> SignedBreakGlass {
    let text = serde_json::to_string(glass).unwrap();
    let signed = sign(key, SignedBreakGlass::signed_text(&text));
    SignedBreakGlass::of(text, signed)
}

fn file(glass: &BreakGlass) -> SignedBreakGlass {
    file_by(SERVER, glass)
}

fn told(effects: &[Effect], what: impl Fn(&Effect) -> bool) -> bool {
    effects.iter().any(what)
}

/// Invariant *lease*: without a file it refuses; with one it goes on; a halt holds all the same.
#[test]
fn agents_go_on_by_a_file_and_halts_hold() {
    let mut node = Node::leased();
    let orders = vec![signed(&halt(1, &["session:a"]))];
    node.step(Input::Frame(ToEnforcer::Orders { orders }), at(10));
    node.step(Input::Disconnected, at(20));
    let effects = node.step(Input::Tick, at(LEASE));
    assert!(told(&effects, |it| matches!(it, Effect::LeaseLost)) && !node.goes(at(LEASE)));
    assert_eq!(node.finds(&file(&glass(3_600_000, 600)), at(16_000)), None);
    assert!(node.goes(at(16_000)));
    assert!(told(&node.effects, |it| matches!(it, Effect::LeaseRegained)));
    let subject = Subject::session(id("a"));
    let stopped = node.enforcer.verdicts().check(&subject).map(|order| order.id);
    assert_eq!(stopped, Some(order_id(1)), "what is halted stays halted");
    // Nobody looks any more: what is paid for ends.
    let end = node.enforcer.goes_on_until().unwrap();
    assert_eq!(node.enforcer.next_tick(), end);
    let effects = node.step(Input::Tick, Now { boot: end, ..at(26_000) });
    assert!(told(&effects, |it| matches!(it, Effect::LeaseLost)), "{effects:?}");
}

/// A file that lies there before the lease is over: nothing in flight is cut.
#[test]
fn a_file_in_time_leaves_no_gap() {
    let mut node = Node::leased();
    node.step(Input::Disconnected, at(20));
    assert_eq!(node.enforcer.next_tick(), at(LEASE).boot, "when the lease is over");
    assert!(!node.enforcer.looks_for_break_glass(at(7_000).boot));
    assert!(node.enforcer.looks_for_break_glass(at(8_000).boot));
    let file = file(&glass(3_600_000, 600));
    for millis in (8_000..60_000).step_by(1_000) {
        assert_eq!(node.finds(&file, at(millis)), None);
        assert!(!told(&node.effects, |it| matches!(it, Effect::LeaseLost)), "at {millis} ms");
        assert!(node.goes(at(millis)), "at {millis} ms");
    }
    let used = node.used();
    let really = Duration::from_millis(59_000 - LEASE);
    assert!(used >= really && used <= really + SLICE, "{used:?}");
    // A lease that is renewed in time has used nothing; one that is over says so at once.
    let mut node = Node::leased();
    node.step(Input::Disconnected, at(20));
    node.finds(&file, at(8_000));
    assert_eq!(node.used(), Duration::ZERO);
    assert_eq!(node.enforcer.next_tick(), at(LEASE).boot);
    let effects = node.step(Input::Tick, at(LEASE));
    assert!(told(&effects, |it| matches!(it, Effect::GoesOn)), "{effects:?}");
}

/// Nothing goes that is not written before, but for a moment after a lease.
#[test]
fn a_disk_that_takes_nothing_lets_nobody_go_on() {
    let mut node = Node::leased();
    node.step(Input::Disconnected, at(20));
    let file = file(&glass(3_600_000, 600));
    for millis in (8_000..40_000).step_by(500) {
        node.step(Input::BreakGlass(Some(Box::new(file.clone()))), at(millis));
        let grace = u64::try_from(GRACE.as_millis()).unwrap();
        assert_eq!(node.goes(at(millis)), millis < LEASE + grace, "at {millis} ms");
    }
}

/// The wall clock is set back every second, and the process dies now and then: the boot clock and
/// the disk count.
#[test]
fn neither_a_clock_that_is_set_back_nor_restarts_prolong_it() {
    let file = file(&glass(3_600_000, 120));
    let mut kept = Node::leased().enforcer.kept();
    let (mut went, mut millis) = (0, 20_000_u64);
    for _ in 0..10 {
        let mut node = Node::start(kept);
        for _ in 0..25 {
            millis += 1_000;
            let now = Now { wall: at(1_000).wall, boot: at(millis).boot };
            let refused = node.finds(&file, now);
            went += u64::from(node.goes(now));
            if let Some(error) = refused {
                assert_eq!(error, GlassError::UsedUp(Duration::from_secs(120)));
                assert!(!node.goes(now));
            }
        }
        kept = node.enforcer.kept();
        // What a reboot does to the boot clock.
        millis %= 7_000;
    }
    assert!((60..=120).contains(&went), "{went} s of 120 s");
}

#[test]
fn it_ends_with_its_time_and_when_it_is_taken_away() {
    let mut node = Node::start(Node::leased().enforcer.kept());
    let file = file(&glass(30_000, 600));
    assert_eq!(node.finds(&file, at(24_000)), None);
    assert!(node.goes(at(29_999)) && !node.goes(at(30_001)), "not beyond its end");
    assert_eq!(node.finds(&file, at(30_000)), Some(GlassError::Expired(at(30_000).wall)));
    assert!(!node.goes(at(30_000)));
    let mut node = Node::start(Node::leased().enforcer.kept());
    assert_eq!(node.finds(&file, at(6_000)), None);
    let effects = node.step(Input::BreakGlass(None), at(7_000));
    assert!(told(&effects, |it| matches!(it, Effect::Publish)), "{effects:?}");
    assert!(told(&effects, |it| matches!(it, Effect::LeaseLost)), "{effects:?}");
    assert!(!node.goes(at(7_000)));
    // Put back, it is paid for anew.
    assert_eq!(node.finds(&file, at(8_000)), None);
    assert!(node.goes(at(8_000)));
}

#[test]
fn what_is_not_meant_or_not_signed_lets_nobody_go() {
    let good = glass(3_600_000, 600);
    let changed = |change: &dyn Fn(&mut BreakGlass)| {
        let mut glass = good.clone();
        change(&mut glass);
        glass
    };
    let hour = Duration::from_secs(3_600);
    let forged = SignedBreakGlass {
        break_glass: serde_json::to_string(&changed(&|it| it.use_seconds_max = 601)).unwrap(),
        ..file(&good)
    };
    // An order's signature is none of a file, and the other way round.
    let text = serde_json::to_string(&good).unwrap();
    let as_order = SignedBreakGlass::of(text.clone(), sign(SERVER, text));
    let newer = "{\"id\":1}".to_owned();
    let newer =
        SignedBreakGlass::of(newer.clone(), sign(SERVER, SignedBreakGlass::signed_text(&newer)));
    let huge = file(&changed(&|it| it.reason = "x".repeat(FILE_BYTES_MAX)));
    let late = changed(&|it| it.issued_at = at(0).wall + hour);
    let old = changed(&|it| {
        it.issued_at = Timestamp::from_micros(0);
        it.until = at(0).wall + VALID_MAX * 2;
    });
    let beyond = Now { wall: Timestamp::from_micros(0) + VALID_MAX, ..at(20_000) };
    let other = GlassAudience::Enforcer("web-4".to_owned());
    let tenant = GlassAudience::Tenant(id("other"));
    let rows = [
        (file_by("mallory", &good), at(20_000), GlassError::Foreign),
        (forged, at(20_000), GlassError::Forged),
        (as_order, at(20_000), GlassError::Forged),
        (huge, at(20_000), GlassError::Forged),
        (newer, at(20_000), GlassError::Unreadable),
        (
            file(&changed(&|it| it.audience = other.clone())),
            at(20_000),
            GlassError::NotForThis(other.clone()),
        ),
        (
            file(&changed(&|it| it.audience = tenant.clone())),
            at(20_000),
            GlassError::NotForThis(tenant.clone()),
        ),
        (file(&late), at(20_000), GlassError::ClockBehind(late.issued_at)),
        (file(&old), beyond, GlassError::Expired(beyond.wall)),
        (
            file(&changed(&|it| it.use_seconds_max = 0)),
            at(20_000),
            GlassError::UsedUp(Duration::ZERO),
        ),
    ];
    let kept = Node::leased().enforcer.kept();
    for (file, now, expected) in rows {
        let mut node = Node::start(kept.clone());
        assert_eq!(node.finds(&file, now), Some(expected.clone()));
        assert!(!node.goes(now), "{expected}");
    }
    for audience in [GlassAudience::Enforcer("web-3".to_owned()), GlassAudience::Tenant(id("acme"))]
    {
        let mut node = Node::start(kept.clone());
        let file = file(&changed(&|it| it.audience = audience.clone()));
        assert_eq!(node.finds(&file, at(20_000)), None, "{audience}");
        assert!(node.goes(at(20_000)));
    }
    let mut stranger = Node::start(Kept::default());
    assert_eq!(stranger.finds(&file(&good), at(20_000)), Some(GlassError::NoServerKey));
}

/// A start while a server answers looks for no file.
#[test]
fn servers_are_given_time_to_answer_first() {
    let node = Node::start(Kept::default());
    assert!(!node.enforcer.looks_for_break_glass(at(4_000).boot));
    assert!(node.enforcer.looks_for_break_glass(at(6_000).boot));
}

/// What was used is told to a server that gives leases, once on each connection.
#[test]
fn a_use_is_told_when_a_server_is_back() {
    let mut node = Node::leased();
    node.step(Input::Disconnected, at(20));
    let file = file(&glass(3_600_000, 600));
    for millis in (16_000..50_000).step_by(1_000) {
        node.finds(&file, at(millis));
    }
    let used = node.used();
    let mut node = Node::start(node.enforcer.kept());
    let words = |effects: &[Effect]| -> Vec<GlassUse> {
        let word = |effect: &Effect| match effect {
            Effect::Send(ToServer::BreakGlass(usage)) => Some((**usage).clone()),
            _ => None,
        };
        effects.iter().filter_map(word).collect()
    };
    node.greet(at(60_000));
    let first = words(&node.effects);
    let expected = u64::try_from(used.as_millis()).unwrap();
    assert_eq!(first.iter().map(|word| word.used_ms).collect::<Vec<_>>(), [expected]);
    assert_eq!(words(&node.step(Input::Tick, at(61_000))), []);
    node.step(Input::Disconnected, at(62_000));
    node.greet(at(63_000));
    assert_eq!(words(&node.effects), first, "again: the server may have lost it");
}

/// The server believes a use whose file its own key signed, and not without end.
#[test]
fn a_server_takes_words_of_its_own_files_only() {
    let (mut switch, _) = Switch::new(SwitchConfig::default(), Box::new(Keys), Vec::new());
    let connection = ConnectionId(1);
    let identity = Identity { actor: Actor::new("bob").unwrap(), tenant: None, scopes: None };
    let identity = Box::new(identity);
    switch.step(server::Input::Connected { connection, identity }, at(0));
    let mut enforcer = Node::start(Kept::default());
    for effect in enforcer.step(Input::Connected, at(0)) {
        if let Effect::Send(frame) = effect {
            switch.step(server::Input::Frame { connection, frame }, at(0));
        }
    }
    let usage = |file| GlassUse { file, first_at: at(0).wall, last_at: at(0).wall, used_ms: 1 };
    let mut say = |file| {
        let frame = ToServer::BreakGlass(Box::new(usage(file)));
        switch.step(server::Input::Frame { connection, frame }, at(1))
    };
    let good = glass(3_600_000, 600);
    let effects = say(file(&good));
    assert!(
        matches!(&effects[..], [server::Effect::BreakGlassUsed { glass, .. }] if **glass == good),
        "{effects:?}"
    );
    let effects = say(file_by("mallory", &good));
    assert!(matches!(&effects[..], [server::Effect::Rejected { .. }]), "{effects:?}");
    let closed = (0..1_000).any(|_| {
        let effects = say(file(&good));
        effects.iter().any(|effect| matches!(effect, server::Effect::Close { .. }))
    });
    assert!(closed);
}

/// A label keeps the two kinds of signature apart.
#[test]
fn a_file_is_no_order() {
    let signed = SignedOrder {
        order: SignedBreakGlass::signed_text(&serde_json::to_string(&glass(1, 1)).unwrap()),
        key: SERVER.to_owned(),
        signature: String::new(),
    };
    assert!(signed.parse().is_err());
}
