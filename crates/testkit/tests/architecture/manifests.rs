//! Manifests, `clippy.toml` files, and the targets that Cargo builds from them.

use std::{collections::BTreeSet, path::Path};

use cargo_metadata::Package;

use crate::{PURE, files_below, folder, read, short, workspace};

fn manifest(package: &Package) -> toml::Table {
    read(&package.manifest_path).parse().unwrap()
}

#[test]
fn every_crate_takes_the_lints_and_values_of_the_workspace() {
    let unsafe_allowed = ["python", "testkit"];
    for package in &workspace().packages {
        let name = short(&package.name);
        let manifest = manifest(package);
        if unsafe_allowed.contains(&name) {
            assert!(manifest.contains_key("lints"), "`{name}` has no lints");
        } else {
            assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "lints of `{name}`");
        }
        let described = package.description.as_deref().is_some_and(|text| text.len() > 10);
        assert!(described, "`{name}` needs a description");
        assert_eq!(package.license.as_deref(), Some("Apache-2.0"), "licence of `{name}`");
        for key in ["version", "edition", "rust-version", "license", "repository", "publish"] {
            let inherited = manifest["package"][key].get("workspace").is_some();
            assert!(inherited, "`{name}`: `{key}` comes from the workspace");
        }
    }
}

#[test]
fn every_version_of_a_dependency_stands_in_one_place() {
    for package in &workspace().packages {
        let name = short(&package.name);
        let manifest = manifest(package);
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(section) = manifest.get(section).and_then(toml::Value::as_table) else {
                continue;
            };
            for (dependency, value) in section {
                let inherited = value.get("workspace").and_then(toml::Value::as_bool);
                assert_eq!(inherited, Some(true), "`{name}` → `{dependency}`: from the workspace");
            }
        }
    }
}

/// Clippy takes the nearest file and does not merge: a pure crate's own must hold the workspace's.
#[test]
fn pure_crates_ban_input_output_and_clocks_alike() {
    let root: toml::Table = read("clippy.toml").parse().unwrap();
    let first = read(format!("crates/{}/clippy.toml", PURE[0]));
    let pure: toml::Table = first.parse().unwrap();
    for (key, value) in &root {
        match value.as_array() {
            Some(entries) if key.starts_with("disallowed") => {
                for entry in entries {
                    assert!(pure[key].as_array().unwrap().contains(entry), "{key}: {entry}");
                }
            }
            _ => assert_eq!(&pure[key], value, "{key}"),
        }
    }
    let banned: BTreeSet<&str> = ["disallowed-methods", "disallowed-types"]
        .iter()
        .flat_map(|key| pure[*key].as_array().unwrap())
        .map(|entry| {
            assert!(entry["reason"].as_str().unwrap().len() > 15, "{entry} needs a reason");
            entry["path"].as_str().unwrap()
        })
        .collect();
    for needed in [
        "std::fs::read_to_string",
        "std::fs::write",
        "std::fs::File",
        "std::fs::OpenOptions",
        "std::net::TcpListener",
        "std::net::TcpStream",
        "std::net::UdpSocket",
        "std::os::unix::net::UnixStream",
        "std::process::Command",
        "std::thread::sleep",
        "std::thread::spawn",
        "std::time::Instant",
        "std::time::SystemTime",
        "std::env::var",
    ] {
        assert!(banned.contains(needed), "{needed} is not banned in pure crates");
    }
    for name in PURE {
        assert_eq!(first, read(format!("crates/{name}/clippy.toml")), "clippy.toml of `{name}`");
    }
}

/// A file in `tests/` that Cargo does not take is a test that never runs.
#[test]
fn every_test_and_bench_file_is_a_target() {
    for package in &workspace().packages {
        let taken: BTreeSet<&Path> =
            package.targets.iter().map(|target| target.src_path.as_std_path()).collect();
        for part in ["tests", "benches", "examples"] {
            let part = folder(package).join(part);
            if !part.is_dir() {
                continue;
            }
            for file in files_below(&part) {
                let rust = file.extension().is_some_and(|extension| extension == "rs");
                let top_level = file.parent() == Some(&part) || file.ends_with("main.rs");
                assert!(
                    !(rust && top_level) || taken.contains(file.as_path()),
                    "{} is no target of `{}`",
                    file.display(),
                    package.name
                );
            }
        }
    }
}
