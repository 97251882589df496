//! A switch, and enforcers whose frames a test writes by hand.

use estoppel_killswitch::{
    Audience, OrderSet,
    frame::{Confirmation, EnforcerKind, Hello, PROTOCOL, Settlement, Stage, ToEnforcer, ToServer},
    server::{
        ConnectionId, Effect, EnforcerProgress, HaltCount, HaltProgress, Identity, Input,
        Submitted, Switch, SwitchConfig,
    },
};
use estoppel_model::{Actor, EnforcerId, Order, OrderId, SignedOrder};
use estoppel_testkit::keys::{Keys, own};

use crate::support::{at, id, signed};

pub(crate) fn switch() -> Switch {
    Switch::new(SwitchConfig::default(), Box::new(Keys), []).0
}

pub(crate) fn identity(actor: &str, tenant: Option<&str>) -> Identity {
    Identity { actor: Actor::new(actor).unwrap(), tenant: tenant.map(id), scopes: None }
}

pub(crate) fn hello(enforcer: EnforcerId, key: u64, orders: &OrderSet) -> Hello {
    Hello {
        protocol: PROTOCOL,
        enforcer,
        kind: EnforcerKind::Guard,
        name: format!("guard-{key}"),
        subjects: Vec::new(),
        key: own(key),
        set: orders.digest(&Audience::Everyone).summary(),
        checkpoint: None,
        gaps: Vec::new(),
    }
}

pub(crate) fn frame(switch: &mut Switch, n: u64, frame: ToServer, millis: u64) -> Vec<Effect> {
    switch.step(Input::Frame { connection: ConnectionId(n), frame }, at(millis))
}

/// Connects an enforcer that has what the switch has, and pings once.
pub(crate) fn join(switch: &mut Switch, n: u64, identity: Identity, millis: u64) -> EnforcerId {
    let enforcer = EnforcerId::new();
    let audience = Audience::of(identity.tenant.as_ref());
    let connection = ConnectionId(n);
    switch.step(Input::Connected { connection, identity: Box::new(identity) }, at(millis));
    let mut greeting = hello(enforcer, n, &OrderSet::default());
    greeting.set = switch.orders().digest(&audience).summary();
    let effects = frame(switch, n, ToServer::Hello(Box::new(greeting)), millis);
    assert!(
        sent(&effects, n).iter().any(|frame| matches!(frame, ToEnforcer::InSync)),
        "{effects:?}"
    );
    frame(switch, n, ToServer::Ping { nonce: 0 }, millis);
    enforcer
}

pub(crate) fn sent(effects: &[Effect], n: u64) -> Vec<&ToEnforcer> {
    let to = ConnectionId(n);
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { connection, frame } if *connection == to => Some(frame),
            Effect::Broadcast { connections, frame } if connections.contains(&to) => Some(frame),
            _ => None,
        })
        .collect()
}

pub(crate) fn orders_sent(effects: &[Effect], n: u64) -> Vec<SignedOrder> {
    let frames = sent(effects, n).into_iter().filter_map(|frame| match frame {
        ToEnforcer::Orders { orders } => Some(orders.clone()),
        _ => None,
    });
    frames.flatten().collect()
}

pub(crate) fn is_refused(effects: &[Effect], n: u64) -> bool {
    effects.iter().any(|effect| {
        matches!(effect, Effect::Close { connection, .. } if *connection == ConnectionId(n))
    })
}

pub(crate) fn confirm(order: OrderId, stage: Stage, settlement: Settlement) -> ToServer {
    let at = at(5).wall;
    ToServer::Confirm(Box::new(Confirmation { order, stage, at, after_us: 3, settlement }))
}

pub(crate) fn refusing(order: OrderId) -> ToServer {
    confirm(order, Stage::Refusing, Settlement::default())
}

pub(crate) fn settled(order: OrderId) -> ToServer {
    confirm(order, Stage::Settled, Settlement { steps_cancelled: 1, ..Settlement::default() })
}

pub(crate) fn submit(switch: &mut Switch, order: &Order, millis: u64) -> (Submitted, Vec<Effect>) {
    switch.submit(signed(order), at(millis)).unwrap()
}

/// The numbers that are kept up to date are those that counting the words gives.
pub(crate) fn assert_counted(switch: &Switch, order: OrderId, progress: &HaltProgress) {
    let counted = |of: fn(&&EnforcerProgress) -> bool| {
        progress.enforcers.iter().filter(|word| word.expected).filter(of).count()
    };
    let refuses: fn(&&EnforcerProgress) -> bool =
        |word| word.refusing.is_some() && !word.settlement.observed_only;
    let settled: fn(&&EnforcerProgress) -> bool =
        |word| word.refusing.is_some() && !word.settlement.observed_only && word.settled.is_some();
    let expect = HaltCount {
        expected: counted(|_| true),
        refusing: counted(refuses),
        settled: counted(settled),
        by_lease: progress.by_lease,
        gone: counted(|word| word.gone),
        unknown: progress.unknown_until.is_some(),
    };
    assert_eq!(switch.count(order), Some(expect));
}
