//! Generations: list, promote, roll back, abort, rebuild, throttle, prune; and the queue of
//! rebuilds.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use super::deployments::{build_settings, change, check_throttle};
use crate::api;
use crate::conversion::rebuilds as rebuilds_shown;
use crate::rollout::{BuildSpeed, Demand, Keys, RollbackOptions};
use crate::serve::App;
use crate::serve::extract::{NoParameters, Parameters, Segments};
use crate::serve::problem::Problem;
use crate::state::catalogue::BuildSettings;

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
    let deployment = app.host.all_deployments().get(&name)?;
    let record = deployment.record();
    let generations = record.generations.iter();
    let generations = generations
        .map(|generation| deployment.generation_overview(generation).into())
        .collect();
    Ok(Json(api::GenerationList { generations }))
}

/// Parameters of a promotion.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct PromoteParameters {
    /// Promote even if the gate does not allow it.
    #[serde(default)]
    #[param(required = false)]
    force: bool,
    /// Lift its throttle first, and wait briefly until it is ready.
    #[serde(default)]
    #[param(required = false)]
    lift_throttle: bool,
}

/// Makes the candidate active now.
///
/// The host holds both generations at one position, changes the active generation in one commit of
/// the catalogue, and lets both continue; reads never wait. The previous generation follows the
/// stream, so that a rollback is just as quick.
#[utoipa::path(post, path = "/v1/deployments/{name}/promote", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment"), PromoteParameters),
    responses(
        (status = 200, description = "It is active", body = api::CutOver),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "There is no candidate, it is not ready, its gate does not \
                                      allow it, or the two did not meet in time"),
    ))]
pub(super) async fn promote(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<PromoteParameters>,
) -> Result<Json<api::CutOver>, Problem> {
    let demand = if parameters.force {
        Demand::Force
    } else {
        Demand::Gate
    };
    let speed = if parameters.lift_throttle {
        BuildSpeed::Unthrottled
    } else {
        BuildSpeed::Unchanged
    };
    change(&app, |host| async move {
        host.rollouts().promote(&name, demand, speed).await
    })
    .await
}

/// Parameters of a rollback.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct RollbackParameters {
    /// Build the state from scratch if that of the previous generation is gone.
    #[serde(default)]
    #[param(required = false)]
    rebuild: bool,
    /// Build it even if events that were applied are gone from the stream.
    #[serde(default)]
    #[param(required = false)]
    accept_missing: bool,
}

/// Makes the previous generation active again.
#[utoipa::path(post, path = "/v1/deployments/{name}/rollback", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment"), RollbackParameters),
    responses(
        (status = 200, description = "It is active, or is being rebuilt", body = api::CutOver),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "There is no previous generation, its state is gone, or the \
                                      two did not reach one position in time"),
        (status = 422, description = "Events that were applied are gone from the stream"),
        (status = 507, description = "The disk has no room for another state"),
    ))]
pub(super) async fn rollback(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<RollbackParameters>,
) -> Result<Json<api::CutOver>, Problem> {
    let options = RollbackOptions {
        may_rebuild: parameters.rebuild,
        missing: parameters.accept_missing.into(),
    };
    change(&app, |host| async move {
        host.rollouts().rollback_and_look(&name, options).await
    })
    .await
}

/// Discards the candidate. The active generation keeps serving.
#[utoipa::path(post, path = "/v1/deployments/{name}/abort", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment")),
    responses(
        (status = 200, description = "The updated deployment", body = api::Deployment),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "There is no candidate"),
    ))]
pub(super) async fn abort(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
) -> Result<Json<api::Deployment>, Problem> {
    change(
        &app,
        |host| async move { host.rollouts().abort(&name).await },
    )
    .await
}

