//! Orders and subjects for tests, and the naive model.

use std::collections::HashSet;

use estoppel_killswitch::{Audience, Now, OrderSet, reaches};
use estoppel_model::{
    Actor, Boottime, Destination, EntityId, Limit, Order, OrderBody, OrderId, PluginRef, Scope,
    ScopeSet, SignedOrder, Subject, Timestamp,
};
use estoppel_testkit::keys::{SERVER, sign};
use proptest::prelude::*;
use uuid::Uuid;

/// The moment `millis` after the start, on clocks that do not show the same.
pub(crate) fn at(millis: u64) -> Now {
    Now {
        wall: Timestamp::from_micros(i64::try_from(millis).unwrap() * 1_000),
        boot: Boottime::from_nanos(millis * 1_000_000 + 777),
    }
}

pub(crate) fn id(text: &str) -> EntityId {
    EntityId::new(text).unwrap()
}

pub(crate) fn order_id(n: u64) -> OrderId {
    OrderId::from_uuid(Uuid::from_u64_pair(7, n))
}

pub(crate) fn scopes(texts: &[&str]) -> ScopeSet {
    ScopeSet::new(texts.iter().map(|text| text.parse::<Scope>().unwrap())).unwrap()
}

pub(crate) fn order(n: u64, scope: ScopeSet, body: OrderBody) -> Order {
    Order {
        id: order_id(n),
        scope,
        reason: "test".to_owned(),
        issued_by: Actor::new("alice").unwrap(),
        issued_at: Timestamp::from_micros(i64::try_from(n % 5).unwrap()),
        incident: None,
        tenant: None,
        body,
    }
}

pub(crate) fn halt(n: u64, texts: &[&str]) -> Order {
    order(n, scopes(texts), OrderBody::Halt { until: None })
}

pub(crate) fn release(n: u64, ended: &[u64]) -> Order {
    let orders = ended.iter().map(|n| order_id(*n)).collect();
    order(n, scopes(&["global"]), OrderBody::Release { orders })
}

/// The order's text; of one of an unknown kind as a newer version would write it.
pub(crate) fn text(order: &Order) -> String {
    let text = serde_json::to_string(order).unwrap();
    text.replace("\"kind\":\"unsupported\"", "\"kind\":\"teleport\",\"to\":{\"x\":1}")
}

pub(crate) fn signed(order: &Order) -> SignedOrder {
    sign(SERVER, text(order))
}

pub(crate) fn set_of(orders: &[Order]) -> OrderSet {
    let mut set = OrderSet::default();
    for order in orders {
        set.insert(signed(order)).unwrap();
    }
    set
}

/// The naive model: a list of orders, folded anew for each question.
#[derive(Debug, Clone, Default)]
pub(crate) struct Naive(pub(crate) Vec<Order>);

impl Naive {
    pub(crate) fn in_force(&self) -> impl Iterator<Item = &Order> {
        let ended: HashSet<OrderId> = self
            .0
            .iter()
            .filter_map(|order| match &order.body {
                OrderBody::Release { orders } => Some(orders.clone()),
                _ => None,
            })
            .flatten()
            .collect();
        self.0.iter().filter(move |order| {
            !matches!(order.body, OrderBody::Release { .. }) && !ended.contains(&order.id)
        })
    }

    fn earliest(&self, is: impl Fn(&Order) -> bool) -> Option<OrderId> {
        let mut found: Vec<&Order> = self.in_force().filter(|order| is(order)).collect();
        found.sort_by_key(|order| (order.issued_at, order.id));
        found.first().map(|order| order.id)
    }

    pub(crate) fn check(&self, subject: &Subject) -> Option<OrderId> {
        self.earliest(|order| {
            matches!(order.body, OrderBody::Halt { .. } | OrderBody::Unsupported)
                && reaches(order, subject)
        })
    }

    pub(crate) fn watched(&self, subject: &Subject) -> Option<OrderId> {
        self.earliest(|order| {
            matches!(order.body, OrderBody::Watch { .. }) && reaches(order, subject)
        })
    }

    pub(crate) fn blocked(&self, subject: &Subject, host: &str, port: u16) -> Option<OrderId> {
        self.earliest(|order| {
            matches!(&order.body, OrderBody::Block { destination } if destination.covers(host, port))
                && reaches(order, subject)
        })
    }

    pub(crate) fn limit(&self, subject: &Subject) -> Limit {
        self.in_force().filter(|order| reaches(order, subject)).fold(
            Limit::default(),
            |strictest, order| match &order.body {
                OrderBody::Limit { limit } => strictest.strictest(limit),
                _ => strictest,
            },
        )
    }

