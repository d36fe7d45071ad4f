//! Generations: list, promote, roll back, abort, rebuild, throttle, prune; and the queue of rebuilds.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use super::deployments::{build_settings, check_throttle, finish};
use crate::api;
use crate::rollout::{Demand, Keys};
use crate::serve::App;
use crate::serve::extract::{NoParameters, Parameters, Segments};
use crate::serve::problem::Problem;

/// The generations of a deployment.
#[utoipa::path(get, path = "/v1/deployments/{name}/generations", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment")),
    responses(
        (status = 200, description = "By rising number", body = api::GenerationList),
        (status = 404, description = "There is no such deployment"),
    ))]
pub(super) async fn list(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
) -> Result<Json<api::GenerationList>, Problem> {
    Ok(Json(app.rollouts.generations(&name)?))
}

/// How a candidate is promoted.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PromoteParameters {
    /// Also when its gate does not allow it.
    #[serde(default)]
    #[param(required = false)]
    force: bool,
    /// Lift its throttle first, and wait a moment until it is ready.
    #[serde(default)]
    #[param(required = false)]
    lift_throttle: bool,
}

/// Lets the candidate take over now.
///
/// Both generations are held at one position, the catalogue gets the new pointer in one commit, and both go on; reads
/// never wait. The generation that served before follows the stream, so that a rollback is as quick.
#[utoipa::path(post, path = "/v1/deployments/{name}/promote", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment"), PromoteParameters),
    responses(
        (status = 200, description = "It serves", body = api::CutOver),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "There is no candidate, it is not ready, its gate does not allow it, or the two did not meet in time"),
    ))]
pub(super) async fn promote(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<PromoteParameters>,
) -> Result<Json<api::CutOver>, Problem> {
    let rollouts = app.rollouts.clone();
    let demand = if parameters.force { Demand::Nothing } else { Demand::Gate };
    let unthrottled = parameters.lift_throttle;
    Ok(Json(finish(async move { rollouts.promote(&name, demand, unthrottled).await }).await??))
}

/// How a deployment is rolled back.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RollbackParameters {
    /// Build the state anew where that of the generation before is gone.
    #[serde(default)]
    #[param(required = false)]
    rebuild: bool,
    /// Build it also if events that were applied are gone from the stream.
    #[serde(default, rename = "accept-missing")]
    #[param(rename = "accept-missing", required = false)]
    accept_missing: bool,
}

/// Lets the generation that served before serve again.
#[utoipa::path(post, path = "/v1/deployments/{name}/rollback", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment"), RollbackParameters),
    responses(
        (status = 200, description = "It serves, or is being built anew", body = api::CutOver),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "No generation served before, its state is gone, or the two did not meet in time"),
        (status = 422, description = "Events that were applied are gone from the stream"),
        (status = 507, description = "There is no room for another state"),
    ))]
pub(super) async fn rollback(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<RollbackParameters>,
) -> Result<Json<api::CutOver>, Problem> {
    let rollouts = app.rollouts.clone();
    let RollbackParameters { rebuild, accept_missing } = parameters;
    Ok(Json(finish(async move { rollouts.rollback_and_look(&name, rebuild, accept_missing).await }).await??))
}

/// Gives the candidate up; what serves goes on.
#[utoipa::path(post, path = "/v1/deployments/{name}/abort", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment")),
    responses(
        (status = 200, description = "The deployment as it is now", body = api::Deployment),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "There is no candidate"),
    ))]
pub(super) async fn abort(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
) -> Result<Json<api::Deployment>, Problem> {
    let rollouts = app.rollouts.clone();
    Ok(Json(finish(async move { rollouts.abort(&name).await }).await??))
}

/// How the module that serves is built anew: all of it, or a part.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RebuildParameters {
    /// When the candidate takes over; left out, as soon as it has caught up.
    #[serde(default)]
    #[param(inline, required = false)]
    promote: api::Promotion,
    /// What a comparison with the generation that serves may show, as JSON (Gate); `{"allow":[]}` allows nothing.
    gate: Option<String>,
    /// Most events a second.
    #[param(minimum = 1)]
    max_rate: Option<u64>,
    /// Share of one core, in percent.
    #[param(minimum = 1, maximum = 100)]
    cpu_percent: Option<u8>,
    /// Build it also if events that were applied are gone from the stream.
    #[serde(default, rename = "accept-missing")]
    #[param(rename = "accept-missing", required = false)]
    accept_missing: bool,
}

/// Builds the module that serves anew, beside it, and lets that take over.
#[utoipa::path(post, path = "/v1/deployments/{name}/rebuild", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment"), RebuildParameters),
    responses(
        (status = 200, description = "The new generation is being built", body = api::Deployed),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "The source can't be reached to see what it lacks"),
        (status = 422, description = "The gate is refused, or events that were applied are gone from the stream"),
        (status = 507, description = "There is no room for another state"),
    ))]
pub(super) async fn rebuild(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<RebuildParameters>,
) -> Result<Json<api::Deployed>, Problem> {
    let RebuildParameters { promote, gate, max_rate, cpu_percent, accept_missing } = parameters;
    let build = build_settings(promote, gate.as_deref(), max_rate, cpu_percent)?;
    let build = api::BuildSettings { accept_missing, ..build };
    let rollouts = app.rollouts.clone();
    Ok(Json(finish(async move { rollouts.rebuild(&name, build).await }).await??))
}

