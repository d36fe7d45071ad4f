//! The description of the API, OpenAPI 3.1, generated from the routes.
//!
//! Adds what all routes share, so that no route can forget it: the problems
//! that any route may return, the token, and the headers of reads.

use utoipa::ToSchema;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{Schema, SchemaType};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, Content, ContentBuilder, Header, InfoBuilder, LicenseBuilder, ObjectBuilder,
    OpenApi, PathItem, Paths, Ref, RefOr, Required, Response, ResponseBuilder, Type,
};

use super::routes::health::PROBES;
use crate::api;

/// Problems that any route except the probes may return.
const COMMON: [(&str, &str); 6] = [
    ("400", "A parameter, a header or the body is not valid"),
    ("401", "The token is missing or wrong"),
    (
        "403",
        "The token lacks the scope or the deployment; if the host has no tokens: the request comes \
         from a web page of another origin, for an unknown host name, or through a proxy",
    ),
    ("500", "The host failed; its log says why"),
    (
        "503",
        "Not ready, too busy, or stopping; try again after Retry-After",
    ),
    (
        "504",
        "Not done in time, or the requested position was not reached",
    ),
];

/// The description.
pub fn document() -> OpenApi {
    let (_, mut document) = super::routes::all().split_for_parts();
    let license = "Apache-2.0 OR MIT";
    document.info = InfoBuilder::new()
        .title("Foldstream")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Read models of event streams: deploy modules, read their state, append events.",
        ))
        .license(Some(
            LicenseBuilder::new()
                .name(license)
                .identifier(Some(license))
                .build(),
        ))
        .build();
    document.security = Some(vec![
        SecurityRequirement::default(),
        SecurityRequirement::new("token", [] as [&str; 0]),
    ]);
    let components = document.components.get_or_insert_with(Components::new);
    let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    components.add_security_scheme("token", scheme);
    components.schemas.extend(schemas());
    document.paths = complete(std::mem::take(&mut document.paths));
    document
}

/// Schemas that no route names: lines or events of a body, and the common form of failures.
fn schemas() -> Vec<(String, RefOr<Schema>)> {
    fn add<T: ToSchema>(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        T::schemas(schemas);
        schemas.push((T::name().into_owned(), T::schema()));
    }
    let mut schemas = Vec::new();
    add::<api::Problem>(&mut schemas);
    add::<api::Change>(&mut schemas);
    add::<api::PositionMark>(&mut schemas);
    add::<api::EndMark>(&mut schemas);
    add::<api::NewEvent>(&mut schemas);
    add::<api::StoredEvent>(&mut schemas);
    schemas
}

fn complete(paths: Paths) -> Paths {
    let mut completed = Paths::new();
    for (path, mut item) in paths.paths {
        // The router's mark of a segment that matches the rest of the path.
        let path = path.replace("{*", "{");
        operations(&mut item).for_each(|operation| complete_operation(&path, operation));
        if let Some(get) = item.get.as_mut() {
            complete_get(get);
        }
        if let Some(post) = item.post.as_mut().filter(|_| path.contains("/queries/")) {
            mark_position(post);
            if let Some(RefOr::T(body)) = post.request_body.as_mut() {
                body.required = Some(Required::False);
            }
        }
        completed.paths.insert(path, item);
    }
    completed
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [item.get.as_mut(), item.post.as_mut(), item.delete.as_mut()]
        .into_iter()
        .flatten()
}

/// Gives every failure the common body of failures, and adds the failures that all routes share.
fn complete_operation(path: &str, operation: &mut Operation) {
    if let Some(RefOr::T(body)) = operation.request_body.as_mut() {
        body.content.iter_mut().for_each(set_free_schema);
    }
    for parameter in operation.parameters.iter_mut().flatten() {
        limit_number(parameter);
    }
    let responses = &mut operation.responses.responses;
    for (status, response) in responses.iter_mut() {
        let RefOr::T(response) = response else {
            continue;
        };
        response.content.iter_mut().for_each(set_free_schema);
        if response.content.is_empty() && (status.starts_with('4') || status.starts_with('5')) {
            *response = problem(status, &response.description);
        }
    }
    let common = if PROBES.contains(&path) {
        &COMMON[..1]
    } else {
        &COMMON[..]
    };
    for (status, description) in common {
        responses
            .entry((*status).to_owned())
            .or_insert_with(|| RefOr::T(problem(status, description)));
    }
}

fn problem(status: &str, description: &str) -> Response {
    let schema = Ref::from_schema_name(api::Problem::name());
    let content = ContentBuilder::new().schema(Some(schema)).build();
    let mut problem = ResponseBuilder::new()
        .description(description)
        .content("application/problem+json", content)
        .build();
    let mut header =
        |name: &str, header: Header| problem.headers.insert(name.to_owned(), header.into());
    match status {
        "401" => header("WWW-Authenticate", text("The scheme: Bearer")),
        "503" => header("Retry-After", text("Seconds after which to try again")),
        "504" => header(
            "Foldstream-Position",
            sequence("The position that was reached, if one was requested"),
        ),
        _ => None,
    };
    problem
}

/// Bodies of bytes and of arbitrary JSON, which have no type of ours.
fn set_free_schema((content_type, content): (&String, &mut RefOr<Content>)) {
    let RefOr::T(content) = content else { return };
    let free = match &content.schema {
        Some(RefOr::T(Schema::Object(object))) => object.properties.is_empty(),
        _ => false,
    };
    match content_type.as_str() {
        "application/wasm" | "application/octet-stream" => {
            let format =
                utoipa::openapi::SchemaFormat::KnownFormat(utoipa::openapi::KnownFormat::Binary);
            content.schema = Some(
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .format(Some(format))
                    .into(),
            );
        }
        "application/json" if free => {
            content.schema = Some(
                ObjectBuilder::new()
                    .schema_type(SchemaType::AnyValue)
                    .into(),
            );
        }
        _ => {}
    }
}

