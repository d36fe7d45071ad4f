//! Deployments: deploy, list, show, pause, resume, delete.

use std::future::Future;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api;
use crate::deployments;
use crate::effects::Grants;
use crate::exceptions::{FailureRequest, WantedSkips};
use crate::handlers::EffectsRequest;
use crate::host::Host;
use crate::lanes::InvalidLanes;
use crate::module::Wanted;
use crate::overview;
use crate::rollout::{DeployRequest, ResumeTerms, WaitingEffects};
use crate::serve::extract::{self, NoParameters, Parameters, Segments};
use crate::serve::problem::Problem;
use crate::serve::{App, blocking, finish};
use crate::state::catalogue::BuildSettings;

/// Largest body of a resume, in bytes: far more than its reason and sequences need.
const RESUME_BYTES_MAX: usize = 64 << 10;

/// Parameters of a deploy.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct DeployParameters {
    /// Name of the deployment; default: the module's.
    #[param(pattern = "^[a-z][a-z0-9-]{0,62}$")]
    name: Option<String>,
    /// Source to read; default: that of the existing deployment, or the only one.
    source: Option<String>,
    /// Where a new state begins; default: where that of the existing deployment began, or at the
    /// beginning.
    #[param(inline)]
    start: Option<api::Start>,
    /// How to create the state; by default the host decides and says why.
    #[param(inline)]
    strategy: Option<api::Strategy>,
    /// When the candidate takes over; default: as soon as it has caught up.
    #[serde(default)]
    #[param(inline, required = false)]
    promote: api::Promotion,
    /// Which differences from the active generation are allowed, as JSON (Gate); `{"allow":[]}`
    /// allows none.
    gate: Option<String>,
    /// Maximum events per second while the candidate is built.
    #[param(minimum = 1)]
    max_rate: Option<u64>,
    /// Share of one core that the candidate may use while it is built, in percent.
    #[param(minimum = 1, maximum = 100)]
    cpu_percent: Option<u8>,
    /// Continue without events that are gone from the stream, up to its current end; the host
    /// counts them.
    #[serde(default)]
    #[param(required = false)]
    accept_missing: bool,
    /// What a handler may publish, as `SUBJECTS@SOURCE`, separated by commas; it replaces earlier
    /// grants, and an empty value withdraws them. Default: as before, or nothing for a new one.
    #[param(example = "shipping.*.cmd@orders")]
    allow_publish: Option<String>,
    /// From which event on a new handler publishes: `now` (the default) for events after the
    /// deploy, `beginning`, or a sequence.
    #[param(pattern = "^(now|beginning|[0-9]{1,19})$")]
    effects_from: Option<String>,
    /// What happens to an event that has used up its attempts; default: as before, or `stop` for a
    /// new deployment. Parking needs a key rule in the manifest.
    #[param(inline)]
    on_failure: Option<api::OnFailure>,
    /// Whether the module retries, once it has taken over with `inherit`, what an earlier one has
    /// parked.
    #[serde(default)]
    retry_parked: bool,
    /// Where the host publishes an event for each event that it parks, as `SUBJECT@SOURCE`; an
    /// empty value ends that. Default: as before, or nowhere for a new deployment.
    #[param(example = "ops.failures@orders")]
    failure_events: Option<String>,
    /// In how many lanes a projection with a key rule is folded: `auto`, or a number from 1 to 64.
    /// Default: as before, or as the configuration says.
    #[param(example = "auto", pattern = "^(auto|[1-9][0-9]?)$")]
    lanes: Option<String>,
    /// Whether events are checked against the schemas that the module carries; default: as before,
    /// or `off` for a new deployment.
    #[param(inline)]
    check_events: Option<api::EventChecks>,
}

