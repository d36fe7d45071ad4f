//! `foldstream pause`.

use crate::api::Deployment;
use crate::cli::Context;
use crate::cli::support::output::grouped;

/// Stop applying events. Reads continue. A pause outlasts restarts.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream pause order-totals
  foldstream pause order-totals --candidate")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Pause the candidate instead; the active generation keeps serving.
    #[arg(long)]
    candidate: bool,
}

/// Sends the request and prints the outcome.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let parameters: &[_] = if args.candidate {
        &[("candidate", "true".to_owned())]
    } else {
        &[]
    };
    let path = ["v1", "deployments", &args.name, "pause"];
    let deployment: Deployment = context.client()?.act(&path, parameters).await?;
    context
        .output
        .one(&deployment, |deployment| match &deployment.candidate {
            Some(candidate) if args.candidate => {
                let (number, position) = (candidate.number, grouped(candidate.position));
                format!(
                    "{}: generation {number} is paused at position {position}",
                    deployment.name
                )
            }
            _ => {
                let (state, position) = (deployment.state.name(), grouped(deployment.position));
                format!("{}: {state} at position {position}", deployment.name)
            }
        })?;
    Ok(())
}
