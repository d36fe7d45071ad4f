//! The audit log: what was done to deployments.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use super::pages;
use crate::api;
use crate::serve::App;
use crate::serve::capacity::acquire;
use crate::serve::extract::Parameters;
use crate::serve::problem::Problem;

/// Filters of the audit log.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditParameters {
    /// Only entries about this deployment, which may be deleted.
    deployment: Option<String>,
    /// Maximum number of entries.
    #[serde(default = "pages::default_limit")]
    #[param(minimum = 1, maximum = 10_000, default = 100, required = false)]
    limit: usize,
}

/// What was done to deployments, newest first.
///
/// The host keeps the last 10,000 entries.
#[utoipa::path(get, path = "/v1/audit", tag = "host", params(AuditParameters), responses(
    (status = 200, description = "Newest first", body = api::AuditLog),
))]
pub(super) async fn read(
    State(app): State<App>,
    Parameters(parameters): Parameters<AuditParameters>,
) -> Result<Json<api::AuditLog>, Problem> {
    pages::check_limit(parameters.limit)?;
    let place = acquire(&app.capacity.scans, "scans").await?;
    let host = app.host.clone();
    let entries = crate::serve::blocking(move || {
        let _place = place;
        host.audit(parameters.limit, parameters.deployment.as_deref())
    })
    .await??;
    Ok(Json(api::AuditLog {
        entries: entries.into_iter().map(Into::into).collect(),
    }))
}
