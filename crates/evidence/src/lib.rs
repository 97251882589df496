//! Evidence as values: what was preserved, from where, by whom, and what is missing.
//!
//! A [`Manifest`] lists every item of one capture with the SHA-256 of its content; it is serialised
//! once ([`SealedManifest`]), and its text is what is hashed, stored and sent from then on. What
//! could not be captured is listed as a [`Gap`] beside what could: a manifest never looks more
//! complete than it is. Secrets are taken out ([`redact`]) *before* anything is hashed, since the
//! hash of a short secret gives it away. [`custody`] chains who did what to the evidence later, and
//! [`bundle`] is how it leaves: one file that proves itself.
//!
//! Pure: no files, no clock. Whoever captures (`host`) or keeps (`server`) does the reading.

pub mod bundle;
mod chains;
pub mod custody;
mod digest;
mod manifest;
pub mod redact;
mod signature;
mod verify;

pub use chains::{
    Chains, HoldId, HoldPlaced, HoldReleased, HoldView, Kept, SignedEvent, VaultEntry, VaultEvent,
};
pub use digest::{Digest, DigestError, Hashed, Hasher};
pub use manifest::{
    CaptureId, Gap, ITEMS_MAX, Item, Manifest, ManifestError, ProcessRef, ProcessState, Redaction,
    SCHEMA, SealedManifest, Tool, named,
};
pub use signature::{KeyError, Signatory};
pub use verify::{Finding, verify};
