//! `foldstream resume`.

use super::Context;
use super::output::grouped;
use super::show::state_word;
use crate::api::Deployment;

/// Go on after a pause, or try again after a failure.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream resume order-totals
  foldstream resume order-totals --candidate")]
pub struct Args {
    /// Name of the deployment.
    name: String,
    /// Go on building the candidate instead, after a pause.
    #[arg(long)]
    candidate: bool,
}

/// Asks for it and prints what came of it.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let parameters: &[_] = if args.candidate { &[("candidate", "true".to_owned())] } else { &[] };
    let path = ["v1", "deployments", &args.name, "resume"];
    let deployment: Deployment = context.client()?.act(&path, parameters).await?;
    context.output.one(&deployment, |deployment| match &deployment.candidate {
        Some(candidate) if args.candidate => {
            let (number, position) = (candidate.number, grouped(candidate.position));
            format!("{}: generation {number} goes on at position {position}", deployment.name)
        }
        _ => {
            let (state, position) = (state_word(deployment.state), grouped(deployment.position));
            format!("{}: {state} at position {position}", deployment.name)
        }
    })?;
    Ok(())
}
