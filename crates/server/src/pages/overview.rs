//! Which halts are in force, and who has confirmed them: `/halts`, and the parts that are live.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use askama::Template;
use axum::{extract::State, http::StatusCode, response::Response};
use estoppel_killswitch::{
    Audience, Now, is_drill,
    server::{HaltProgress, Listing, Switch},
};
use estoppel_model::{EntityId, Order, OrderBody, Scope, Timestamp};

use super::{
    Frame,
    follow::may_see,
    page, problem,
    view::{HaltView, Moment, Tone, counted, kind},
    visitor::Visitor,
};
use crate::{Server, http::limits, switchboard::Ended};

/// Most halts of which the confirmations are shown; older ones are counted.
const HALTS_MAX: usize = 30;
/// Most limits that are listed; further ones are counted.
const LIMITS_MAX: usize = 30;
/// Most enforcers that are named under a halt in the list.
const WAITING_MAX: usize = 3;
/// How long what is live may be shown to others without asking anew.
const FRESH: Duration = Duration::from_millis(300);
/// Tenants whose view is kept for that long.
const VIEWS_MAX: usize = 64;

/// All that is in force, as somebody of a tenant may see it.
#[derive(Debug, Clone)]
pub(super) struct Overview {
    pub halts: Vec<HaltView>,
    pub limits: Vec<LimitView>,
    /// How many limits are not listed.
    pub more_limits: usize,
    /// How many are in force.
    pub total: usize,
    /// How many of them are not listed.
    pub more: usize,
    pub headline: String,
    pub sub: String,
    pub tone: Tone,
    /// What the tab's title says.
    pub title: String,
    pub warnings: Vec<String>,
    pub now_millis: i64,
}

/// A limit for the page.
#[derive(Debug, Clone)]
pub(super) struct LimitView {
    pub id: String,
    pub scope: String,
    pub bounds: String,
    pub reason: String,
    pub by: String,
    pub given: Moment,
}

impl LimitView {
    fn new(order: &Order, now: Timestamp) -> Option<Self> {
        let OrderBody::Limit { limit } = &order.body else { return None };
        Some(Self {
            id: order.id.to_string(),
            scope: order.scope.to_string(),
            bounds: limit.to_string(),
            reason: order.reason.clone(),
            by: order.issued_by.to_string(),
            given: Moment::new(order.issued_at, now),
        })
    }
}

/// What was shown to people of each tenant, and when.
type Shown = BTreeMap<Option<EntityId>, (Timestamp, Arc<Overview>)>;

/// The views of the last moment: any number of people may watch, the thread that gives orders
/// answers a few times a second.
#[derive(Debug, Default)]
pub(crate) struct Views(Mutex<Shown>);

impl Views {
    fn fresh(&self, tenant: Option<&EntityId>, now: Timestamp) -> Option<Arc<Overview>> {
        let views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, view) = views.get(&tenant.cloned())?;
        (*at <= now && now.since(*at) < FRESH).then(|| Arc::clone(view))
    }

    fn keep(&self, tenant: Option<EntityId>, now: Timestamp, view: &Arc<Overview>) {
        let mut views = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if views.len() >= VIEWS_MAX {
            views.retain(|_, (at, _)| now.since(*at) < FRESH);
        }
        if views.len() < VIEWS_MAX {
            views.insert(tenant, (now, Arc::clone(view)));
        }
    }
}

/// What the switch knows at one moment.
struct Seen {
    halts: Vec<(Arc<Order>, Option<HaltProgress>)>,
    limits: Vec<Arc<Order>>,
    total: usize,
    global: bool,
    connected: BTreeMap<&'static str, usize>,
    gone: usize,
}

impl Overview {
    /// Asks the switch.
    pub(super) async fn read(server: &Server, visitor: &Visitor) -> Result<Self, Ended> {
        let tenant = visitor.identity.tenant.clone();
        let now = server.clock().now();
        // What is wrong with the server is the operator's to know.
        let warnings = if tenant.is_none() { server.warnings() } else { Vec::new() };
        let seen =
            server.switchboard().ask(move |switch, now| see(switch, now, tenant.as_ref())).await?;
        Ok(Self::of(seen, warnings, now))
    }

    fn of(seen: Seen, warnings: Vec<String>, now: Timestamp) -> Self {
        let Seen { halts, limits, total, global, connected, gone } = seen;
        let more_limits = limits.len().saturating_sub(LIMITS_MAX);
        // As of halts, those that were given last.
        let limits = limits.iter().rev().take(LIMITS_MAX);
        let limits = limits.filter_map(|order| LimitView::new(order, now)).collect();
        let halts: Vec<HaltView> = halts
            .iter()
            .map(|(order, progress)| match progress {
                Some(progress) => HaltView::new(progress, now),
                None => HaltView::unconfirmed(order, true, now),
            })
            .collect();
        let headline = match total {
            _ if global => "Everything is halted".to_owned(),
            0 => "Nothing is halted".to_owned(),
            total => format!("{} in force", counted(total, "halt")),
        };
        let all: usize = connected.values().sum();
        let kinds: Vec<String> =
            connected.iter().map(|(kind, count)| counted(*count, kind)).collect();
        let mut sub = match all {
            0 => "No enforcer is connected: a halt would stop nobody yet.".to_owned(),
            1 => format!("One enforcer is connected: {}.", kinds.join(", ")),
            all => format!("{all} enforcers are connected: {}.", kinds.join(", ")),
        };
        if gone > 0 {
            sub.push_str(&format!(
                " {} lost the connection, and {} when the lease is over.",
                counted(gone, "enforcer"),
                if gone == 1 { "stops" } else { "stop" }
            ));
        }
        let open = halts.iter().filter(|halt| halt.tone == Tone::Going).count();
        if open > 0 {
            sub = format!("{open} still stopping. {sub}");
        }
        let looks = halts.iter().any(|halt| halt.tone == Tone::Look);
        let tone = match () {
            () if all == 0 || looks => Tone::Look,
            () if open > 0 => Tone::Going,
            () if total == 0 => Tone::Past,
            () => Tone::Done,
        };
        let title =
            if total == 0 { "Nothing halted".to_owned() } else { format!("{total} halted") };
        let more = total - halts.len();
        let now_millis = now.as_micros() / 1_000;
        Self {
            halts,
            limits,
            more_limits,
            total,
            more,
            headline,
            sub,
            tone,
            title,
            warnings,
            now_millis,
        }
    }
}

