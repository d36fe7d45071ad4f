//! `foldstream outbox retry`: another attempt, now.

use crate::api::Deployment;
use crate::cli::Context;
use crate::cli::support::output::counted;

/// Try at once to send what waits, instead of after the current pause of up to 30 s.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream outbox retry shipping
  foldstream outbox retry shipping && foldstream show shipping
  foldstream outbox retry shipping --accept-lost")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Also accept that streams have lost messages that they had confirmed: `show` and `doctor` say so
    /// until then.
    #[arg(long)]
    accept_lost: bool,
}

/// Sends the request and prints what waits.
pub(super) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let path = ["v1", "deployments", &args.name, "outbox", "retry"];
    let mut query = Vec::new();
    if args.accept_lost {
        query.push(("accept-lost", "true".to_owned()));
    }
    let deployment: Deployment = context.client()?.act(&path, &query).await?;
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
