//! `foldstream rollback`.

use super::promote;
use crate::api::CutOver;
use crate::cli::Context;
use crate::cli::support::wait_until_live;

/// Let the generation that served before serve again.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream rollback order-totals
  foldstream rollback order-totals --rebuild
  foldstream rollback order-totals --rebuild --accept-missing

Its read model is kept, and follows the stream, for as long as the host is set to
(rollout.keep_previous). Beyond that it has to be built anew: this is refused, and says what it
means, until --rebuild is added.")]
pub struct Args {
    /// Name of the deployment.
    name: String,
    /// Build its read model anew where it is gone; what serves goes on meanwhile.
    #[arg(long)]
    rebuild: bool,
    /// Build it also if events that were applied are gone from the stream.
    #[arg(long, requires = "rebuild")]
    accept_missing: bool,
}

/// Asks for it and prints what came of it.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut parameters = Vec::new();
    parameters.extend(args.rebuild.then(|| ("rebuild", "true".to_owned())));
    parameters.extend(args.accept_missing.then(crate::cli::commands::deployments::deploy::accept_missing));
    let path = ["v1", "deployments", &args.name, "rollback"];
    let cut_over: CutOver = context.client()?.act(&path, &parameters).await?;
    context.output.one(&cut_over, promote::line)?;
    // What was rolled back to may fail as well.
    if cut_over.position.is_some() {
        let outcome = wait_until_live::outcome(&cut_over.deployment)?;
        if !cut_over.deployment.begun {
            context.output.note(&outcome);
        }
    }
    Ok(())
}
