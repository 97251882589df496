//! People are told of an incident, and what became of that is a record of it (row K2).

use std::time::Duration;

use estoppel_connect::{HaltLink, HaltTarget, Page as Message, PageAction, PageError};
use estoppel_incident::{
    IncidentView,
    record::{Opened, PageResult, Paged},
};
use estoppel_model::{IncidentId, IncidentNumber, Kind, OrderId, Scope, Severity, Untrusted};
use estoppel_playbook::journal::StepOutcome;

use super::{Incidents, bodies::concerns};
use crate::{
    metrics::PageOutcome,
    pages::{address, short_address},
};

/// How long a page waits for the ledger to give the incident its number.
const NUMBER_WAIT: Duration = Duration::from_millis(300);

/// What people are told.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    pub incident: IncidentId,
    pub number: Option<IncidentNumber>,
    pub severity: Severity,
    pub summary: Untrusted<String>,
    /// Whom it concerns.
    pub subject: String,
    /// The page of ours that it leads to: of a halt, or where one is given.
    pub place: String,
    /// The form that halts what it concerns.
    pub form: Form,
}

/// The form for a halt, filled in.
#[derive(Debug, Clone)]
pub(crate) struct Form {
    /// Its address here.
    pub place: String,
    /// What is filled in.
    target: HaltTarget,
}

impl Page {
    /// A page about an incident that the ledger has.
    pub(crate) fn of(view: &IncidentView) -> Self {
        let opened = &view.opened.body;
        let form = form_to_halt(opened);
        Self {
            incident: opened.id,
            number: Some(view.number),
            severity: opened.severity,
            summary: opened.title.clone(),
            subject: concerns(opened),
            place: latest_halt(view).map_or_else(|| form.place.clone(), place_of),
            form,
        }
    }

    /// A page about an incident that is on its way to the ledger.
    pub(crate) fn ahead(opened: &Opened, asks: bool) -> Self {
        let question = if asks { "Decide whether to halt: " } else { "" };
        let form = form_to_halt(opened);
        Self {
            incident: opened.id,
            number: None,
            severity: opened.severity,
            summary: Untrusted::new(format!("{question}{}", opened.title.raw())),
            subject: concerns(opened),
            place: form.place.clone(),
            form,
        }
    }

    /// The same, about a halt.
    pub(super) fn of_halt(self, order: OrderId) -> Self {
        Self { place: place_of(order), ..self }
    }
}

impl Incidents {
    /// Where pages go, without secrets.
    pub(crate) fn paging(&self) -> String {
        self.0.pager.as_ref().map_or_else(|| "none".to_owned(), |pager| pager.channel().to_string())
    }

    /// Pages in the background.
    pub(crate) fn page(&self, page: Page) {
        let this = self.clone();
        self.0.tasks.spawn(async move { this.deliver_soon(page).await });
    }

    /// Pages with the incident's number if the ledger gives one soon, and without if not.
    pub(super) async fn deliver_soon(&self, mut page: Page) {
        let mut changes = self.0.journal.changes();
        let number =
            || self.0.journal.read(|state| Some(state.incidents.incident(page.incident)?.number));
        let wait = async {
            loop {
                if let Some(number) = number() {
                    return Some(number);
                }
                if changes.changed().await.is_err() {
                    return None;
                }
            }
        };
        let found = tokio::time::timeout(NUMBER_WAIT, wait).await.unwrap_or_default();
        page.number = page.number.or(found);
        // A detection's own halt is known by now, if there is one.
        let halt = self
            .0
            .journal
            .read(|state| state.incidents.incident(page.incident).and_then(latest_halt));
        page.place = halt.map_or(page.place, place_of);
        // The failure is recorded with the incident and logged there.
        let _ = self.deliver(page).await;
    }

