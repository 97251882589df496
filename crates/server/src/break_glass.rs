//! Break-glass files: made here, used without any server, told afterwards.
//!
//! A file is made when the ledger has it, as with everything that lets agents go. Where no ledger
//! answers, or no server, whoever owns the data folder makes one from the node's key
//! ([`create_locally`]); its first use then tells of it. A use becomes a record, an incident of the
//! file's own id and a page. What an enforcer says of its use is its word; that the file is genuine is
//! not.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use estoppel_api::{BreakGlassMade, BreakGlassRequest, BreakGlassSummary, BreakGlassUsed};
use estoppel_incident::record::{IncidentKind, Opened, Source};
use estoppel_killswitch::{
    Signer as _,
    break_glass::{BreakGlass, GlassAudience, GlassUse, SignedBreakGlass, USE_MAX, VALID_MAX},
    frame::EnforcerKind,
};
use estoppel_model::{
    Actor, IncidentId, NewRecord, REASON_BYTES_MAX, Record, RecordKind, Severity, Subject,
    Timestamp, Untrusted,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Server, StartError,
    http::problem::Failure,
    incidents::{Chosen, Page},
    key::NodeKey,
    order::Notary,
};

pub(crate) const MADE: RecordKind = RecordKind::new("break_glass.made");
pub(crate) const USED: RecordKind = RecordKind::new("break_glass.used");
const USE_DEFAULT: Duration = Duration::from_secs(4 * 60 * 60);
/// Longest name of an enforcer.
const NAME_BYTES_MAX: usize = 200;
/// Files that are remembered, the latest ones.
const FILES_MAX: usize = 200;
/// Enforcers of one token that are remembered of a file, and enforcers in all.
const USERS_MAX: (usize, usize) = (100, 10_000);
/// Less than this more is no news: enforcers pay in slices of ten seconds.
const NEWS_MIN_SECONDS: u64 = 1;
/// A use after such a pause is paged again.
const PAGE_AGAIN: Duration = Duration::from_secs(10 * 60);

/// Why a file cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GlassWishError {
    /// It ends before it begins.
    #[error("`until` is {0}, which is not in the future")]
    Over(Timestamp),
    /// What lies about for long is found by somebody.
    #[error("`until` is {0}: at most 90 days from now")]
    TooLong(Timestamp),
    /// No time, or too much.
    #[error("`use_seconds_max` is {0}: write 1 to 86400")]
    Use(u64),
    /// Why is asked afterwards.
    #[error("`reason` is empty or longer than {REASON_BYTES_MAX} bytes")]
    Reason,
    /// One audience.
    #[error("both `enforcer` and `tenant` are given: make a file for each")]
    TwoAudiences,
    /// No enforcer is named so.
    #[error("`enforcer` is empty or longer than {NAME_BYTES_MAX} bytes")]
    Name,
}

/// An enforcer's word that agents went on.
#[derive(Debug)]
pub(crate) struct Told {
    pub glass: BreakGlass,
    pub usage: GlassUse,
    pub actor: Actor,
    pub kind: EnforcerKind,
    pub name: Arc<str>,
}

/// Body of a `break_glass.used` record.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Used {
    /// What the file says: it may have been made without a ledger.
    file: BreakGlassSummary,
    #[serde(flatten)]
    used: BreakGlassUsed,
}

/// The files of the ledger.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BreakGlasses(BTreeMap<Uuid, BreakGlassSummary>);

impl BreakGlasses {
    /// Takes a record in.
    pub(crate) fn apply(&mut self, record: &Record) {
        let taken = if record.kind == MADE {
            record.parse::<BreakGlassSummary>().map(|made| {
                self.file(made);
            })
        } else if record.kind == USED {
            record.parse::<Used>().map(|Used { file, used }| {
                let file = self.file(file);
                match file.uses.iter_mut().find(|known| is_same(known, &used)) {
                    Some(known) => *known = used,
                    None => file.uses.push(used),
                }
            })
        } else {
            return;
        };
        if let Err(error) = taken {
            tracing::error!(record.seq, %error, "a break-glass cannot be read");
        }
    }

