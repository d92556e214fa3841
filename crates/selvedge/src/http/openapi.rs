//! The description of the API (OpenAPI 3.1), made from the code that serves it.
//!
//! `docs/openapi.json` is a copy for those who have no agent at hand; a test keeps it one.

use selvedge_api::{Error, PREFIX};
use utoipa::PartialSchema;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::{ContentBuilder, OpenApi, Paths, Ref, RefOr, ResponseBuilder};

/// Where the description is served, below the prefix.
pub(super) const PATH: &str = "/openapi.json";

/// What all successes have in common.
const DONE: &str = "The answer.";
/// What all failures have in common.
const FAILURE: &str = "Why it was not done, and what to do about it.";

/// Completes what the handlers say of themselves.
pub(super) fn describe(mut description: OpenApi) -> OpenApi {
    description.info.title = "Selvedge".to_owned();
    description.info.version = "1".to_owned();
    description.info.description = Some(
        "The API of the agent, on its Unix socket. Fields may be added to any object, and kinds \
         to any list of kinds; readers skip those that they do not know."
            .to_owned(),
    );
    (description.info.license, description.info.contact) = (None, None);
    let components = description.components.get_or_insert_default();
    components.schemas.insert("Error".to_owned(), Error::schema());
    let mut code = Vec::new();
    <Error as utoipa::ToSchema>::schemas(&mut code);
    components.schemas.extend(code);
    let paths = std::mem::replace(&mut description.paths, Paths::new());
    for (path, mut item) in paths.paths {
        operations(&mut item).for_each(complete);
        description.paths.paths.insert(format!("{PREFIX}{path}"), item);
    }
    description
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, post, delete, patch, .. } = item;
    [get, post, delete, patch].into_iter().flatten()
}

/// The standard wants a description of every response, failures included.
fn complete(operation: &mut Operation) {
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response
            && response.description.is_empty()
        {
            response.description = DONE.to_owned();
        }
    }
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Error"))).build();
    let response = ResponseBuilder::new().description(FAILURE).content("application/json", content);
    operation.responses.responses.insert("default".to_owned(), response.build().into());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use selvedge_api::mesh::{Dns, EditRequest, Eviction, Hookup, Listener, Role};
    use serde_json::Value;

    use super::*;

    fn description() -> Value {
        let (_, description) = super::super::described().split_for_parts();
        serde_json::to_value(describe(description)).expect("JSON")
    }

    /// Run with `UPDATE=1` to write the copy anew.
    #[test]
    fn the_copy_in_the_documentation_is_true() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
        let text = serde_json::to_string_pretty(&description()).expect("JSON") + "\n";
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, &text).expect("writes");
        }
        let copy = std::fs::read_to_string(&file).expect("docs/openapi.json");
        assert_eq!(copy, text, "run this test with UPDATE=1 and look at what has changed");
    }

    /// The table in the documentation of `selvedge_api` names the same calls.
    #[test]
    fn the_client_and_the_description_know_the_same_calls() {
        let library = include_str!("../../../api/src/lib.rs");
        let rows = library.lines().filter_map(|line| line.strip_prefix("//! | `"));
        let mut told: BTreeSet<_> =
            rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned())).collect();
        assert!(told.remove("GET /v1/openapi.json"), "it describes all others");
        let description = description();
        let paths = description["paths"].as_object().expect("paths");
        let served: BTreeSet<_> = paths
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().expect("methods").keys();
                methods.map(move |method| format!("{} {path}", method.to_uppercase()))
            })
            .collect();
        assert_eq!(served, told);
    }

    /// What the standard demands of each operation.
    #[test]
    fn operations_are_complete() {
        let description = description();
        let mut ids = BTreeSet::new();
        for (path, item) in description["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("methods") {
                let id = operation["operationId"].as_str().expect("an id");
                assert!(ids.insert(id.to_owned()), "{id} twice");
                assert!(operation["summary"].is_string(), "{method} {path}");
                let responses = operation["responses"].as_object().expect("responses");
                assert_eq!(responses.len(), 2, "{method} {path}");
                for response in responses.values() {
                    assert!(response["description"].is_string(), "{method} {path}: {response}");
                }
                let names = operation["parameters"].as_array().into_iter().flatten();
                let of_path = names.filter(|parameter| parameter["in"] == "path").count();
                assert_eq!(of_path, path.matches('{').count(), "{method} {path}");
            }
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let description = description();
        let mut references = BTreeSet::new();
        collect(&description, &mut references);
        assert!(references.len() > 20, "{references:?}");
        for reference in references {
            let pointer = reference.strip_prefix('#').expect("within the description");
            assert!(description.pointer(pointer).is_some(), "{reference}");
        }
    }

    fn collect(value: &Value, references: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                references
                    .extend(fields.get("$ref").and_then(Value::as_str).map(ToOwned::to_owned));
                fields.values().for_each(|value| collect(value, references));
            }
            Value::Array(items) => items.iter().for_each(|value| collect(value, references)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// What is described is what is written: the fields of some types, as JSON has them.
    #[test]
    fn described_fields_are_those_that_are_written() {
        let description = description();
        let described = |name: &str| -> BTreeSet<String> {
            let pointer = format!("/components/schemas/{name}/properties");
            let fields = description.pointer(&pointer).and_then(Value::as_object);
            fields.unwrap_or_else(|| panic!("{name}")).keys().cloned().collect()
        };
        let written = |value: Value| -> BTreeSet<String> {
            value.as_object().expect("an object").keys().cloned().collect()
        };
        let edit = EditRequest {
            role: Some(Role::Client),
            drained: Some(true),
            alias: Some(String::new()),
            shared: Some(true),
            description: Some(String::new()),
            services: [("a".to_owned(), None)].into(),
        };
        let json = |value| written(serde_json::to_value(value).expect("JSON"));
        assert_eq!(described("EditRequest"), json(edit));
        let listener = Listener {
            address: ([127, 0, 0, 1], 53).into(),
            interface: Some(String::new()),
            problem: Some(String::new()),
        };
        let listener = serde_json::to_value(listener).expect("JSON");
        assert_eq!(described("Listener"), written(listener));
        let dns = Dns { hookup: Hookup::Resolved, ..Dns::default() };
        assert_eq!(described("Dns"), written(serde_json::to_value(dns).expect("JSON")));
        let mut mesh = crate::mesh_plane::query::tests::mesh();
        mesh.ipv4_prefix = Some(mesh.prefix);
        let evicted = Eviction { node: mesh.node, by: mesh.node, at: 0 };
        (mesh.evicted, mesh.evictions) = (Some(evicted.clone()), vec![evicted]);
        assert_eq!(described("Mesh"), written(serde_json::to_value(&mesh).expect("JSON")));
        let fields = described("Member");
        let member = written(serde_json::to_value(&mesh.members[1]).expect("JSON"));
        assert!(member.is_subset(&fields), "{member:?}");
    }
}