    /// Pages, and records what became of it. The deduplication key is the incident's, so that a
    /// repetition is known as one.
    pub(crate) async fn deliver(&self, page: Page) -> Result<String, (StepOutcome, String)> {
        let Some(pager) = &self.0.pager else {
            return Err((
                StepOutcome::Failed,
                "no channel is configured (`[paging]` in estoppel.toml)".to_owned(),
            ));
        };
        let dedup_key = format!("estoppel/{}", page.incident);
        let checkpoint = self.0.journal.ledger().ok().map(|ledger| ledger.checkpoint().to_string());
        let at_ours = |place: &str| format!("{}{place}", self.0.url).parse().ok();
        // Without a number the ledger may not know of it when somebody follows the link.
        let lasting = page.number.map(|number| short_address(&number.to_string()));
        let Form { place: form, target } = page.form;
        let message = Message {
            incident: page.incident,
            number: page.number,
            severity: page.severity,
            summary: page.summary,
            url: at_ours(&page.place),
            incident_url: at_ours(lasting.as_ref().unwrap_or(&page.place)),
            halt: at_ours(&form).map(|url| HaltLink { url, target }),
            dedup_key: dedup_key.clone(),
            checkpoint,
            at: self.0.clock.now(),
            subject: page.subject,
            action: PageAction::Trigger,
        };
        let (attempts, result, answer) = match pager.page(&message).await {
            Ok(receipt) => {
                let said = format!("{} after {} attempts", receipt.status, receipt.attempts);
                let taken = Untrusted::new(format!("{} {}", receipt.status, receipt.answer.raw()));
                (receipt.attempts, PageResult::Accepted { receipt: taken }, Ok(said))
            }
            Err(error) => {
                tracing::error!(incident = %page.incident, %error, "a page was not delivered");
                let reason = Untrusted::new(error.to_string());
                let result = match error {
                    PageError::Indeterminate { .. } => PageResult::Indeterminate { reason },
                    PageError::Refused { .. } | PageError::Failed { .. } => {
                        PageResult::Failed { reason }
                    }
                };
                (error.attempts(), result, Err((error.outcome(), error.to_string())))
            }
        };
        self.0.metrics.paged(match &result {
            PageResult::Accepted { .. } => PageOutcome::Sent,
            PageResult::Indeterminate { .. } => PageOutcome::Unknown,
            PageResult::Failed { .. } => PageOutcome::Failed,
        });
        let channel = pager.channel().to_string();
        let paged = Paged { incident: page.incident, channel, dedup_key, attempts, result };
        self.opened(page.incident).await;
        match paged.record(self.0.clock.now()) {
            Ok(record) => {
                if let Err(error) = self.keep(record).await {
                    tracing::error!(%error, "a page could not be written");
                }
            }
            Err(error) => tracing::error!(%error, "a page cannot be written"),
        }
        answer
    }
}

/// The latest halt of an incident that is in force still.
fn latest_halt(view: &IncidentView) -> Option<OrderId> {
    let is_released = |order| view.releases.iter().any(|entry| entry.body.orders.contains(&order));
    let halts = view.halts.iter().rev().map(|entry| &entry.body);
    halts.filter(|halt| halt.what == "halt").map(|halt| halt.order).find(|it| !is_released(*it))
}

fn place_of(order: OrderId) -> String {
    format!("/halts/{order}")
}

/// Where what an incident concerns can be halted: the form is filled in, and nothing more is done.
pub(crate) fn form_to_halt(opened: &Opened) -> Form {
    let scope = match &opened.scope {
        Some(scopes) => match scopes.iter().as_slice() {
            [one] => Some(one.clone()),
            // The form takes one; the halt's own page shows them all.
            _ => None,
        },
        None => opened.subject.session.clone().map(|id| Scope::entity(Kind::Session, id)),
    };
    let Some(scope) = scope else {
        return Form { place: "/halt".to_owned(), target: HaltTarget::Open };
    };
    Form {
        place: address("/halt", &[("scope", &scope.to_string())]),
        target: scope.kind().map_or(HaltTarget::Everything, HaltTarget::One),
    }
}