impl DeployParameters {
    fn request(self) -> Result<DeployRequest, Problem> {
        let build = build_settings(
            self.promote,
            self.gate.as_deref(),
            self.max_rate,
            self.cpu_percent,
        )?;
        let build = BuildSettings {
            accept_missing: self.accept_missing,
            ..build
        };
        let Self {
            name,
            source,
            start,
            strategy,
            allow_publish,
            effects_from,
            on_failure,
            retry_parked,
            failure_events,
            lanes,
            check_events,
            ..
        } = self;
        let grants = allow_publish.map(|texts| {
            // An empty value is an empty list, which withdraws all grants.
            let texts: Vec<&str> = texts
                .split(',')
                .map(str::trim)
                .filter(|text| !text.is_empty())
                .collect();
            Grants::parse(&texts)
        });
        let grants = grants
            .transpose()
            .map_err(|error| Problem::invalid(error.to_string()))?;
        let effects_from = effects_from
            .map(|text| text.parse())
            .transpose()
            .map_err(|error: api::InvalidEffectsFrom| Problem::invalid(error.to_string()))?;
        let lanes = lanes
            .map(|text| text.parse())
            .transpose()
            .map_err(|error: InvalidLanes| Problem::invalid(error.to_string()))?;
        Ok(DeployRequest {
            lanes,
            name,
            source,
            start,
            strategy,
            build,
            effects: EffectsRequest {
                grants,
                from: effects_from,
            },
            failures: FailureRequest {
                on_failure,
                events: failure_events,
                retry_parked,
            },
            checks: check_events,
        })
    }
}

/// How to build the candidate, checked.
pub(super) fn build_settings(
    promote: api::Promotion,
    gate: Option<&str>,
    max_rate: Option<u64>,
    cpu_percent: Option<u8>,
) -> Result<BuildSettings, Problem> {
    let gate = gate.map(serde_json::from_str::<api::Gate>).transpose();
    let gate = gate.map_err(|error| {
        Problem::invalid(format!("gate does not match the schema Gate: {error}"))
    })?;
    check_throttle(max_rate, cpu_percent)?;
    Ok(BuildSettings {
        promote,
        gate: gate.map(Into::into),
        max_rate,
        cpu_percent,
        accept_missing: false,
    })
}

/// Checks the limits on the speed of a build.
pub(super) fn check_throttle(
    max_rate: Option<u64>,
    cpu_percent: Option<u8>,
) -> Result<(), Problem> {
    if max_rate == Some(0) {
        return Err(Problem::invalid(
            "max-rate 0 would build nothing; pause the candidate instead",
        ));
    }
    match cpu_percent {
        Some(percent) if !(1..=100).contains(&percent) => Err(Problem::invalid(format!(
            "cpu-percent {percent} is refused; give 1 to 100"
        ))),
        _ => Ok(()),
    }
}

/// All deployments.
#[utoipa::path(get, path = "/v1/deployments", tag = "deployments", responses(
    (status = 200, description = "Ordered by name", body = api::DeploymentList),
))]
pub(super) async fn list(
    State(app): State<App>,
    _: Parameters<NoParameters>,
) -> Json<api::DeploymentList> {
    let mut deployments: Vec<api::Deployment> = app
        .host
        .all_deployments()
        .all()
        .iter()
        .map(|deployment| deployment.info().into())
        .collect();
    deployments.sort_by(|one, other| one.name.cmp(&other.name));
    Json(api::DeploymentList { deployments })
}

/// Deploys a module.
///
/// The body is the component, or a core module that uses the contract. If the name is in use,
/// another module makes a new generation: it inherits the state if both have the same state version
/// and subjects; otherwise its state is built alongside the active generation, which keeps serving
/// until the new one has caught up.
#[utoipa::path(post, path = "/v1/deployments", tag = "deployments", params(DeployParameters),
    request_body(content = Vec<u8>, content_type = "application/wasm", description = "The module"),
    responses(
        (status = 200, description = "This module already runs under the name", body = api::Deployed),
        (status = 201, description = "Created, inherited, or build started", body = api::Deployed,
            headers(("Location" = String, description = "The deployment"))),
        (status = 409, description = "Conflicts with the current state"),
        (status = 408, description = "The body arrived too slowly"),
        (status = 413, description = "Larger than modules.upload_bytes_max"),
        (status = 415, description = "The body is not declared as application/wasm"),
        (status = 422, description = "The module, its manifest or its source is refused, or a \
                                      limit is reached"),
        (status = 507, description = "The disk has no room for another state"),
    ))]
