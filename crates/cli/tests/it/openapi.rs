//! `/openapi.json`: a document by which other tools can be made, of exactly what the server serves.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::Value;

use crate::stage::Server;

const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

/// Addresses with the methods that they take.
type Addresses = BTreeMap<String, BTreeSet<String>>;

/// What the document lists.
fn listed(document: &Value) -> Addresses {
    let paths = document["paths"].as_object().unwrap();
    let methods = |item: &Value| item.as_object().unwrap().keys().cloned().collect();
    paths.iter().map(|(path, item)| (path.clone(), methods(item))).collect()
}

/// What the server's router names, read where it is written: the router itself cannot be asked.
fn served() -> Addresses {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/src/http/mod.rs");
    let text = std::fs::read_to_string(file).unwrap();
    let router = text.split("pub(crate) fn router(").nth(1).unwrap();
    let router = router.split("\n}\n").next().unwrap();
    let mut served = Addresses::new();
    for route in router.split(".route(\"").skip(1) {
        let (path, rest) = route.split_once('"').unwrap();
        let rest = rest.split(".layer(").next().unwrap();
        let takes = |method: &&&str| {
            [format!(" {method}("), format!(").{method}("), format!("::{method}(")]
                .iter()
                .any(|call| rest.contains(call.as_str()))
        };
        let methods: BTreeSet<String> =
            METHODS.iter().filter(takes).map(ToString::to_string).collect();
        assert!(!methods.is_empty(), "{path} takes nothing");
        assert!(served.insert(path.to_owned(), methods).is_none(), "{path} stands twice");
    }
    served
}

/// The names in braces.
fn parameters(path: &str) -> BTreeSet<&str> {
    path.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()).collect()
}

/// All references below a value.
fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(map) => {
            for (key, below) in map {
                match below {
                    Value::String(to) if key == "$ref" => {
                        found.insert(to);
                    }
                    _ => references(below, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|below| references(below, found)),
        _ => {}
    }
}

/// What OpenAPI 3 asks of each document.
fn check(document: &Value) {
    assert!(document["openapi"].as_str().unwrap().starts_with("3."), "{}", document["openapi"]);
    for key in ["title", "version"] {
        assert!(document["info"][key].as_str().is_some_and(|text| !text.is_empty()), "{key}");
    }
    let mut found = BTreeSet::new();
    references(document, &mut found);
    assert!(found.len() > 20, "{found:?}");
    for to in found {
        assert!(document.pointer(to.strip_prefix('#').unwrap()).is_some(), "{to} leads nowhere");
    }
    let mut ids = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let what = format!("{method} {path}");
            assert!(METHODS.contains(&method.as_str()), "{what}");
            let answers = operation["responses"].as_object().unwrap();
            assert!(!answers.is_empty(), "{what} answers nothing");
            for (status, answer) in answers {
                assert!((100..600).contains(&status.parse::<u16>().unwrap()), "{what}: {status}");
                assert!(answer["description"].is_string(), "{what}: {status}");
            }
            let in_path: BTreeSet<&str> = operation["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|parameter| parameter["in"] == "path")
                .map(|parameter| {
                    assert_eq!(parameter["required"], true, "{what}: {parameter}");
                    parameter["name"].as_str().unwrap()
                })
                .collect();
            assert_eq!(in_path, parameters(path), "{what}");
            let id = operation["operationId"].as_str().unwrap().to_owned();
            assert!(operation["summary"].is_string(), "{what} says nothing of itself");
            if let Some(other) = ids.insert(id.clone(), what.clone()) {
                panic!("{what} and {other} are both `{id}`");
            }
        }
    }
}

#[test]
fn the_openapi_document_is_whole_and_lists_what_is_served() {
    let server = Server::start();
    server.ready();
    let (status, document) = server.send("", "GET", "/openapi.json", b"");
    assert_eq!(status, 200, "anybody may read it");
    check(&document);
    let listed = listed(&document);
    let mut served = served();
    let own = served.remove("/openapi.json").unwrap();
    assert_eq!(own, BTreeSet::from(["get".to_owned()]));
    assert_eq!(listed, served);

    // By the server itself: what is listed is there, and takes nothing that is not listed.
    for (path, methods) in &listed {
        let address = path.split('/').map(|part| match part {
            "{sha256}" => "0".repeat(64),
            part if part.starts_with('{') => uuid::Uuid::nil().to_string(),
            part => part.to_owned(),
        });
        let address = address.collect::<Vec<_>>().join("/");
        for method in METHODS {
            let (status, answer) = server.send("", &method.to_uppercase(), &address, b"");
            if methods.contains(method) {
                // Nobody is asking: it is known who is missing, or it is open to all.
                assert!(matches!(status, 200 | 401), "{method} {path}: {status} {answer}");
            } else {
                assert_eq!(status, 405, "{method} {path}: {answer}");
            }
        }
    }
}
