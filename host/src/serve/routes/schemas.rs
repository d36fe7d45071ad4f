//! The schemas of events that the module of a deployment carries.

use axum::Json;
use axum::extract::State;

use crate::api;
use crate::deployments::Error;
use crate::serve::App;
use crate::serve::extract::{NoParameters, Parameters, Segments};
use crate::serve::problem::Problem;

/// The JSON Schemas of events that the active module of a deployment carries.
#[utoipa::path(get, path = "/v1/deployments/{name}/schemas", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment")),
    responses(
        (status = 200, description = "By direction, type and version; empty if it carries none",
            body = api::ModuleSchemas),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "Its module is not loaded"),
    ))]
pub(super) async fn show(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
) -> Result<Json<api::ModuleSchemas>, Problem> {
    let deployment = app.host.all_deployments().get(&name)?;
    let carried = deployment.schemas().ok_or_else(|| {
        Error::NotOpen(format!("the module of {name} is not loaded yet; try again"))
    })?;
    Ok(Json(carried.into()))
}