/// Parameters of a rebuild, whole or partial.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct RebuildParameters {
    /// When the candidate takes over; default: as soon as it has caught up.
    #[serde(default)]
    #[param(inline, required = false)]
    promote: api::Promotion,
    /// Which differences from the active generation are allowed, as JSON (Gate); `{"allow":[]}`
    /// allows none.
    gate: Option<String>,
    /// Maximum events per second.
    #[param(minimum = 1)]
    max_rate: Option<u64>,
    /// Share of one core, in percent.
    #[param(minimum = 1, maximum = 100)]
    cpu_percent: Option<u8>,
    /// Build it even if events that were applied are gone from the stream.
    #[serde(default)]
    #[param(required = false)]
    accept_missing: bool,
    /// For a handler whose state is lost: take over although what waited in it to be published is
    /// lost.
    #[serde(default)]
    #[param(required = false)]
    accept_lost_effects: bool,
    /// With `accept-lost-effects`: the first event for which the new state publishes, as `now`,
    /// `beginning` or a sequence; default: now.
    effects_from: Option<String>,
}

/// Rebuilds the state of the active module from scratch, alongside the active generation, and lets
/// it take over.
#[utoipa::path(post, path = "/v1/deployments/{name}/rebuild", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment"), RebuildParameters),
    responses(
        (status = 200, description = "The new generation is being built", body = api::Deployed),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "The source can't be reached to check for missing events, or \
                                      the state that owns the effects of a handler can't be \
                                      opened"),
        (status = 422, description = "The gate is refused, or events that were applied are gone \
                                      from the stream"),
        (status = 507, description = "The disk has no room for another state"),
    ))]
pub(super) async fn rebuild(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<RebuildParameters>,
) -> Result<Json<api::Deployed>, Problem> {
    let RebuildParameters {
        promote,
        gate,
        max_rate,
        cpu_percent,
        accept_missing,
        accept_lost_effects,
        effects_from,
    } = parameters;
    let from: Option<api::EffectsFrom> = effects_from
        .map(|from| from.parse())
        .transpose()
        .map_err(|error: api::InvalidEffectsFrom| Problem::invalid(error.to_string()))?;
    if from.is_some() && !accept_lost_effects {
        let message = "effects-from is for a rebuild with accept-lost-effects";
        return Err(Problem::invalid(message));
    }
    // Without `effects-from` it publishes for events from now on.
    let lost_effects_from = accept_lost_effects.then(|| from.unwrap_or_default());
    let build = build_settings(promote, gate.as_deref(), max_rate, cpu_percent)?;
    let build = BuildSettings {
        accept_missing,
        ..build
    };
    change(&app, |host| async move {
        host.rollouts()
            .rebuild(&name, build, lost_effects_from)
            .await
    })
    .await
}

/// Limits on the speed of a build.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct ThrottleParameters {
    /// Most events per second; default: no limit.
    #[param(minimum = 1)]
    max_rate: Option<u64>,
    /// Share of one core, in percent; default: no limit.
    #[param(minimum = 1, maximum = 100)]
    cpu_percent: Option<u8>,
}

/// Selects the part to fold again.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct PartParameters {
    /// The events of this key, by the key rule of the manifest.
    key: Option<String>,
    /// Instead: the events of all keys that begin with this prefix.
    prefix: Option<String>,
    /// Fold even if events that were applied are gone from the stream.
    #[serde(default)]
    #[param(required = false)]
    accept_missing: bool,
}

/// Folds the events of one key, or of a prefix of keys, again, and replaces the entries of these
/// keys with the result.
///
/// Other entries do not change. Reads continue; applying is held only for the last step. Refused if
/// the module declares no key rule, or if the events also change entries that do not belong to
/// these keys.
#[utoipa::path(post, path = "/v1/deployments/{name}/rebuild-part", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment"), PartParameters),
    responses(
        (status = 200, description = "What was replaced", body = api::PartialRebuild),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "Something else changed meanwhile; try again"),
        (status = 503, description = "The state is not open, or the stream can't be read just now"),
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
        _ => {
            return Err(Problem::invalid(
                "give either key or prefix; `rebuild` rebuilds everything",
            ));
        }
    };
    change(&app, |host| async move {
        host.rollouts()
            .rebuild_part(&name, keys, parameters.accept_missing.into())
            .await
    })
    .await
}

