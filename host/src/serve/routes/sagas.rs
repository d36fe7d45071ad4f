//! The instances of the sagas of a handler.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use super::pages::{self, PageParameters};
use crate::api;
use crate::sagas::Wanted;
use crate::serve::App;
use crate::serve::capacity::acquire;
use crate::serve::extract::{Parameters, Segments};
use crate::serve::problem::Problem;

/// Which instances.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct ListParameters {
    /// Only instances of this saga.
    saga: Option<String>,
    /// Only instances with this status. Without it, those that have not ended.
    #[param(inline)]
    status: Option<api::SagaStatus>,
    /// Only instances in this step.
    step: Option<String>,
    /// What the page before returned as `next`.
    after: Option<String>,
    /// Maximum number of entries.
    #[serde(default = "pages::default_limit")]
    #[param(minimum = 1, maximum = 1_000, default = 100, required = false)]
    limit: usize,
}

/// The instances of the sagas of a handler, as its last batch left them.
#[utoipa::path(get, path = "/v1/deployments/{name}/sagas", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), ListParameters),
    responses(
        (status = 200, description = "By saga, status and step; those that have waited longest come first",
            body = api::SagaInstances),
        (status = 404, description = "There is no such deployment"),
        (status = 503, description = "Its state is not open yet"),
        (status = 422, description = "It is a projection, or `after` is not from an earlier page"),
    ))]
pub(super) async fn list(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Json<api::SagaInstances>, Problem> {
    let ListParameters {
        saga,
        status,
        step,
        after,
        limit,
    } = parameters;
    let PageParameters { after, limit } = PageParameters { after, limit }.checked()?;
    let wanted = Wanted { saga, status, step };
    let _place = acquire(&app.capacity.scans, "scans").await?;
    let instances = app
        .host
        .handlers()
        .saga_instances(&name, wanted, after, limit);
    Ok(Json(instances.await?.into()))
}