    /// The file of this id, which is added where it is not known.
    fn file(&mut self, file: BreakGlassSummary) -> &mut BreakGlassSummary {
        // Ids are in order of time.
        while self.0.len() >= FILES_MAX && !self.0.contains_key(&file.id) {
            self.0.pop_first();
        }
        self.0.entry(file.id).or_insert(file)
    }

    /// The files, the latest first.
    pub(crate) fn latest_first(&self) -> impl Iterator<Item = &BreakGlassSummary> {
        self.0.values().rev()
    }

    /// The end of the last file that is good.
    pub(crate) fn good_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.0.values().map(|file| file.until).filter(|until| *until > now).max()
    }

    /// Whether a use is to be recorded, and whether people are to be told of it.
    fn judge(&self, file: Uuid, used: &BreakGlassUsed) -> Judged {
        let Some(file) = self.0.get(&file) else { return Judged { recorded: true, paged: true } };
        let known = file.uses.iter().find(|known| is_same(known, used));
        let of_token = file.uses.iter().filter(|known| known.actor == used.actor).count();
        let recorded = match known {
            Some(known) => used.used_seconds >= known.used_seconds + NEWS_MIN_SECONDS,
            None => of_token < USERS_MAX.0 && file.uses.len() < USERS_MAX.1,
        };
        let last = file.uses.iter().map(|known| known.told_at).max();
        let paged = recorded && last.is_none_or(|last| used.told_at.since(last) > PAGE_AGAIN);
        Judged { recorded, paged }
    }
}

struct Judged {
    recorded: bool,
    paged: bool,
}

fn is_same(one: &BreakGlassUsed, other: &BreakGlassUsed) -> bool {
    (&one.actor, &one.kind, &one.enforcer) == (&other.actor, &other.kind, &other.enforcer)
}

/// What a file is to say.
fn wished(
    request: BreakGlassRequest,
    by: Actor,
    now: Timestamp,
) -> Result<BreakGlass, GlassWishError> {
    let BreakGlassRequest { until, use_seconds_max, reason, enforcer, tenant } = request;
    if until <= now {
        return Err(GlassWishError::Over(until));
    }
    if until > now + VALID_MAX {
        return Err(GlassWishError::TooLong(until));
    }
    let use_seconds_max = use_seconds_max.unwrap_or(USE_DEFAULT.as_secs());
    if !(1..=USE_MAX.as_secs()).contains(&use_seconds_max) {
        return Err(GlassWishError::Use(use_seconds_max));
    }
    if reason.trim().is_empty() || reason.len() > REASON_BYTES_MAX {
        return Err(GlassWishError::Reason);
    }
    let audience = match (enforcer, tenant) {
        (None, None) => GlassAudience::Everyone,
        (Some(name), None) if name.is_empty() || name.len() > NAME_BYTES_MAX => {
            return Err(GlassWishError::Name);
        }
        (Some(name), None) => GlassAudience::Enforcer(name),
        (None, Some(tenant)) => GlassAudience::Tenant(tenant),
        (Some(_), Some(_)) => return Err(GlassWishError::TwoAudiences),
    };
    let (id, issued_by, issued_at) = (Uuid::now_v7(), by, now);
    Ok(BreakGlass { id, issued_by, issued_at, until, use_seconds_max, reason, audience })
}

/// Signs a statement.
fn sealed(glass: &BreakGlass, key: &NodeKey) -> Result<BreakGlassMade, serde_json::Error> {
    let text = serde_json::to_string(glass)?;
    let signed = Notary(key.clone()).sign(SignedBreakGlass::signed_text(&text));
    let file = serde_json::to_string(&SignedBreakGlass::of(text, signed))?;
    Ok(BreakGlassMade { break_glass: summary(glass), file })
}

fn summary(glass: &BreakGlass) -> BreakGlassSummary {
    BreakGlassSummary {
        id: glass.id,
        issued_by: glass.issued_by.clone(),
        issued_at: glass.issued_at,
        until: glass.until,
        use_seconds_max: glass.use_seconds_max,
        reason: glass.reason.clone(),
        audience: glass.audience.to_string(),
        uses: Vec::new(),
    }
}

