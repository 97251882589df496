//! Custody: what is done with evidence is a signed event in the ledger before it is done.
//!
//! Each read of a capture goes through [`Server::record_custody`] first: no bytes without the
//! record. An event continues its capture's chain by a key that the ledger keeps once, so that two
//! that continue it at one place cannot both be kept.

use estoppel_evidence::{
    CaptureId, Kept, Manifest, SealedManifest, SignedEvent, VaultEntry,
    custody::{CustodyAction, CustodyEntry},
};
use estoppel_ledger::Appended;
use estoppel_model::{Actor, IncidentId, Untrusted};

use crate::{Server, http::problem::Failure};

/// How often an event is tried again behind somebody else's.
const ATTEMPTS_MAX: u32 = 8;

/// What is done with a capture.
#[derive(Debug, Clone)]
pub(crate) struct Deed {
    pub capture: CaptureId,
    pub case: IncidentId,
    pub item: Option<Untrusted<String>>,
    pub actor: Actor,
    pub action: CustodyAction,
    pub from: Option<String>,
    pub to: Option<String>,
    pub purpose: String,
    pub result: String,
}

impl Server {
    /// Records what is about to be done; resolves when that is durable.
    ///
    /// # Errors
    /// When the ledger takes nothing. Then it must not be done.
    pub(crate) async fn record_custody(
        &self,
        deed: Deed,
        manifest: estoppel_evidence::Digest,
    ) -> Result<(), Failure> {
        let _turn = self.vault().in_turn().await;
        for _ in 0..ATTEMPTS_MAX {
            let kept = self.journal().read(|state| {
                state.chains.capture(deed.capture).map(|kept| (kept.head, kept.manifest))
            });
            let begins = matches!(deed.action, CustodyAction::Acquire | CustodyAction::Transfer);
            if begins && kept.is_some() {
                // Somebody else brought it at the same time.
                return Ok(());
            }
            let now = self.clock().now();
            let entry = VaultEntry {
                case: deed.case,
                item: deed.item.clone(),
                entry: CustodyEntry {
                    capture: deed.capture,
                    time: now,
                    actor: deed.actor.clone(),
                    action: deed.action,
                    from: deed.from.clone(),
                    to: deed.to.clone(),
                    purpose: deed.purpose.clone(),
                    hash_before: kept.map(|(_, manifest)| manifest),
                    hash_after: Some(manifest),
                    result: deed.result.clone(),
                },
            };
            let head = kept.map(|(head, _)| head).unwrap_or_default();
            let signed = SignedEvent::sign(head, &entry, self.key().signing())
                .and_then(|signed| signed.record(now))
                .map_err(Failure::internal)?;
            match self.journal().commit(signed).await? {
                Appended::New { .. } | Appended::Existing { same_body: true, .. } => return Ok(()),
                // Another node was faster: the state has its event by now.
                Appended::Existing { .. } => {}
            }
        }
        Err(Failure::Unavailable("others write into this custody chain: try again".to_owned()))
    }

    /// A capture that the vault has, or had.
    pub(crate) fn kept(&self, capture: CaptureId) -> Result<Kept, Failure> {
        self.journal().ledger()?;
        let kept = self.journal().read(|state| state.chains.capture(capture).cloned());
        kept.ok_or_else(|| Failure::NotFound(format!("the vault has no capture {capture}")))
    }

    /// Reads a capture's manifest, as it was sealed.
    pub(crate) async fn manifest_of(
        &self,
        kept: &Kept,
    ) -> Result<(SealedManifest, Manifest), Failure> {
        let digest = kept.manifest;
        let content = self.vault().read(&digest).await.map_err(Failure::internal)?;
        let damaged = |why: String| Failure::Conflict(format!("manifest {digest}: {why}"));
        let content = content.ok_or_else(|| damaged("nothing is stored".to_owned()))?;
        let text = String::from_utf8(content).map_err(|_| damaged("it was changed".to_owned()))?;
        SealedManifest::open(text, Some(digest)).map_err(|error| damaged(error.to_string()))
    }
}