fn see(switch: &Switch, now: Now, tenant: Option<&EntityId>) -> Seen {
    let visible = |order: &&Arc<Order>| {
        let halt = matches!(order.body, OrderBody::Halt { .. }) && !is_drill(order);
        halt && may_see(tenant, order)
    };
    let mut halts: Vec<&Arc<Order>> = switch.orders().in_force().filter(visible).collect();
    let total = halts.len();
    let global = halts.iter().any(|order| order.scope.iter().any(|scope| *scope == Scope::Global));
    // What was given last is what people wait for.
    halts.sort_by_key(|order| std::cmp::Reverse((order.issued_at, order.id)));
    halts.truncate(HALTS_MAX);
    let audience = Audience::of(tenant);
    let mut connected = BTreeMap::new();
    let mut gone = 0;
    // Whose enforcers others have is not a tenant's to know.
    for state in switch.enforcers().filter(|state| tenant.is_none() || state.audience == audience) {
        if state.connection.is_some() {
            *connected.entry(kind(state.kind)).or_insert(0) += 1;
        } else {
            gone += 1;
        }
    }
    let listing = Listing::OpenFirst(WAITING_MAX);
    let halts = halts
        .into_iter()
        .map(|order| (Arc::clone(order), switch.progress_listing(order.id, now, listing)))
        .collect();
    let limits = limits::in_force(switch, tenant);
    Seen { halts, limits, total, global, connected, gone }
}

#[derive(Template)]
#[template(path = "halts.html")]
struct Watch {
    frame: Frame,
    overview: Overview,
}

#[derive(Template)]
#[template(path = "overview_part.html")]
struct Live<'a> {
    overview: &'a Overview,
}

/// `GET /halts`: the list alone, which reloads itself also without a script, since nobody types.
pub(super) async fn watch(State(server): State<Server>, visitor: Visitor) -> Response {
    match Overview::read(&server, &visitor).await {
        Ok(overview) => {
            let frame = Frame::new(&server, Some(&visitor), "halts", "Halts in force");
            page(StatusCode::OK, &Watch { frame, overview })
        }
        Err(ended) => problem::failure(&server, &visitor, ended.into(), Vec::new()),
    }
}

/// `GET /halt/live`: what the script puts in place of what it shows.
pub(super) async fn live(State(server): State<Server>, visitor: Visitor) -> Response {
    let now = server.clock().now();
    let tenant = visitor.identity.tenant.as_ref();
    let overview = match server.views().fresh(tenant, now) {
        Some(overview) => overview,
        None => match Overview::read(&server, &visitor).await {
            Ok(overview) => {
                let overview = Arc::new(overview);
                server.views().keep(tenant.cloned(), now, &overview);
                overview
            }
            Err(ended) => return problem::failure(&server, &visitor, ended.into(), Vec::new()),
        },
    };
    page(StatusCode::OK, &Live { overview: &overview })
}

#[cfg(test)]
mod tests {
    use estoppel_killswitch::{DRILL_ACTOR, Signer as _, canary_scope, server::SwitchConfig};
    use estoppel_model::{Actor, Boottime, OrderId, ScopeSet};

    use super::*;
    use crate::{NodeKey, order::Notary};

    /// K5, A1: the page does not show a drill's canary as something that is halted.
    #[test]
    fn a_drill_halts_nobody_on_the_page() {
        let dir = tempfile::tempdir().unwrap();
        let notary = Notary(NodeKey::open(dir.path()).unwrap());
        let (mut switch, _) = Switch::new(SwitchConfig::default(), Box::new(notary.clone()), []);
        let now =
            Now { wall: Timestamp::from_micros(1_770_000_000_000_000), boot: Boottime::default() };
        let mut give = |id: OrderId, scope: ScopeSet, by: &str| {
            let order = Order {
                id,
                scope,
                reason: "r".to_owned(),
                issued_by: Actor::new(by).unwrap(),
                issued_at: now.wall,
                incident: None,
                tenant: None,
                body: OrderBody::Halt { until: None },
            };
            switch.submit(notary.sign(serde_json::to_string(&order).unwrap()), now).unwrap();
        };
        let (canary, halt) = (OrderId::new(), OrderId::new());
        give(canary, canary_scope(canary).unwrap(), DRILL_ACTOR);
        give(halt, "session:a".parse::<Scope>().unwrap().into(), "alice");
        let seen = see(&switch, now, None);
        let listed: Vec<OrderId> = seen.halts.iter().map(|(order, _)| order.id).collect();
        assert_eq!((seen.total, listed), (1, vec![halt]));
    }
}