/// Makes a file, once the ledger has it.
pub(crate) async fn make(
    server: &Server,
    request: BreakGlassRequest,
    by: Actor,
) -> Result<BreakGlassMade, Failure> {
    let now = server.clock().now();
    let glass =
        wished(request, by, now).map_err(|error| Failure::Unprocessable(error.to_string()))?;
    let made = sealed(&glass, server.key()).map_err(Failure::internal)?;
    let key = Some(format!("{MADE}/{}", glass.id));
    let record = NewRecord::json(MADE, key, now, &made.break_glass).map_err(Failure::internal)?;
    server.journal().commit(record).await?;
    tracing::warn!(id = %glass.id, by = %glass.issued_by, "a break-glass file was made");
    Ok(made)
}

/// Makes a file from the key of a data folder, whether or not its server runs. The ledger learns of it
/// with its first use.
///
/// # Errors
/// When the wish cannot be granted, or the folder holds no key.
pub fn create_locally(
    data: &Path,
    request: BreakGlassRequest,
    by: Actor,
    now: Timestamp,
) -> Result<BreakGlassMade, StartError> {
    let glass = wished(request, by, now)?;
    let key = NodeKey::open_existing(data)?;
    sealed(&glass, &key).map_err(StartError::BreakGlassText)
}

/// An enforcer told that agents went on: records it, opens the file's incident, and pages.
pub(crate) async fn told(server: Server, told: Told) {
    let Told { glass, usage, actor, kind, name } = told;
    let now = server.clock().now();
    let used = BreakGlassUsed {
        actor,
        kind: format!("{kind:?}").to_lowercase(),
        enforcer: name.chars().take(NAME_BYTES_MAX).collect(),
        first_at: usage.first_at,
        last_at: usage.last_at,
        used_seconds: usage.used_ms.div_ceil(1_000),
        told_at: now,
    };
    let Judged { recorded, paged } =
        server.journal().read(|state| state.break_glasses.judge(glass.id, &used));
    if !recorded {
        return;
    }
    let who = format!("{} {}", used.kind, Untrusted::new(&used.enforcer).inline(100));
    tracing::warn!(file = %glass.id, who, seconds = used.used_seconds, "agents went on by a break-glass");
    let id = IncidentId::from_uuid(glass.id);
    let chosen = server.incidents().choose(None, &Subject::default(), Some(id));
    let opened = opened(id, &glass, &who, used.used_seconds);
    if paged {
        server.incidents().page(Page::ahead(&opened, false));
    }
    let key = format!("{USED}/{}/{}/{who}/{}", glass.id, used.actor, used.used_seconds);
    let record = Used { file: summary(&glass), used };
    let Chosen { new, .. } = chosen;
    let kept = match NewRecord::json(USED, Some(key), now, &record) {
        Ok(record) => server.journal().commit(record).await.map(drop),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = kept.and(server.incidents().open(chosen, opened).await) {
        // It is told again on the enforcer's next connection.
        tracing::error!(%error, new, "a use of break-glass could not be written");
    }
}

fn opened(id: IncidentId, glass: &BreakGlass, who: &str, seconds: u64) -> Opened {
    let BreakGlass { issued_by, reason, .. } = glass;
    Opened {
        id,
        title: Untrusted::new(format!(
            "Break-glass: {who} let its agents go on without Estoppel for {seconds} s: {reason}"
        )),
        kind: IncidentKind::Other,
        severity: Severity::High,
        source: Source::Responder,
        scope: None,
        subject: Subject::default(),
        by: issued_by.clone(),
        description: None,
    }
}

/// What `status` warns of: files that are good, and uses that people may not have seen.
pub(crate) fn warnings(server: &Server) -> Vec<String> {
    const SHOWN: Duration = Duration::from_secs(7 * 24 * 60 * 60);
    let now = server.clock().now();
    server.journal().read(|state| {
        let files = state.break_glasses.latest_first();
        files
            .filter_map(|file| {
                let good = file.until > now;
                let lately = file.uses.iter().any(|used| now.since(used.told_at) < SHOWN);
                let used: u64 = file.uses.iter().map(|used| used.used_seconds).sum();
                let by = &file.issued_by;
                match (file.uses.len(), good) {
                    (0, true) => Some(format!(
                        "a break-glass of {by} is good until {}: without a server, {} may go on",
                        file.until, file.audience
                    )),
                    (count, _) if lately => Some(format!(
                        "{count} enforcers went on without a server by the break-glass of {by}, for {used} s in all{}",
                        if good { format!("; it is good until {}", file.until) } else { String::new() }
                    )),
                    _ => None,
                }
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(1_770_000_000_000_000) + Duration::from_secs(seconds)
    }

    fn request() -> BreakGlassRequest {
        BreakGlassRequest {
            until: at(3_600),
            use_seconds_max: None,
            reason: "an outage".to_owned(),
            enforcer: None,
            tenant: None,
        }
    }

    fn by() -> Actor {
        Actor::new("alice").unwrap()
    }

    #[test]
    fn a_wish_that_is_too_wide_is_refused() {
        let check = |request: BreakGlassRequest, expect: &str| {
            let error = wished(request, by(), at(0)).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(BreakGlassRequest { until: at(0), ..request() }, "not in the future");
        check(BreakGlassRequest { until: at(91 * 86_400), ..request() }, "90 days");
        for seconds in [0, 86_401, u64::MAX] {
            check(BreakGlassRequest { use_seconds_max: Some(seconds), ..request() }, "1 to 86400");
        }
        check(BreakGlassRequest { reason: " ".to_owned(), ..request() }, "`reason`");
        check(BreakGlassRequest { reason: "x".repeat(100_000), ..request() }, "`reason`");
        check(BreakGlassRequest { enforcer: Some(String::new()), ..request() }, "`enforcer`");
        let (enforcer, tenant) = (Some("a".to_owned()), Some("t".parse().unwrap()));
        check(BreakGlassRequest { enforcer, tenant, ..request() }, "make a file for each");
        let good = wished(request(), by(), at(0)).unwrap();
        assert_eq!(good.use_seconds_max, 4 * 3_600);
        assert_eq!(good.audience, GlassAudience::Everyone);
    }

    /// What lies is bounded, and what is the same is no news.
    #[test]
    fn a_use_is_news_once_and_a_liar_is_bounded() {
        let mut glasses = BreakGlasses::default();
        let file = summary(&wished(request(), by(), at(0)).unwrap());
        let id = file.id;
        let used = |name: usize, used_seconds, told: u64| BreakGlassUsed {
            actor: Actor::new("bot").unwrap(),
            kind: "guard".to_owned(),
            enforcer: format!("guard {name}"),
            first_at: at(0),
            last_at: at(told),
            used_seconds,
            told_at: at(told),
        };
        let take = |glasses: &mut BreakGlasses, used: BreakGlassUsed| {
            let judged = glasses.judge(id, &used);
            if judged.recorded {
                let body = Used { file: file.clone(), used };
                let body = serde_json::to_string(&body).unwrap();
                let (at, kind, key) = (at(0), USED, None);
                glasses.apply(&Record { seq: 1, at, kind, key, body });
            }
            (judged.recorded, judged.paged)
        };
        assert_eq!(take(&mut glasses, used(0, 10, 1)), (true, true));
        assert_eq!(take(&mut glasses, used(0, 10, 2)), (false, false), "told again");
        assert_eq!(take(&mut glasses, used(0, 20, 3)), (true, false), "more, at once");
        assert_eq!(take(&mut glasses, used(1, 10, 3)), (true, false), "another, at once");
        assert_eq!(take(&mut glasses, used(0, 30, 3_000)), (true, true), "another outage");
        for name in 0..500 {
            take(&mut glasses, used(name, 10, 3_001));
        }
        assert_eq!(glasses.latest_first().next().unwrap().uses.len(), USERS_MAX.0);
    }
}
