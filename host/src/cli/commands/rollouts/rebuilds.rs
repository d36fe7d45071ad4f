//! `foldstream rebuilds`: lists the running and waiting rebuilds of a host.

use super::generations::outlook;
use crate::api::{GenerationStatus, Rebuild, RebuildList};
use crate::cli::Context;
use crate::cli::support::output::table;

/// Show the rebuilds of the host: running ones first, then waiting ones in order.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream rebuilds
  foldstream rebuilds -o ndjson | jq -r 'select(.place > 0) | .deployment'

PLACE is how many rebuilds must end first: `rollout.rebuilds_max` says how many run at once.")]
pub(crate) struct Args {}

/// Prints one line per rebuild.
pub(crate) async fn run(_args: Args, context: &Context) -> anyhow::Result<()> {
    let list: RebuildList = context.client()?.get(&["v1", "rebuilds"], &[]).await?;
    context.output.many(&list.rebuilds, &list, lines)?;
    if list.rebuilds.is_empty() {
        context
            .output
            .note(&format!("no rebuilds; {} may run at once", list.at_once));
    }
    Ok(())
}

fn lines(rebuilds: &[Rebuild]) -> String {
    let rows = rebuilds.iter().map(|rebuild| {
        let generation = &rebuild.generation;
        vec![
            place(rebuild),
            rebuild.deployment.clone(),
            generation.number.to_string(),
            generation.strategy.name().to_owned(),
            generation.status.name().to_owned(),
            outlook(generation),
            rebuild.waits_for.clone(),
        ]
    });
    table(
        &[
            "PLACE",
            "DEPLOYMENT",
            "GENERATION",
            "STRATEGY",
            "STATUS",
            "PROGRESS",
            "WAITS-FOR",
        ],
        rows,
    )
}

fn place(rebuild: &Rebuild) -> String {
    match (rebuild.place, rebuild.generation.status) {
        (0, GenerationStatus::Building) => "runs".to_owned(),
        // It is being built and waits for nobody.
        (0, _) => "-".to_owned(),
        (place, _) => place.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rebuilds_are_listed_in_their_order() {
        let generation = super::super::generations::tests::generation();
        let rebuild = |name: &str, place, waits_for: &str| Rebuild {
            deployment: name.to_owned(),
            place,
            generation: generation.clone(),
            waits_for: waits_for.to_owned(),
        };
        let mut ready = rebuild("a", 0, "its turn to take over");
        ready.generation.status = GenerationStatus::Ready;
        let mut waits = rebuild("order-totals", 2, "2 rebuilds ahead of it");
        waits.generation.state = None;
        waits.generation.queued_behind = Some(2);
        assert_eq!(
            lines(&[ready, rebuild("b", 0, "the end of the stream"), waits]),
            "\
PLACE  DEPLOYMENT    GENERATION  STRATEGY  STATUS    PROGRESS                     WAITS-FOR
-      a             3           rebuild   ready     40 %                         its turn to take over
runs   b             3           rebuild   building  40 %, 212,345/s, 2.8 s left  the end of the stream
2      order-totals  3           rebuild   building  queued behind 2              2 rebuilds ahead of it"
        );
    }
}
