//! Pages that name things of the code name what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::{files_below, folder, read, short, top, workspace};

/// The names of a struct's public fields, from its source.
fn fields(source: &str, name: &str) -> BTreeSet<String> {
    let body = source.split(&format!("struct {name} {{")).nth(1).unwrap();
    body.split("\n}")
        .next()
        .unwrap()
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':'))
        .map(|(field, _)| field.to_owned())
        .collect()
}

/// The first column of the table in the section whose heading begins so.
fn rows(page: &str, heading: &str) -> BTreeSet<String> {
    let section = page.split(&format!("\n## `{heading}`")).nth(1).unwrap();
    section
        .split("\n## ")
        .next()
        .unwrap()
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect()
}

#[test]
fn the_page_on_events_has_every_column() {
    let source = read("crates/model/src/event.rs");
    let page = read("docs/events.md");
    for (table, name) in [("audit_log", "AuditEvent"), ("network_log", "NetworkEvent")] {
        let mut columns = fields(&source, name);
        assert!(columns.remove("id"), "{name}");
        columns.extend(["received_at".to_owned(), "event_id".to_owned()]);
        assert_eq!(rows(&page, table), columns, "`{table}` in docs/events.md");
    }
}

#[test]
fn the_page_on_configuration_has_every_key() {
    let source = read("crates/cli/src/config.rs");
    let page = read("docs/configuration.md");
    for section in ["Serve", "Egress", "Gateway", "Paging", "Redis"] {
        let rows = rows(&page, &format!("[{}]", section.to_lowercase()));
        assert_eq!(rows, fields(&source, section), "[{section}] in docs/configuration.md");
    }
}

/// SPECIFICATION.md proves its rows by tests, written as `crate::test_name`.
#[test]
fn every_test_that_the_specification_names_exists() {
    let mut tests: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in &workspace().packages {
        let names = tests.entry(short(&package.name).to_owned()).or_default();
        for file in files_below(&folder(package)) {
            if file.extension().is_some_and(|extension| extension == "rs") {
                names.extend(functions(&fs::read_to_string(file).unwrap()));
            }
        }
    }
    let page = read("SPECIFICATION.md");
    let named: Vec<(&str, &str)> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.split_once("::"))
        .filter(|(name, _)| tests.contains_key(*name))
        .collect();
    assert!(named.len() > 50, "only {} tests are named", named.len());
    let missing: Vec<String> = named
        .iter()
        .filter(|(name, test)| !tests[*name].contains(*test))
        .map(|(name, test)| format!("{name}::{test}"))
        .collect();
    assert!(missing.is_empty(), "SPECIFICATION.md names what is not there: {missing:#?}");
}

/// Functions, and the names in the tables of test programs that have a `main` of their own.
fn functions(source: &str) -> impl Iterator<Item = String> {
    source.lines().map(str::trim).filter_map(|line| {
        let listed = line.strip_prefix("trial(\"").or_else(|| line.strip_prefix("(\""));
        if let Some((name, _)) = listed.and_then(|rest| rest.split_once('"')) {
            return name.rsplit("::").next().map(str::to_owned);
        }
        let rest = line.strip_prefix("async ").unwrap_or(line);
        Some(rest.strip_prefix("fn ")?.split(['(', '<']).next()?.to_owned())
    })
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut broken = Vec::new();
    for page in files_below(&top()) {
        if page.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap();
            let elsewhere = path.is_empty() || path.contains("://") || path.contains(' ');
            if !elsewhere && !page.parent().unwrap_or(Path::new("")).join(path).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
