//! `foldstream promote`.

use crate::api::CutOver;
use crate::cli::Context;

/// Make the candidate of a deployment active now.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream promote order-totals
  foldstream promote order-totals --force
  foldstream promote order-totals --lift-throttle     # full speed first, then take over

If the candidate has a gate, its comparison runs first, and holds the candidate back if more \
differs than allowed. The previous generation follows the stream for a while: `foldstream \
rollback` makes it active again.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Promote even if its gate does not allow it.
    #[arg(long)]
    force: bool,
    /// Lift its throttle first, and wait briefly until it is ready.
    #[arg(long)]
    lift_throttle: bool,
}

/// Sends the request and prints the outcome.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let flags = [("force", args.force), ("lift-throttle", args.lift_throttle)];
    let parameters: Vec<_> = flags
        .into_iter()
        .filter(|(_, given)| *given)
        .map(|(name, _)| (name, "true".to_owned()))
        .collect();
    let path = ["v1", "deployments", &args.name, "promote"];
    let cut_over: CutOver = context.client()?.act(&path, &parameters).await?;
    context.output.one(&cut_over, line)?;
    Ok(())
}

/// The outcome, in one line.
pub(crate) fn line(cut_over: &CutOver) -> String {
    format!("{}: {}", cut_over.deployment.name, cut_over.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_over_is_reported_in_the_words_of_the_host() {
        let cut_over = CutOver {
            deployment: crate::cli::commands::deployments::show::tests::deployment(),
            from: 1,
            to: 2,
            position: Some(70),
            hold_ms: 1.5,
            message: "generation 2 took over from generation 1 at position 70".to_owned(),
        };
        assert_eq!(
            line(&cut_over),
            "order-totals: generation 2 took over from generation 1 at position 70"
        );
    }
}
