//! `foldstream outbox retry`: another attempt, now.

use crate::api::Deployment;
use crate::cli::Context;
use crate::cli::support::output::counted;

/// Try at once to send what waits, instead of after the current pause of up to 30 s.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream outbox retry shipping
  foldstream outbox retry shipping && foldstream show shipping")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
}

/// Sends the request and prints what waits.
pub(super) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let path = ["v1", "deployments", &args.name, "outbox", "retry"];
    let deployment: Deployment = context.client()?.act(&path, &[]).await?;
    context.output.one(&deployment, |deployment| {
        let waiting = deployment
            .outbox
            .as_ref()
            .map_or(0, |outbox| outbox.entries);
        format!(
            "{}: {} to send; `foldstream show {0}` says what becomes of them",
            deployment.name,
            counted(waiting, "message")
        )
    })?;
    Ok(())
}