/// Parameters of a verification.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct VerifyParameters {
    /// Compare about this many entries; default: all.
    #[param(minimum = 1)]
    sample: Option<u64>,
    /// Seed of the batch boundaries, to repeat a run; default: random.
    seed: Option<u64>,
    /// Fold even if events that were applied are gone from the stream.
    #[serde(default)]
    #[param(required = false)]
    accept_missing: bool,
}

/// Folds the active generation's stream again, with other batch boundaries and restarts, and
/// compares the two states.
///
/// It runs in the background: use GET for its progress. If a verification is already running, the
/// response describes that one.
#[utoipa::path(post, path = "/v1/deployments/{name}/verification", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment"), VerifyParameters),
    responses(
        (status = 200, description = "Started, or already running", body = api::Verification),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "The module can't be loaded, or the state that owns the effects \
                                      of a handler is lost"),
        (status = 422, description = "The sample is refused"),
    ))]
pub(super) async fn verify(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<VerifyParameters>,
) -> Result<Json<api::Verification>, Problem> {
    Ok(Json(
        app.host
            .history()
            .verify(
                &name,
                parameters.sample,
                parameters.seed,
                parameters.accept_missing.into(),
            )
            .await?
            .into(),
    ))
}

/// The progress of the last verification, and its result.
#[utoipa::path(get, path = "/v1/deployments/{name}/verification", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment")),
    responses(
        (status = 200, description = "Its progress", body = api::Verification),
        (status = 404, description = "There is no such deployment, or it was not verified since \
                                      the host started"),
    ))]
pub(super) async fn verification(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
) -> Result<Json<api::Verification>, Problem> {
    Ok(Json(app.host.history().verification(&name)?.into()))
}

/// Changes the limits on the speed of the candidate's build.
#[utoipa::path(post, path = "/v1/deployments/{name}/throttle", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment"), ThrottleParameters),
    responses(
        (status = 200, description = "The updated deployment", body = api::Deployment),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "There is no candidate"),
    ))]
pub(super) async fn throttle(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<ThrottleParameters>,
) -> Result<Json<api::Deployment>, Problem> {
    let ThrottleParameters {
        max_rate,
        cpu_percent,
    } = parameters;
    check_throttle(max_rate, cpu_percent)?;
    change(&app, |host| async move {
        host.rollouts().throttle(&name, max_rate, cpu_percent).await
    })
    .await
}

/// Parameters of a prune.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct PruneParameters {
    /// Generations to keep in addition to the active one and the candidate, newest first.
    keep: u32,
    /// Only report what would be removed.
    #[serde(default)]
    #[param(required = false)]
    dry_run: bool,
}

/// Removes old generations and their files.
#[utoipa::path(post, path = "/v1/deployments/{name}/prune", tag = "generations",
    params(("name" = String, Path, description = "Name of the deployment"), PruneParameters),
    responses(
        (status = 200, description = "What was removed, or would be removed", body = api::Pruned),
        (status = 404, description = "There is no such deployment"),
    ))]
pub(super) async fn prune(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<PruneParameters>,
) -> Result<Json<api::Pruned>, Problem> {
    let PruneParameters { keep, dry_run } = parameters;
    change(&app, |host| async move {
        host.rollouts()
            .prune(&name, keep as usize, dry_run.into())
            .await
    })
    .await
}

/// All rebuilds of the host: running ones first, then waiting ones in order.
#[utoipa::path(get, path = "/v1/rebuilds", tag = "generations", responses(
    (status = 200, description = "In the order of the queue", body = api::RebuildList),
))]
pub(super) async fn rebuilds(
    State(app): State<App>,
    _: Parameters<NoParameters>,
) -> Json<api::RebuildList> {
    let deployments = app.host.deployments();
    let overviews = deployments.iter().map(|deployment| deployment.overview());
    let at_once = app.host.rollouts().rebuilds_at_once();
    Json(rebuilds_shown(overviews, at_once))
}
