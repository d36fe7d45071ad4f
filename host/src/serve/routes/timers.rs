//! The timers of a handler that are pending.

use axum::Json;
use axum::extract::State;

use super::pages::PageParameters;
use crate::api;
use crate::serve::App;
use crate::serve::capacity::acquire;
use crate::serve::extract::{Parameters, Segments};
use crate::serve::problem::Problem;

/// The timers of a handler that are pending and durable.
#[utoipa::path(get, path = "/v1/deployments/{name}/timers", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), PageParameters),
    responses(
        (status = 200, description = "In the order in which they fire", body = api::PendingTimers),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "Its state is not open"),
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
        app.rollouts
            .pending_timers(&name, after.as_deref(), limit)
            .await?,
    ))
}