pub(super) async fn deploy(
    State(app): State<App>,
    Parameters(parameters): Parameters<DeployParameters>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    match extract::content_type(&parts.headers).as_deref() {
        Some("application/wasm" | "application/octet-stream") => {}
        found => {
            return Err(extract::unsupported(
                found,
                "the module as application/wasm",
            ));
        }
    }
    let request = parameters.request()?;
    let limit = app.upload_bytes_max;
    // The module is in memory once; its check runs in another process.
    let mut room = app.capacity.body(1);
    let upload = extract::body(&parts.headers, body, limit, &mut room).await?;
    if upload.is_empty() {
        return Err(Problem::invalid("the body is empty; send the .wasm file"));
    }
    // Only after the body has arrived, so that a slow client keeps nobody else from deploying.
    let place = app.capacity.deploy().await?;
    let host = app.host.clone();
    // Dropped with this request: the check or compilation of the module ends when the client
    // disconnects.
    let (_waiting, wanted) = Wanted::while_waiting();
    let deployed = finish(async move {
        let deployed = host.rollouts().deploy(upload, request, wanted).await;
        // Until the deploy has ended, not until the client has left.
        drop((room, place));
        deployed
    })
    .await??;
    let deployed = api::Deployed::from(deployed);
    let location = format!("/v1/deployments/{}", deployed.deployment.name);
    match deployed.outcome {
        api::DeployOutcome::Unchanged => Ok(Json(deployed).into_response()),
        _ => Ok((
            StatusCode::CREATED,
            [(header::LOCATION, location)],
            Json(deployed),
        )
            .into_response()),
    }
}

/// One deployment.
#[utoipa::path(get, path = "/v1/deployments/{name}", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment")),
    responses(
        (status = 200, description = "The deployment", body = api::Deployment),
        (status = 404, description = "There is no such deployment"),
    ))]
pub(super) async fn show(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
) -> Result<Json<api::Deployment>, Problem> {
    let deployment = app.host.all_deployments().get(&name)?;
    let shown = blocking(move || overview::Deployment {
        sagas: deployment.sagas(),
        ..deployment.info()
    });
    Ok(Json(shown.await?.into()))
}

/// Parameters of a delete.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteParameters {
    /// Delete a handler although messages wait in its outbox, or its state is lost and nobody knows
    /// whether any wait; they are never published.
    #[serde(default, rename = "drop-effects")]
    #[param(rename = "drop-effects", required = false)]
    drop_effects: bool,
}

/// Stops a deployment and removes its state.
#[utoipa::path(delete, path = "/v1/deployments/{name}", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), DeleteParameters),
    responses(
        (status = 204, description = "Gone"),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "Messages wait in its outbox, or its state is lost, so that \
                                      nobody knows whether any wait"),
    ))]
pub(super) async fn delete(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(DeleteParameters { drop_effects }): Parameters<DeleteParameters>,
) -> Result<Response, Problem> {
    let host = app.host.clone();
    let waiting = if drop_effects {
        WaitingEffects::Drop
    } else {
        WaitingEffects::Keep
    };
    finish(async move { host.rollouts().delete(&name, waiting).await }).await??;
    let mut response = Response::new(Body::empty());
    // A response without a body needs no content type.
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// Selects a generation.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct WhichParameters {
    /// The candidate, instead of the active generation.
    #[serde(default)]
    #[param(required = false)]
    candidate: bool,
}

/// Parameters of a resume.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct ResumeParameters {
    /// The candidate, instead of the active generation.
    #[serde(default)]
    #[param(required = false)]
    candidate: bool,
    /// Continue without events that are gone from the stream, up to its current end; the host
    /// counts them.
    #[serde(default)]
    #[param(required = false)]
    accept_missing: bool,
}

/// Stops applying events. The deployment keeps answering reads, and stays paused across restarts.
#[utoipa::path(post, path = "/v1/deployments/{name}/pause", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), WhichParameters),
    responses(
        (status = 200, description = "The updated deployment", body = api::Deployment),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "There is no candidate"),
    ))]
pub(super) async fn pause(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(which): Parameters<WhichParameters>,
) -> Result<Json<api::Deployment>, Problem> {
    change(&app, |host| async move {
        host.rollouts().pause(&name, which.candidate.into()).await
    })
    .await
}

