//! Completes the OpenAPI document by what its readers need and no annotation says: a name of its own for
//! each operation (clients are made from it), and words for each status.

use axum::http::StatusCode;
use utoipa::openapi::{
    OpenApi, RefOr,
    path::{Operation, PathItem},
};

/// The document with `operationId`s such as `get_halts_id`, and with a description of each answer.
pub(super) fn completed(mut document: OpenApi) -> OpenApi {
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            operation.operation_id = Some(name(method, path));
            for (status, answer) in &mut operation.responses.responses {
                if let RefOr::T(answer) = answer
                    && answer.description.is_empty()
                {
                    answer.description = words(status).to_owned();
                }
            }
        }
    }
    document
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let methods = [
        ("get", &mut item.get),
        ("put", &mut item.put),
        ("post", &mut item.post),
        ("delete", &mut item.delete),
        ("patch", &mut item.patch),
    ];
    methods.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// An operation's name: method and address are unique together.
fn name(method: &str, path: &str) -> String {
    let parts = path.split(|letter: char| !letter.is_ascii_alphanumeric());
    let parts = parts.filter(|part| !part.is_empty() && *part != "v1");
    std::iter::once(method).chain(parts).collect::<Vec<_>>().join("_")
}

/// What a status means by RFC 9110.
fn words(status: &str) -> &'static str {
    let status: Option<StatusCode> = status.parse().ok();
    status.and_then(|status| status.canonical_reason()).unwrap_or("Answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_named_by_its_method_and_address() {
        assert_eq!(name("post", "/kill-switch/release"), "post_kill_switch_release");
        assert_eq!(name("get", "/v1/halts/{id}"), "get_halts_id");
        assert_eq!(words("404"), "Not Found");
    }
}
