//! `foldstream list`: all deployments.

use super::show::source_word;
use crate::api::{Deployment, DeploymentList, GenerationStatus};
use crate::cli::Context;
use crate::cli::commands::rollouts::generations::percent;
use crate::cli::support::output::{grouped, known, span, table};

/// Show all deployments.
#[derive(Clone, Debug, clap::Args)]
#[command(
    visible_alias = "ls",
    before_help = "\
Examples:
  foldstream list
  foldstream list -o ndjson | jq -r 'select(.state == \"failed\") | .name'"
)]
pub(crate) struct Args {}

/// Prints one line per deployment.
pub(crate) async fn run(_args: Args, context: &Context) -> anyhow::Result<()> {
    let list: DeploymentList = context.client()?.get(&["v1", "deployments"], &[]).await?;
    context.output.many(&list.deployments, &list, lines)?;
    if list.deployments.is_empty() {
        context
            .output
            .note("there is no deployment yet; `foldstream deploy FILE.wasm` creates one");
    }
    Ok(())
}

fn lines(deployments: &[Deployment]) -> String {
    let rows = deployments.iter().map(|deployment| {
        vec![
            deployment.name.clone(),
            deployment.state.name().to_owned(),
            grouped(deployment.position),
            known(deployment.lag_events, grouped),
            known(deployment.lag_seconds, span),
            deployment.source.clone(),
            source_word(&deployment.source_status),
            deployment.generation.to_string(),
            rebuild(deployment),
            grouped(deployment.skipped),
            grouped(deployment.parked.events),
            deployment.module.digest.chars().take(12).collect(),
        ]
    });
    const HEADER: [&str; 12] = [
        "NAME",
        "STATE",
        "POSITION",
        "LAG",
        "BEHIND",
        "SOURCE",
        "SOURCE-STATE",
        "GENERATION",
        "REBUILD",
        "SKIPPED",
        "PARKED",
        "MODULE",
    ];
    table(&HEADER, rows)
}

/// The progress of its candidate, if it has one.
fn rebuild(deployment: &Deployment) -> String {
    match &deployment.candidate {
        None => "-".to_owned(),
        Some(candidate) if candidate.status == GenerationStatus::Ready => "ready".to_owned(),
        Some(candidate) if candidate.queued_behind.is_some_and(|before| before > 0) => {
            "waits".to_owned()
        }
        Some(candidate) => percent(candidate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Generation;
    use crate::cli::commands::rollouts::generations::tests::generation;

    #[test]
    fn deployments_are_listed_one_a_line() {
        let mut other = super::super::show::tests::deployment();
        other.name = "b".to_owned();
        (other.lag_events, other.lag_seconds) = (Some(0), Some(0.0));
        other.state = crate::api::DeploymentState::Live;
        other.parked.events = 7;
        other.candidate = Some(Box::new(generation()));
        assert_eq!(
            lines(&[super::super::show::tests::deployment(), other]),
            "\
NAME          STATE        POSITION  LAG      BEHIND  SOURCE  SOURCE-STATE  GENERATION  REBUILD  SKIPPED  PARKED  MODULE
order-totals  catching-up  400,000   600,000  12 s    events  reading       2           -        0        0       abcdef012345
b             live         400,000   0        0.0 s   events  reading       2           40 %     0        7       abcdef012345"
        );
    }

    #[test]
    fn what_nobody_knows_is_not_shown_as_a_number() {
        let mut away = super::super::show::tests::deployment();
        away.state = crate::api::DeploymentState::Disconnected;
        (away.head, away.lag_events, away.lag_seconds) = (None, None, None);
        away.source_status.state = crate::api::SourceState::Reconnecting;
        assert_eq!(
            lines(&[away]).lines().last(),
            Some(
                "order-totals  disconnected  400,000   unknown  unknown  events  reconnecting  2           -        0        0       abcdef012345"
            )
        );
    }

    #[test]
    fn candidates_that_wait_are_marked_as_well() {
        let shown = |candidate| {
            rebuild(&Deployment {
                candidate: Some(Box::new(candidate)),
                ..super::super::show::tests::deployment()
            })
        };
        assert_eq!(
            shown(Generation {
                status: GenerationStatus::Ready,
                ..generation()
            }),
            "ready"
        );
        assert_eq!(
            shown(Generation {
                queued_behind: Some(2),
                ..generation()
            }),
            "waits"
        );
        assert_eq!(
            shown(Generation {
                queued_behind: Some(0),
                ..generation()
            }),
            "40 %"
        );
    }
}
