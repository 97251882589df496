//! Habits of sources and pages that no lint knows.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::{PURE, files_below, folder, short, top, workspace};

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|own| extensions.iter().any(|extension| own == *extension))
}

/// Files of these extensions with their text. Folders that programs write into are left out.
fn texts(extensions: &[&str]) -> Vec<(PathBuf, String)> {
    files_below(&top())
        .into_iter()
        .filter(|path| has_extension(path, extensions))
        .filter(|path| !path.components().any(|part| starts_with_data_name(part.as_os_str())))
        .filter_map(|path| fs::read_to_string(&path).ok().map(|text| (path, text)))
        .collect()
}

fn starts_with_data_name(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("estoppel-d"))
}

/// Fails with every place that holds one of the phrases. They are written in two parts, so that
/// this file does not hold them itself.
fn nowhere(extensions: &[&str], phrases: &[[&str; 2]]) {
    let texts = texts(extensions);
    assert!(texts.len() > 10, "{extensions:?}: {} files", texts.len());
    let mut found = Vec::new();
    for (path, text) in &texts {
        for (line, content) in text.lines().enumerate() {
            if let Some(phrase) =
                phrases.iter().map(|parts| parts.concat()).find(|phrase| content.contains(phrase))
            {
                found.push(format!("{}:{}: {phrase}", path.display(), line + 1));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn nothing_is_left_unfinished_and_no_test_is_left_out() {
    nowhere(
        &["rs"],
        &[
            ["todo", "!("],
            ["unimplemented", "!("],
            ["TO", "DO"],
            ["FIX", "ME"],
            ["XX", "X"],
            ["#[ig", "nore"],
            ["assert!(tr", "ue)"],
        ],
    );
}

/// `#[expect]` speaks up when its reason is gone; the other does not.
#[test]
fn no_lint_is_silenced_for_good() {
    nowhere(&["rs"], &[["#[al", "low("], ["#![al", "low("]]);
}

/// Invariant *inert*: templates escape, always.
#[test]
fn templates_escape_always() {
    let ends = [["|sa", "fe}}"], ["|sa", "fe }}"], ["| sa", "fe}}"], ["| sa", "fe }}"]];
    nowhere(&["rs", "html", "md"], &ends);
}

#[test]
fn no_path_of_a_machine_is_in_the_tree() {
    nowhere(
        &["rs", "md", "toml", "yaml", "yml", "json", "sh"],
        &[["/wo", "rk/"], ["/ro", "ot/"], ["/fa", "rm/"]],
    );
}

/// Time is an argument of pure code: only the model, which defines it, names the machine's clock.
#[test]
fn pure_crates_read_no_clock() {
    for name in PURE.iter().filter(|name| **name != "model") {
        for path in files_below(&top().join("crates").join(name).join("src")) {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            assert!(!code.contains("SystemClock"), "{}", path.display());
        }
    }
}

/// A source file that no `mod` names is compiled by nobody and tested by nobody.
#[test]
fn every_source_file_is_reached() {
    for package in &workspace().packages {
        let mut reached = BTreeSet::new();
        let mut open: Vec<PathBuf> =
            package.targets.iter().map(|target| target.src_path.clone().into()).collect();
        while let Some(file) = open.pop() {
            let modules = modules_of(&file);
            if reached.insert(file) {
                open.extend(modules);
            }
        }
        for file in files_below(&folder(package)) {
            let source = has_extension(&file, &["rs"]);
            assert!(!source || reached.contains(&file), "{} is reached by nothing", file.display());
        }
        assert!(!reached.is_empty(), "`{}` has no sources", short(&package.name));
    }
}

/// The files that `mod NAME;` lines of a file name.
fn modules_of(file: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(file)
        .unwrap_or_else(|error| panic!("{} is declared: {error}", file.display()));
    let stem = file.file_stem().unwrap();
    let parent = file.parent().unwrap();
    // Cargo's target roots and `mod.rs` own their folder, other files one of their own name.
    let root = ["lib", "main", "mod", "build"].iter().any(|name| stem == *name)
        || ["tests", "benches", "examples", "bin"].iter().any(|name| parent.ends_with(name));
    let below = if root { parent.to_owned() } else { parent.join(stem) };
    let mut found = Vec::new();
    let mut explicit: Option<PathBuf> = None;
    for line in text.lines().map(str::trim) {
        if let Some(path) =
            line.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]"))
        {
            explicit = Some(parent.join(path));
            continue;
        }
        let declared = line
            .split_once("mod ")
            .filter(|(before, _)| before.is_empty() || before.starts_with("pub"))
            .and_then(|(_, rest)| rest.strip_suffix(';'));
        let Some(name) = declared else { continue };
        found.push(explicit.take().unwrap_or_else(|| {
            let flat = below.join(format!("{name}.rs"));
            if flat.is_file() { flat } else { below.join(name).join("mod.rs") }
        }));
    }
    found
}
