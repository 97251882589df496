//! The arrows between crates are those of the table in ARCHITECTURE.md, no more and no fewer.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::DependencyKind;

use crate::{PURE, read, short, workspace};

type Arrows = BTreeMap<String, BTreeSet<String>>;

/// Crate → the crates of ours that it is built from.
fn real(kinds: &[DependencyKind]) -> Arrows {
    workspace()
        .packages
        .iter()
        .map(|package| {
            let uses = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.path.is_some() && kinds.contains(&dependency.kind))
                .map(|dependency| short(&dependency.name).to_owned())
                .collect();
            (short(&package.name).to_owned(), uses)
        })
        .collect()
}

/// The rows ``| `crate` | what it owns | `a` `b` |`` of ARCHITECTURE.md's section "Crates".
fn drawn() -> Arrows {
    let page = read("ARCHITECTURE.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Crates\n")).unwrap();
    section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            let names = |cell: &str| -> Vec<String> {
                cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
            };
            let [name] = names(cells[0]).try_into().unwrap();
            (name, names(cells[2]).into_iter().collect())
        })
        .collect()
}

/// Everything that a crate reaches by one or more arrows.
fn reached(arrows: &Arrows, from: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from.to_owned()];
    while let Some(name) = open.pop() {
        for next in arrows.get(&name).into_iter().flatten() {
            if reached.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    reached
}

#[test]
fn the_arrows_are_those_of_the_architecture_page() {
    let (real, drawn) = (real(&[DependencyKind::Normal, DependencyKind::Build]), drawn());
    let crates = |arrows: &Arrows| arrows.keys().cloned().collect::<Vec<_>>();
    assert_eq!(crates(&real), crates(&drawn), "crates of the tree, and of ARCHITECTURE.md");
    assert!(real["model"].is_empty(), "`model` uses {:?}", real["model"]);
    for (name, mut uses) in real {
        uses.remove("model");
        assert_eq!(uses, drawn[&name], "`{name}` uses, and ARCHITECTURE.md draws");
    }
}

#[test]
fn arrows_are_one_way() {
    let arrows = real(&[DependencyKind::Normal, DependencyKind::Build]);
    for name in arrows.keys() {
        assert!(!reached(&arrows, name).contains(name), "`{name}` reaches itself");
    }
}

/// Invariant *hot-path-is-local*: a bad rule or playbook cannot weaken what stops agents, and no
/// database stands behind it.
#[test]
fn enforcement_links_neither_detection_nor_playbooks_nor_storage() {
    let arrows = real(&[DependencyKind::Normal, DependencyKind::Build]);
    for enforcer in ["killswitch", "link", "guard", "python", "gateway", "host"] {
        let reached = reached(&arrows, enforcer);
        for forbidden in
            ["detect", "playbook", "incident", "connect", "eventlog", "ledger", "server", "cli"]
        {
            assert!(!reached.contains(forbidden), "`{enforcer}` reaches `{forbidden}`");
        }
    }
}

#[test]
fn only_the_binary_uses_the_server() {
    for (name, uses) in real(&[DependencyKind::Normal, DependencyKind::Build]) {
        assert!(name == "cli" || !uses.contains("server"), "`{name}` uses `server`");
        assert!(!uses.contains("cli"), "`{name}` uses the binary");
        assert!(name == "simulation" || !uses.contains("testkit"), "`{name}` ships `testkit`");
        assert!(!uses.contains("simulation"), "`{name}` ships the simulation");
    }
}

/// Pure crates stay pure: clippy bans what the standard library offers, this what others do.
#[test]
fn pure_crates_have_no_runtime_and_no_sockets() {
    let impure = ["tokio", "tokio-util", "reqwest", "hyper", "axum", "nix", "socket2", "rusqlite"];
    for package in &workspace().packages {
        let name = short(&package.name);
        if !PURE.contains(&name) {
            continue;
        }
        for dependency in &package.dependencies {
            let normal = dependency.kind == DependencyKind::Normal;
            // The model reads the clock through rustix (`SystemClock`); nobody else of these may.
            let found = impure.contains(&dependency.name.as_str())
                || (dependency.name == "rustix" && name != "model");
            assert!(!(normal && found), "`{name}` uses `{}`", dependency.name);
        }
    }
}
