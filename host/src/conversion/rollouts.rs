//! What rollouts did, and the queue of rebuilds.

use crate::api;
use crate::deployments::DryRun;
use crate::overview::Deployment;
use crate::progress::DeploymentState;
use crate::rollout::{CutOver, Deployed, PartialRebuild, Pruned, Replacement};
use crate::state::catalogue::{GenerationStatus, Promotion};

/// The rebuilds of these deployments: running ones first, then waiting ones in order.
pub(crate) fn rebuilds(
    deployments: impl Iterator<Item = Deployment>,
    at_once: usize,
) -> api::RebuildList {
    let mut rebuilds: Vec<_> = deployments.filter_map(rebuild).collect();
    // Place 0 means that it runs; those that wait follow in their order.
    rebuilds
        .sort_by(|one, other| (one.place, &one.deployment).cmp(&(other.place, &other.deployment)));
    api::RebuildList {
        rebuilds,
        at_once: at_once as u64,
    }
}

fn rebuild(deployment: Deployment) -> Option<api::Rebuild> {
    let generation = *deployment.candidate?;
    let place = generation.queued_behind.unwrap_or(0);
    let waits_for = match (generation.status, generation.build.promote) {
        _ if place == 1 => "1 rebuild ahead of it".to_owned(),
        _ if place > 0 => format!("{place} rebuilds ahead of it"),
        (GenerationStatus::Ready, Promotion::Manual) => generation.reason.clone(),
        (GenerationStatus::Ready, _) if generation.lacks_events > 0 => generation.reason.clone(),
        _ if generation.state == Some(DeploymentState::Paused) => {
            "`foldstream resume --candidate`".to_owned()
        }
        (GenerationStatus::Ready, Promotion::Auto) => generation
            .held_back
            .clone()
            .unwrap_or_else(|| "its turn to take over".to_owned()),
        _ if deployment.outbox.is_some() => {
            "the end of what the active generation has handled".to_owned()
        }
        _ => "the end of the stream".to_owned(),
    };
    Some(api::Rebuild {
        deployment: deployment.name,
        place,
        generation: generation.into(),
        waits_for,
    })
}

impl From<Deployed> for api::Deployed {
    fn from(deployed: Deployed) -> Self {
        let Deployed {
            deployment,
            outcome,
            generation,
            reason,
            compile_time,
            warnings,
        } = deployed;
        let compile_ms = compile_time.map_or(0, |time| time.as_millis());
        Self {
            deployment: deployment.into(),
            outcome,
            generation,
            reason,
            compile_ms: u64::try_from(compile_ms).unwrap_or(u64::MAX),
            warnings,
        }
    }
}

impl From<CutOver> for api::CutOver {
    fn from(cut_over: CutOver) -> Self {
        let CutOver {
            deployment,
            from,
            to,
            position,
            held,
            message,
        } = cut_over;
        Self {
            deployment: deployment.into(),
            from,
            to,
            position,
            hold_ms: held.as_secs_f64() * 1e3,
            message,
        }
    }
}

impl From<Pruned> for api::Pruned {
    fn from(pruned: Pruned) -> Self {
        let Pruned {
            generations,
            bytes,
            dry_run,
        } = pruned;
        Self {
            generations,
            bytes,
            dry_run: dry_run == DryRun::Yes,
        }
    }
}

impl From<PartialRebuild> for api::PartialRebuild {
    fn from(rebuilt: PartialRebuild) -> Self {
        let PartialRebuild {
            replaced,
            events,
            filtered_by_server,
            lacks,
            missing_events,
        } = rebuilt;
        let Replacement {
            selection,
            position,
            written,
            removed,
            left,
            skipped,
            parked,
        } = replaced;
        Self {
            selection,
            position,
            events,
            written,
            removed,
            left,
            filtered_by_server,
            skipped,
            lacks,
            missing_events,
            parked: parked.into(),
        }
    }
}