/// Ids of server-sent events: a position and, in watches, the identity of the state in which it
/// counts.
const EVENT_ID: &str = r"^[0-9]{1,18}(\.[0-9a-f]{16})?$";

/// Sequences have 64 bits; larger numbers are refused.
fn limit_number(parameter: &mut RefOr<Parameter>) {
    if let RefOr::T(parameter) = parameter
        && let Some(RefOr::T(Schema::Object(schema))) = parameter.schema.as_mut()
        && schema.schema_type == Type::Integer.into()
        && schema.maximum.is_none()
    {
        schema.maximum = Some(utoipa::Number::Int(isize::MAX));
    }
}

/// What the responses of reads share, and the requests of streams.
fn complete_get(operation: &mut Operation) {
    let named = |wanted: &str| {
        let mut parameters = operation.parameters.iter().flatten();
        parameters
            .any(|parameter| matches!(parameter, RefOr::T(parameter) if parameter.name == wanted))
    };
    let (is_read, is_stream) = (
        named("at-least"),
        operation
            .responses
            .responses
            .get("200")
            .is_some_and(is_stream),
    );
    let parameters = operation.parameters.get_or_insert_default();
    if is_stream {
        let description =
            "Like `after`, and takes precedence: the id of the last event that was received";
        let schema = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some(EVENT_ID));
        parameters.push(header_parameter(
            "Last-Event-ID",
            description,
            schema.into(),
        ));
    }
    if !is_read {
        return;
    }
    let description =
        "Validators that the client has; the response is 304 if one of them is current";
    let schema = ObjectBuilder::new().schema_type(Type::String);
    parameters.push(header_parameter(
        "If-None-Match",
        description,
        schema.into(),
    ));
    mark_position(operation);
    let known = ResponseBuilder::new()
        .description("The client already has the current response")
        .header("ETag", text("The validator of the body"))
        .header(
            "Foldstream-Position",
            sequence("The position that the response reflects"),
        )
        .build();
    operation
        .responses
        .responses
        .insert("304".to_owned(), RefOr::T(known));
}

fn is_stream(response: &RefOr<Response>) -> bool {
    matches!(response, RefOr::T(response) if response.content.contains_key("text/event-stream"))
}

fn header_parameter(name: &str, description: &str, schema: RefOr<Schema>) -> RefOr<Parameter> {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(schema))
        .build()
        .into()
}

fn mark_position(operation: &mut Operation) {
    if let Some(RefOr::T(response)) = operation.responses.responses.get_mut("200") {
        let position = sequence("The position that the response reflects");
        response
            .headers
            .insert("Foldstream-Position".to_owned(), position.into());
        let skipped = sequence(
            "Events up to that position that an operator decided to skip; absent if there are none",
        );
        response
            .headers
            .insert("Foldstream-Skipped".to_owned(), skipped.into());
        let parked = sequence(
            "Events that the state lacks because they are parked; absent if there are none",
        );
        response
            .headers
            .insert("Foldstream-Parked".to_owned(), parked.into());
        response.headers.insert(
            "ETag".to_owned(),
            text("The strong validator of the body").into(),
        );
    }
}

fn sequence(description: &str) -> Header {
    let schema = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(0));
    HeaderBuilder::new()
        .schema(Some(schema))
        .description(Some(description))
        .build()
}

fn text(description: &str) -> Header {
    let schema = ObjectBuilder::new().schema_type(Type::String);
    HeaderBuilder::new()
        .schema(Some(schema))
        .description(Some(description))
        .build()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn written() -> Value {
        serde_json::to_value(document()).expect("plain data")
    }

    #[test]
    fn every_failure_is_described_as_a_problem() {
        let document = written();
        assert_eq!(document["openapi"], "3.1.0");
        let mut failures = 0;
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                for (status, response) in operation["responses"].as_object().expect("responses") {
                    let probe = PROBES.contains(&path.as_str()) && status == "503";
                    if status.as_str() >= "400" && !probe {
                        let content = response["content"].as_object().expect("content");
                        assert!(
                            content.contains_key("application/problem+json"),
                            "{method} {path} {status}"
                        );
                        failures += 1;
                    }
                }
            }
        }
        assert!(failures > 100, "{failures}");
    }

    #[test]
    fn every_read_tells_its_position() {
        let document = written();
        for path in ["entries", "entries/{key}", "queries/{query}"] {
            let get = &document["paths"][format!("/v1/deployments/{{name}}/{path}")]["get"];
            let headers = &get["responses"]["200"]["headers"];
            assert!(
                headers["Foldstream-Position"].is_object() && headers["ETag"].is_object(),
                "{path}"
            );
            assert!(get["responses"]["304"].is_object(), "{path}");
        }
    }

    #[test]
    fn bodies_of_bytes_and_of_any_json_are_described_as_such() {
        let document = written();
        let upload = &document["paths"]["/v1/deployments"]["post"]["requestBody"]["content"]["application/wasm"];
        assert_eq!(
            upload["schema"],
            serde_json::json!({ "type": "string", "format": "binary" })
        );
        let entry = &document["paths"]["/v1/deployments/{name}/entries/{key}"]["get"]["responses"]
            ["200"]["content"];
        assert_eq!(entry["application/json"]["schema"], serde_json::json!({}));
    }
}