    pub(crate) fn halts_at(&self, scopes: &ScopeSet) -> Vec<OrderId> {
        let mut found: Vec<&Order> = self
            .in_force()
            .filter(|order| matches!(order.body, OrderBody::Halt { .. } | OrderBody::Unsupported))
            .filter(|order| scopes.iter().all(|scope| order.scope.iter().any(|own| own == scope)))
            .collect();
        found.sort_by_key(|order| (order.issued_at, order.id));
        found.iter().map(|order| order.id).collect()
    }

    pub(crate) fn seen_by(&self, audience: &Audience) -> Self {
        Self(self.0.iter().filter(|order| audience.admits(order)).cloned().collect())
    }
}

pub(crate) const HOSTS: [&str; 3] = ["a.example", "b.example", "10.0.0.1"];

pub(crate) fn any_scope() -> impl Strategy<Value = Scope> {
    let names = (0_u8..3).prop_map(|n| n.to_string());
    let kinds = prop::sample::select(vec![
        "agent",
        "session",
        "user",
        "task",
        "tenant",
        "plugin",
        "tool",
        "component",
    ]);
    prop_oneof![
        1 => Just("global".to_owned()),
        8 => (kinds, names).prop_map(|(kind, name)| format!("{kind}:{name}")),
        3 => (0_u8..3, 1_u8..4, prop::sample::select(vec![">=", "<", "="]))
            .prop_map(|(name, version, sign)| format!("plugin:{name}@{sign}{version}")),
    ]
    .prop_map(|text| text.parse().unwrap())
}

pub(crate) fn any_scopes() -> impl Strategy<Value = ScopeSet> {
    prop::collection::vec(any_scope(), 1..4).prop_map(|scopes| ScopeSet::new(scopes).unwrap())
}

pub(crate) fn any_tenant() -> impl Strategy<Value = Option<EntityId>> {
    prop_oneof![3 => Just(None), 1 => (0_u8..3).prop_map(|n| Some(id(&n.to_string())))]
}

fn any_limit() -> impl Strategy<Value = Limit> {
    (prop::option::of(0_u32..9), prop::option::of(0_u32..9), any::<bool>(), any::<bool>()).prop_map(
        |(requests_per_minute, concurrency_max, read_only, tenant_validation_strict)| Limit {
            requests_per_minute,
            concurrency_max,
            cost_usd_max: requests_per_minute.map(f64::from),
            steps_max: concurrency_max.map(u64::from),
            identical_calls_max: requests_per_minute,
            read_only,
            tenant_validation_strict,
            ..Limit::default()
        },
    )
}

/// What an order can say, where orders are numbered below `count`.
pub(crate) fn any_body(count: u64) -> impl Strategy<Value = OrderBody> {
    let destination = (0..HOSTS.len(), prop::option::of(1_u16..3))
        .prop_map(|(host, port)| Destination { host: HOSTS[host].to_owned(), port });
    prop_oneof![
        4 => Just(OrderBody::Halt { until: None }),
        3 => prop::collection::vec(0..count, 1..4).prop_map(|named| OrderBody::Release {
            orders: named.into_iter().map(order_id).collect(),
        }),
        1 => Just(OrderBody::Watch { until: None }),
        1 => any_limit().prop_map(|limit| OrderBody::Limit { limit }),
        1 => destination.prop_map(|destination| OrderBody::Block { destination }),
        1 => Just(OrderBody::Unsupported),
    ]
}

/// Some orders with numbers from 0.
pub(crate) fn any_orders(max: usize) -> impl Strategy<Value = Vec<Order>> {
    let count = u64::try_from(max).unwrap();
    prop::collection::vec((any_scopes(), any_tenant(), any_body(count)), 0..max).prop_map(
        |orders| {
            let numbered = (0..).zip(orders);
            numbered
                .map(|(n, (scope, tenant, body))| Order { tenant, ..order(n, scope, body) })
                .collect()
        },
    )
}

pub(crate) fn any_subject() -> impl Strategy<Value = Subject> {
    let name = || prop::option::of((0_u8..3).prop_map(|n| id(&n.to_string())));
    let version = prop::option::of(prop::sample::select(vec!["1", "2.5", "3", "odd"]));
    ((name(), name(), name(), name(), name()), (name(), version, name(), name())).prop_map(
        |((agent, session, user, task, tenant), (plugin, version, tool, component))| Subject {
            agent,
            session,
            user,
            task,
            tenant,
            plugin: plugin.map(|name| PluginRef { name, version: version.map(id) }),
            tool,
            component,
        },
    )
}
