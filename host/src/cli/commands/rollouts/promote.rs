//! `foldstream promote`.

use crate::api::CutOver;
use crate::cli::Context;

/// Let the candidate of a deployment take over now.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream promote order-totals
  foldstream promote order-totals --force
  foldstream promote order-totals --lift-throttle     one that is built slowly, as soon as it can

Where a comparison was asked for, it is made first, and keeps a candidate back that differs more
than was allowed. The generation that served before follows the stream for a while: `foldstream
rollback` lets it serve again.")]
pub struct Args {
    /// Name of the deployment.
    name: String,
    /// Also when its comparison does not allow it.
    #[arg(long)]
    force: bool,
    /// Build it as fast as it can first, and wait a moment until it is ready.
    #[arg(long)]
    lift_throttle: bool,
}

/// Asks for it and prints what came of it.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let flags = [("force", args.force), ("lift_throttle", args.lift_throttle)];
    let parameters: Vec<_> =
        flags.into_iter().filter(|(_, given)| *given).map(|(name, _)| (name, "true".to_owned())).collect();
    let path = ["v1", "deployments", &args.name, "promote"];
    let cut_over: CutOver = context.client()?.act(&path, &parameters).await?;
    context.output.one(&cut_over, line)?;
    Ok(())
}

/// What was done, in one line.
pub fn line(cut_over: &CutOver) -> String {
    format!("{}: {}", cut_over.deployment.name, cut_over.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_over_is_told_in_the_words_of_the_host() {
        let cut_over = CutOver {
            deployment: crate::cli::commands::deployments::show::tests::deployment(),
            from: 1,
            to: 2,
            position: Some(70),
            hold_ms: 1.5,
            message: "generation 2 took over from generation 1 at position 70".to_owned(),
        };
        assert_eq!(line(&cut_over), "order-totals: generation 2 took over from generation 1 at position 70");
    }
}
