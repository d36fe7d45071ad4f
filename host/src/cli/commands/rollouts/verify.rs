//! `foldstream verify`: proves that folding the stream again gives the same read model.

use bytes::Bytes;

use super::generations::examples;
use crate::api::{Verification, WorkState};
use crate::cli::Context;
use crate::cli::support::client;
use crate::cli::support::client::Client;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{Output, grouped};
use crate::cli::support::progress::{Progress, Step};
use crate::cli::support::wait_until_live::Patience;

/// Differences to show.
const EXAMPLES_MAX: usize = 10;

/// Fold the stream again separately, with other batch boundaries and restarts, and compare byte by
/// byte.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream verify order-totals
  foldstream verify order-totals --sample 100000
  foldstream verify order-totals --seed 7          # repeat a run
  foldstream verify order-totals --accept-missing  # although the stream has lost applied events

The active generation keeps serving. If the two states differ, verify names the first key that \
differs, and the first event after which the two folds disagree about it.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Compare about this many entries; default: all. Saves comparing, not reading: both states are
    /// read once.
    #[arg(long, value_name = "ENTRIES", value_parser = clap::value_parser!(u64).range(1..))]
    sample: Option<u64>,
    /// Seed of the batch boundaries, to repeat a run.
    #[arg(long)]
    seed: Option<u64>,
    /// Fold even if events that were applied are gone from the stream.
    #[arg(long)]
    accept_missing: bool,
}

/// Starts the verification, shows its progress, and prints the result.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let mut parameters = Vec::new();
    parameters.extend(args.sample.map(|sample| ("sample", sample.to_string())));
    parameters.extend(args.seed.map(|seed| ("seed", seed.to_string())));
    parameters.extend(
        args.accept_missing
            .then(crate::cli::commands::deployments::deploy::accept_missing),
    );
    let path = ["v1", "deployments", &args.name, "verification"];
    let nothing = ("application/json", Bytes::new());
    let begun: Verification = client
        .post(&path, &parameters, nothing, client::UPLOAD_TIMEOUT)
        .await?;
    let verification = wait(&client, &args.name, begun, context.output).await?;
    context.output.one(&verification, lines)?;
    match (verification.state, verification.equal) {
        (WorkState::Done, Some(true)) => Ok(()),
        _ => Err(Failure::new(Exit::Failed, format!("{} is not verified", args.name)).into()),
    }
}

async fn wait(
    client: &Client,
    name: &str,
    mut verification: Verification,
    output: Output,
) -> anyhow::Result<Verification> {
    let mut progress = Progress::new(&format!("verifying {name}"), output);
    let mut patience = Patience::new(None);
    // It began the work.
    patience.heard();
    while matches!(verification.state, WorkState::Queued | WorkState::Running) {
        match (&verification.obstacle, verification.state) {
            (Some(obstacle), _) => progress.wait(&format!("trying again: {obstacle}")),
            (None, WorkState::Queued) => progress.wait(&verification.message),
            (None, _) => progress.show(&step(&verification)),
        }
        patience.pause().await;
        match client
            .get(&["v1", "deployments", name, "verification"], &[])
            .await
        {
            Ok(now) => {
                patience.heard();
                verification = now;
            }
            Err(error) => patience.bear(error, &progress)?,
        }
    }
    Ok(verification)
}

/// Progress through the whole stream, in parts per million.
fn step(verification: &Verification) -> Step {
    let total = (verification.rate * verification.remaining_seconds.unwrap_or(0.0)) as u64;
    let part = verification.progress.clamp(0.0, 1.0);
    let done = if part < 1.0 {
        (total as f64 * part / (1.0 - part)) as u64
    } else {
        total
    };
    Step {
        done,
        total: (total > 0).then_some(done + total),
        // From the rate and the remaining time.
        is_estimate: true,
        rate: verification.rate,
        remaining_seconds: verification.remaining_seconds,
    }
}

fn lines(verification: &Verification) -> String {
    let mut text = verification.message.clone();
    if verification.position > 0 {
        text.push_str(&format!(
            "\ngeneration {}, position {}, {} restarts, seed {}",
            verification.generation,
            grouped(verification.position),
            verification.restarts,
            verification.seed
        ));
    }
    if let Some(comparison) = verification
        .comparison
        .as_ref()
        .filter(|comparison| !comparison.examples.is_empty())
    {
        text.push_str(&format!("\n{}", examples(comparison, EXAMPLES_MAX)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Divergence;

    fn verification() -> Verification {
        Verification {
            state: WorkState::Done,
            generation: 3,
            position: 12_345,
            progress: 1.0,
            rate: 0.0,
            remaining_seconds: None,
            seed: 7,
            restarts: 3,
            equal: Some(true),
            comparison: None,
            divergence: None,
            skipped: Vec::new(),
            missing_events: 0,
            parked: Default::default(),
            message: "the second fold gives the same result".to_owned(),
            obstacle: None,
        }
    }

    #[test]
    fn what_was_found_is_reported_with_what_it_takes_to_repeat_it() {
        let text = lines(&verification());
        assert_eq!(
            text,
            "the second fold gives the same result\ngeneration 3, position 12,345, 3 restarts, \
             seed 7"
        );
        let failed = Verification {
            state: WorkState::Failed,
            position: 0,
            equal: None,
            divergence: Some(Divergence {
                key: "a".to_owned(),
                sequence: None,
            }),
            message: "the source is gone".to_owned(),
            ..verification()
        };
        assert_eq!(lines(&failed), "the source is gone");
    }

    #[test]
    fn progress_is_reported_in_events() {
        let running = Verification {
            progress: 0.25,
            rate: 100.0,
            remaining_seconds: Some(3.0),
            ..verification()
        };
        let step = step(&running);
        assert_eq!(
            (step.done, step.total, step.remaining_seconds),
            (100, Some(400), Some(3.0))
        );
    }
}