/// How fast a candidate may be built.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ThrottleParameters {
    /// Most events a second; left out, as many as it can.
    #[param(minimum = 1)]
    max_rate: Option<u64>,
    /// Share of one core, in percent; left out, as much as it can get.
    #[param(minimum = 1, maximum = 100)]
    cpu_percent: Option<u8>,
}

/// Which part is folded again.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PartParameters {
    /// The events of this key, by the key rule of the manifest.
    key: Option<String>,
    /// The events of all keys that begin with this, instead.
    prefix: Option<String>,
    /// Fold also if events that were applied are gone from the stream.
    #[serde(default, rename = "accept-missing")]
    #[param(rename = "accept-missing", required = false)]
    accept_missing: bool,
}

/// Folds the events of one key, or of a prefix of keys, again, and puts the result in the place of what is there.
///
/// Other entries are not touched. Reads go on; applying is held only for the last step. Refused where the module declares
/// no key rule, or where the events change entries that are not the key's alone.
#[utoipa::path(post, path = "/v1/deployments/{name}/rebuild-part", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment"), PartParameters),
    responses(
        (status = 200, description = "What was put in place", body = api::PartialRebuild),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "Something else changed meanwhile; try again"),
        (status = 422, description = "The module's state has no such parts"),
    ))]
pub(super) async fn rebuild_part(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<PartParameters>,
) -> Result<Json<api::PartialRebuild>, Problem> {
    let keys = match (parameters.key, parameters.prefix) {
        (Some(key), None) if !key.is_empty() => Keys::One(key),
        (None, Some(prefix)) if !prefix.is_empty() => Keys::Prefix(prefix),
        _ => return Err(Problem::invalid("name either a key or a prefix; `rebuild` builds all anew")),
    };
    let rollouts = app.rollouts.clone();
    Ok(Json(finish(async move { rollouts.rebuild_part(&name, keys, parameters.accept_missing).await }).await??))
}

/// How a verification is made.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct VerifyParameters {
    /// Compare about so many entries; left out, all.
    #[param(minimum = 1)]
    sample: Option<u64>,
    /// Seed of the batch boundaries, to repeat a run; left out, chance chooses.
    seed: Option<u64>,
    /// Fold also if events that were applied are gone from the stream.
    #[serde(default, rename = "accept-missing")]
    #[param(rename = "accept-missing", required = false)]
    accept_missing: bool,
}

/// Folds the stream of the generation that serves again, with other batch boundaries and restarts, and compares.
///
/// It goes on by itself: ask for it with GET. While one is under way, this one is answered.
#[utoipa::path(post, path = "/v1/deployments/{name}/verification", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment"), VerifyParameters),
    responses(
        (status = 200, description = "It has begun, or is under way", body = api::Verification),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "The module can't be loaded"),
        (status = 422, description = "The sample is refused"),
    ))]
pub(super) async fn verify(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<VerifyParameters>,
) -> Result<Json<api::Verification>, Problem> {
    Ok(Json(app.rollouts.verify(&name, parameters.sample, parameters.seed, parameters.accept_missing).await?))
}

/// How far the last verification is, and what it found.
#[utoipa::path(get, path = "/v1/deployments/{name}/verification", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment")),
    responses(
        (status = 200, description = "How far it is", body = api::Verification),
        (status = 404, description = "There is no such deployment, or it was not verified since the host started"),
    ))]
pub(super) async fn verification(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
) -> Result<Json<api::Verification>, Problem> {
    Ok(Json(app.rollouts.verification(&name)?))
}

/// Changes how fast the candidate is built.
#[utoipa::path(post, path = "/v1/deployments/{name}/throttle", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment"), ThrottleParameters),
    responses(
        (status = 200, description = "The deployment as it is now", body = api::Deployment),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "There is no candidate"),
    ))]
pub(super) async fn throttle(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<ThrottleParameters>,
) -> Result<Json<api::Deployment>, Problem> {
    let ThrottleParameters { max_rate, cpu_percent } = parameters;
    check_throttle(max_rate, cpu_percent)?;
    let rollouts = app.rollouts.clone();
    Ok(Json(finish(async move { rollouts.throttle(&name, max_rate, cpu_percent).await }).await??))
}

/// What a prune leaves.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct PruneParameters {
    /// Generations to keep beside the one that serves and the candidate, the newest first.
    keep: u32,
    /// Only say what would be removed.
    #[serde(default)]
    #[param(required = false)]
    dry_run: bool,
}

/// Forgets old generations and removes their files.
#[utoipa::path(post, path = "/v1/deployments/{name}/prune", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment"), PruneParameters),
    responses(
        (status = 200, description = "What was removed, or would be", body = api::Pruned),
        (status = 404, description = "There is no such deployment"),
    ))]
pub(super) async fn prune(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<PruneParameters>,
) -> Result<Json<api::Pruned>, Problem> {
    let rollouts = app.rollouts.clone();
    let PruneParameters { keep, dry_run } = parameters;
    Ok(Json(finish(async move { rollouts.prune(&name, keep as usize, dry_run).await }).await??))
}

/// All rebuilds of the host: those that run, and then those that wait, in order.
#[utoipa::path(get, path = "/v1/rebuilds", tag = "generations", responses(
    (status = 200, description = "In the order of the queue", body = api::RebuildList),
))]
pub(super) async fn rebuilds(State(app): State<App>, _: Parameters<NoParameters>) -> Json<api::RebuildList> {
    Json(app.rollouts.rebuilds())
}
