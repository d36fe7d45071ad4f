//! The messages that wait in the outbox of a handler.

use axum::Json;
use axum::extract::{Request, State};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use super::deployments::change;
use super::pages::PageParameters;
use crate::api;
use crate::handlers::{Conditions, Lost, NamedMessages};
use crate::serve::App;
use crate::serve::capacity::acquire;
use crate::serve::extract::{self, NoParameters, Parameters, Segments};
use crate::serve::problem::Problem;

/// Largest body of a request about some messages, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

/// The messages that wait in the outbox of a handler, without their data.
#[utoipa::path(get, path = "/v1/deployments/{name}/outbox", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), PageParameters),
    responses(
        (status = 200, description = "In the order in which they leave, source by source", body = api::WaitingMessages),
        (status = 404, description = "There is no such deployment"),
        (status = 503, description = "Its state is not open yet"),
        (status = 422, description = "It is a projection, or `after` is not from an earlier page"),
    ))]
pub(super) async fn list(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<PageParameters>,
) -> Result<Json<api::WaitingMessages>, Problem> {
    let PageParameters { after, limit } = parameters.checked()?;
    let _place = acquire(&app.capacity.scans, "scans").await?;
    Ok(Json(
        app.host
            .handlers()
            .waiting_messages(&name, after.as_deref(), limit)
            .await?
            .into(),
    ))
}

/// Drops messages that wait, all or none of them.
///
/// They are lost: nothing makes them again. The audit log records them with the reason.
#[utoipa::path(post, path = "/v1/deployments/{name}/outbox/drop", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment")),
    request_body(content = api::DropMessages, description = "Which messages, and why"),
    responses(
        (status = 200, description = "What was dropped", body = api::DroppedMessages),
        (status = 404, description = "There is no such deployment, or one of the messages does not \
                                      wait"),
        (status = 408, description = "The body arrived too slowly"),
        (status = 503, description = "Its state is not open yet"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not declared as application/json"),
        (status = 422, description = "It is a projection, or no reason is given"),
    ))]
pub(super) async fn drop(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
    request: Request,
) -> Result<Json<api::DroppedMessages>, Problem> {
    let api::DropMessages { ids, reason } = wanted(&app, request, "DropMessages").await?;
    let named = NamedMessages { ids, reason };
    change(&app, |host| async move {
        host.handlers().drop_messages(&name, named).await
    })
    .await
}

/// Sends messages now that wait for their time, or that are set aside because their condition does
/// not hold; all or none of them.
///
/// With `without_condition` their conditions no longer count. The audit log records it with the
/// reason. A message whose condition still does not hold is set aside again.
#[utoipa::path(post, path = "/v1/deployments/{name}/outbox/send", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment")),
    request_body(content = api::SendMessages, description = "Which messages, how, and why"),
    responses(
        (status = 200, description = "The messages, as they wait now", body = api::SentMessages),
        (status = 404, description = "There is no such deployment, or one of the messages does not \
                                      wait"),
        (status = 408, description = "The body arrived too slowly"),
        (status = 409, description = "One of the messages waits for nothing but its turn"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not declared as application/json"),
        (status = 422, description = "It is a projection, or no reason is given"),
        (status = 503, description = "Its state is not open yet"),
    ))]
pub(super) async fn send(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
    request: Request,
) -> Result<Json<api::SentMessages>, Problem> {
    let api::SendMessages {
        ids,
        reason,
        without_condition,
    } = wanted(&app, request, "SendMessages").await?;
    let named = NamedMessages { ids, reason };
    let conditions = if without_condition {
        Conditions::Drop
    } else {
        Conditions::Keep
    };
    change(&app, |host| async move {
        host.handlers()
            .send_messages(&name, named, conditions)
            .await
    })
    .await
}

/// The body of a request about some messages, which has a schema.
async fn wanted<T: DeserializeOwned>(
    app: &App,
    request: Request,
    schema: &str,
) -> Result<T, Problem> {
    let (parts, body) = request.into_parts();
    let body = extract::body(
        &parts.headers,
        body,
        BODY_BYTES_MAX,
        &mut app.capacity.body(1),
    )
    .await?;
    match extract::content_type(&parts.headers).as_deref() {
        Some("application/json") => {}
        found => {
            return Err(extract::unsupported(
                found,
                "which messages are meant as application/json",
            ));
        }
    }
    let invalid = |why: String| {
        Problem::invalid(format!(
            "the body does not match the schema {schema}: {why}"
        ))
    };
    let body: serde_json::Value =
        serde_json::from_slice(&body).map_err(|error| invalid(error.to_string()))?;
    // The JSON parser would accept an array for an object.
    if !body.is_object() {
        return Err(invalid("it is not an object".to_owned()));
    }
    serde_json::from_value(body).map_err(|error| invalid(error.to_string()))
}

/// What to do about messages that are lost.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RetryParameters {
    /// Also accept that streams have lost messages that they had confirmed: `promise` is `lost` no
    /// more.
    #[serde(default, rename = "accept-lost")]
    #[param(rename = "accept-lost", required = false)]
    accept_lost: bool,
}

/// Tries at once to send what waits for another attempt.
#[utoipa::path(post, path = "/v1/deployments/{name}/outbox/retry", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), RetryParameters),
    responses(
        (status = 200, description = "The deployment; what comes of the attempt is in its `outbox` \
                                      a moment later", body = api::Deployment),
        (status = 404, description = "There is no such deployment"),
        (status = 503, description = "Its state is not open yet"),
        (status = 422, description = "It is a projection"),
    ))]
pub(super) async fn retry(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(RetryParameters { accept_lost }): Parameters<RetryParameters>,
) -> Result<Json<api::Deployment>, Problem> {
    let lost = if accept_lost {
        Lost::Accept
    } else {
        Lost::Report
    };
    change(&app, |host| async move {
        host.handlers().retry_messages(&name, lost).await
    })
    .await
}