/// Continues after a pause or a failure, and skips the events that the body names.
///
/// A skip is a decision for the whole deployment: it applies to each of its states that has not
/// passed the event, and is recorded in the audit log. A candidate that an event stopped continues
/// from its own state.
#[utoipa::path(post, path = "/v1/deployments/{name}/resume", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), ResumeParameters),
    request_body(content = Option<api::Resume>, description = "Which events to skip, and why; \
        default: none"),
    responses(
        (status = 200, description = "The updated deployment", body = api::Deployment),
        (status = 404, description = "There is no such deployment"),
        (status = 409, description = "There is no candidate"),
        (status = 503, description = "The deployment did not stop in time, or the source can't be \
                                      reached"),
        (status = 408, description = "The body arrived too slowly"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not declared as application/json"),
        (status = 422, description = "The event was already folded, does not exist yet, or does \
                                      not match the deployment's subjects"),
    ))]
pub(super) async fn resume(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<ResumeParameters>,
    request: Request,
) -> Result<Json<api::Deployment>, Problem> {
    let (parts, body) = request.into_parts();
    let body = extract::body(
        &parts.headers,
        body,
        RESUME_BYTES_MAX,
        &mut app.capacity.body(1),
    )
    .await?;
    let wanted = if body.is_empty() {
        api::Resume::default()
    } else {
        resume_of(&parts.headers, &body)?
    };
    let skips = WantedSkips::of(wanted.skip, wanted.reason.as_deref())
        .map_err(|error| Problem::invalid(error.to_string()))?;
    let choice = parameters.candidate.into();
    let terms = ResumeTerms {
        skips,
        accept_missing: parameters.accept_missing,
    };
    change(&app, |host| async move {
        host.rollouts().resume(&name, choice, terms).await
    })
    .await
}

fn resume_of(headers: &HeaderMap, body: &[u8]) -> Result<api::Resume, Problem> {
    match extract::content_type(headers).as_deref() {
        Some("application/json") => {}
        found => {
            return Err(extract::unsupported(
                found,
                "which events to skip as application/json",
            ));
        }
    }
    let invalid =
        |why: String| Problem::invalid(format!("the body does not match the schema Resume: {why}"));
    let body: serde_json::Value =
        serde_json::from_slice(body).map_err(|error| invalid(error.to_string()))?;
    // The JSON parser would accept an array for an object.
    if !(body.is_object() || body.is_null()) {
        return Err(invalid("it is not an object".to_owned()));
    }
    let wanted: Option<api::Resume> =
        serde_json::from_value(body).map_err(|error| invalid(error.to_string()))?;
    Ok(wanted.unwrap_or_default())
}

/// The events that a deployment skips.
#[utoipa::path(get, path = "/v1/deployments/{name}/skips", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment")),
    responses(
        (status = 200, description = "By rising sequence", body = api::SkipList),
        (status = 404, description = "There is no such deployment"),
    ))]
pub(super) async fn skips(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
) -> Result<Json<api::SkipList>, Problem> {
    let deployment = app.host.all_deployments().get(&name)?;
    Ok(Json(deployment.skips().into()))
}

/// Withdraws the decision to skip an event.
///
/// States that have passed the event do not change; states that are built from scratch fold it.
#[utoipa::path(delete, path = "/v1/deployments/{name}/skips/{sequence}", tag = "deployments",
    params(
        ("name" = String, Path, description = "Name of the deployment"),
        ("sequence" = u64, Path, description = "The event"),
    ),
    responses(
        (status = 200, description = "The events that are still skipped", body = api::SkipList),
        (status = 404, description = "There is no such deployment, or no such decision"),
        (status = 503, description = "The deployment did not stop in time"),
    ))]
pub(super) async fn withdraw_skip(
    State(app): State<App>,
    Segments((name, sequence)): Segments<(String, u64)>,
    _: Parameters<NoParameters>,
) -> Result<Json<api::SkipList>, Problem> {
    change(&app, |host| async move {
        host.exceptions().withdraw_skip(&name, sequence).await
    })
    .await
}

/// Makes a change of deployments, and answers with its result as JSON.
pub(super) async fn change<A, T, F>(
    app: &App,
    make: impl FnOnce(Host) -> F,
) -> Result<Json<A>, Problem>
where
    A: From<T>,
    T: Send + 'static,
    F: Future<Output = Result<T, deployments::Error>> + Send + 'static,
{
    Ok(Json(finish(make(app.host.clone())).await??.into()))
}
