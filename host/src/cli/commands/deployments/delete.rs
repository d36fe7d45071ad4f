//! `foldstream delete`.

use std::io::{BufRead as _, IsTerminal as _};

use reqwest::Method;
use serde_json::json;

use crate::cli::Context;
use crate::cli::support::client::UPLOAD_TIMEOUT;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{Format, bytes};

/// Remove a deployment and its state. The events are kept.
#[derive(Clone, Debug, clap::Args)]
#[command(
    visible_alias = "rm",
    before_help = "\
Examples:
  foldstream delete order-totals
  foldstream delete order-totals --yes"
)]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Delete a handler although messages wait in its outbox, or its state is lost and nobody knows
    /// whether any wait; they are never published.
    #[arg(long)]
    drop_effects: bool,
    /// Do not ask for confirmation.
    #[arg(short, long)]
    yes: bool,
}

/// Asks for confirmation and removes the deployment.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    if !args.yes {
        let deployment = client.deployment(&args.name).await?;
        confirm(&args.name, &bytes(deployment.file_bytes), context)?;
    }
    let request = client.request(Method::DELETE, &["v1", "deployments", &args.name]);
    let request = if args.drop_effects {
        request.query(&[("drop-effects", "true")])
    } else {
        request
    };
    client.send(request, UPLOAD_TIMEOUT).await?;
    match context.output.format {
        Format::Table => context.output.note(&format!("{}: deleted", args.name)),
        // Scripts that read an object get one.
        Format::Json | Format::Ndjson => {
            let done = json!({ "name": args.name, "deleted": true });
            context.output.one(&done, |_| String::new())?;
        }
    }
    Ok(())
}

fn confirm(name: &str, size: &str, context: &Context) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        let message = format!(
            "this removes {name} and its state ({size}); add --yes, because nobody can confirm it \
             here"
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    context.output.say(&format!(
        "This removes {name} and its state ({size}). Type its name to continue:"
    ));
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && answer.trim() == name {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Failed,
        "the name does not match; nothing was removed",
    ))
}
