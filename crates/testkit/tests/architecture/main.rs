//! What must hold of the tree as a whole: the arrows between crates, the manifests,
//! and habits that no lint knows.
//!
//! Each test reads the tree itself (`cargo metadata`, manifests, sources), so it can neither fall
//! behind the code nor be satisfied by a list in this file alone.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod arrows;
mod manifests;
mod pages;
mod sources;

use std::{
    fs,
    path::{Path, PathBuf},
};

use cargo_metadata::{Metadata, MetadataCommand, Package};

/// Crates that compute only: no input or output, no clock, no runtime.
const PURE: &[&str] =
    &["detect", "evidence", "extract", "incident", "killswitch", "model", "playbook"];

/// The top folder of the checkout.
fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = top().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The workspace's own crates, without what they depend on.
fn workspace() -> Metadata {
    let manifest = top().join("Cargo.toml");
    MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap()
}

/// A crate's name as this project speaks of it: `killswitch`, and `cli` for the binary.
fn short(name: &str) -> &str {
    if name == "estoppel" { "cli" } else { name.strip_prefix("estoppel-").unwrap_or(name) }
}

/// The folder of a crate.
fn folder(package: &Package) -> PathBuf {
    package.manifest_path.parent().unwrap().as_std_path().to_owned()
}

/// All files below a folder, sorted, without what Git, Cargo and npm keep there.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let kept = ["target", ".git", "node_modules", "__pycache__"]
                .iter()
                .any(|name| entry.file_name() == *name);
            if entry.file_type().unwrap().is_dir() {
                if !kept {
                    folders.push(entry.path());
                }
            } else {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}
