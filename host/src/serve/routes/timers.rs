//! The timers of a handler that are pending, and what an operator decides about them.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use super::deployments::change;
use super::pages::PageParameters;
use crate::api;
use crate::handlers::TimerAction;
use crate::serve::App;
use crate::serve::capacity::acquire;
use crate::serve::extract::{Parameters, Segments};
use crate::serve::problem::Problem;

/// Which timer is meant.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct TimerParameters {
    /// The name of the timer.
    timer: String,
    /// Change nothing, and tell which timer it would be.
    #[serde(default)]
    dry_run: bool,
}

/// The timers of a handler that are pending and durable.
#[utoipa::path(get, path = "/v1/deployments/{name}/timers", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), PageParameters),
    responses(
        (status = 200, description = "In the order in which they fire", body = api::PendingTimers),
        (status = 404, description = "There is no such deployment"),
        (status = 503, description = "Its state is not open yet"),
        (status = 422, description = "It is a projection, or `after` is not from an earlier page"),
    ))]
pub(super) async fn list(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<PageParameters>,
) -> Result<Json<api::PendingTimers>, Problem> {
    let PageParameters { after, limit } = parameters.checked()?;
    let _place = acquire(&app.capacity.scans, "scans").await?;
    Ok(Json(
        app.host
            .handlers()
            .pending_timers(&name, after.as_deref(), limit)
            .await?
            .into(),
    ))
}

/// Fires a timer now, whatever its time.
///
/// The response comes once the handler's stream has stored a message that says so; the handler does
/// it when it gets there, if the timer is still set to that time. The audit log records it.
#[utoipa::path(post, path = "/v1/deployments/{name}/timers/fire", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), TimerParameters),
    responses(
        (status = 200, description = "The timer", body = api::TimerChanged),
        (status = 404, description = "There is no such deployment, or no such timer is pending"),
        (status = 409, description = "Its stream did not store the message"),
        (status = 503, description = "Its state is not open yet"),
        (status = 422, description = "It sets no timers"),
    ))]
pub(super) async fn fire(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<TimerParameters>,
) -> Result<Json<api::TimerChanged>, Problem> {
    act(&app, name, TimerAction::Fire, parameters).await
}

/// Drops a timer: it never fires.
///
/// The response comes once the handler's stream has stored a message that says so; the handler does
/// it when it gets there, if the timer is still set to that time. The audit log records it.
#[utoipa::path(post, path = "/v1/deployments/{name}/timers/drop", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), TimerParameters),
    responses(
        (status = 200, description = "The timer", body = api::TimerChanged),
        (status = 404, description = "There is no such deployment, or no such timer is pending"),
        (status = 409, description = "Its stream did not store the message"),
        (status = 503, description = "Its state is not open yet"),
        (status = 422, description = "It sets no timers"),
    ))]
pub(super) async fn drop_timer(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<TimerParameters>,
) -> Result<Json<api::TimerChanged>, Problem> {
    act(&app, name, TimerAction::Drop, parameters).await
}

async fn act(
    app: &App,
    name: String,
    action: TimerAction,
    TimerParameters { timer, dry_run }: TimerParameters,
) -> Result<Json<api::TimerChanged>, Problem> {
    change(app, move |host| async move {
        host.handlers()
            .change_timer(&name, action, timer, dry_run.into())
            .await
    })
    .await
}
