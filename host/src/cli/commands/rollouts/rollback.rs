//! `foldstream rollback`.

use super::promote;
use crate::api::CutOver;
use crate::cli::Context;
use crate::cli::support::wait_until_live;

/// Make the previous generation active again.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream rollback order-totals
  foldstream rollback order-totals --rebuild
  foldstream rollback order-totals --rebuild --accept-missing

The host keeps the previous read model for rollout.keep_previous, and lets it follow the stream. \
After that, a rollback has to build it from scratch, and only does so with --rebuild.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Build its read model from scratch if it is gone. The active generation keeps serving
    /// meanwhile.
    #[arg(long)]
    rebuild: bool,
    /// Rebuild even if events that were applied are gone from the stream.
    #[arg(long, requires = "rebuild")]
    accept_missing: bool,
}

/// Sends the request and prints the outcome.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut parameters = Vec::new();
    parameters.extend(args.rebuild.then(|| ("rebuild", "true".to_owned())));
    parameters.extend(
        args.accept_missing
            .then(crate::cli::commands::deployments::deploy::accept_missing),
    );
    let path = ["v1", "deployments", &args.name, "rollback"];
    let cut_over: CutOver = context.client()?.act(&path, &parameters).await?;
    context.output.one(&cut_over, promote::line)?;
    // The restored generation may fail too.
    if cut_over.position.is_some() {
        let outcome = wait_until_live::outcome(&cut_over.deployment)?;
        if !cut_over.deployment.begun {
            context.output.note(&outcome);
        }
    }
    Ok(())
}
