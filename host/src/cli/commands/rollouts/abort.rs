//! `foldstream abort`.

use crate::api::Deployment;
use crate::cli::Context;
use crate::cli::support::output::grouped;

/// Discard the candidate of a deployment. The active generation keeps serving.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream abort order-totals")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
}

/// Sends the request and prints the outcome.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let deployment: Deployment = context
        .client()?
        .act(&["v1", "deployments", &args.name, "abort"], &[])
        .await?;
    context.output.one(&deployment, line)?;
    Ok(())
}

fn line(deployment: &Deployment) -> String {
    let position = grouped(deployment.position);
    format!(
        "{}: candidate discarded; generation {} is active at position {position}",
        deployment.name, deployment.generation
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_continues_is_reported() {
        let told = line(&crate::cli::commands::deployments::show::tests::deployment());
        assert_eq!(
            told,
            "order-totals: candidate discarded; generation 2 is active at position 400,000"
        );
    }
}
