//! `foldstream resume`.

use super::Context;
use super::output::grouped;
use super::show::state_word;
use crate::api::Deployment;

/// Go on after a pause, or try again after a failure.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream resume order-totals")]
pub struct Args {
    /// Name of the deployment.
    name: String,
}

/// Asks for it and prints what came of it.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let deployment: Deployment = context.client()?.act(&["v1", "deployments", &args.name, "resume"]).await?;
    context.output.one(&deployment, |deployment| {
        format!("{}: {} at position {}", deployment.name, state_word(deployment.state), grouped(deployment.position))
    })?;
    Ok(())
}
