//! `foldstream timers fire|drop`: what an operator decides about a timer.

use reqwest::Method;

use crate::api::TimerChanged;
use crate::cli::Context;
use crate::cli::support::output::printable;

/// Which timer is meant.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Name of the timer, as it is listed.
    timer: String,
    /// Change nothing, and show which timer it would be.
    #[arg(long)]
    dry_run: bool,
}

/// Sends the request and prints the timer.
pub(crate) async fn run(args: Args, verb: &str, context: &Context) -> anyhow::Result<()> {
    let Args {
        name,
        timer,
        dry_run,
    } = args;
    let client = context.client()?;
    let query = [("timer", timer), ("dry-run", dry_run.to_string())];
    let path = ["v1", "deployments", &name, "timers", verb];
    let request = client.request(Method::POST, &path).query(&query);
    let changed: TimerChanged = client.answer_of(request).await?;
    context
        .output
        .one(&changed, |changed| line_of(&name, verb, changed))?;
    if changed.waits {
        context.output.note(&format!(
            "events of its key are parked, so it waits until they are retried or dropped \
             (`foldstream parked list {name}`)"
        ));
    }
    Ok(())
}

fn line_of(name: &str, verb: &str, changed: &TimerChanged) -> String {
    let (timer, at) = (printable(&changed.timer.name), &changed.timer.at);
    match changed.sequence {
        None => format!("would {verb} timer {timer}, which is due at {at}"),
        Some(sequence) => {
            format!(
                "timer {timer}, due at {at}: {name} {verb}s it at event {sequence}, unless an earlier \
                 event settles it first"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PendingTimer;

    #[test]
    fn a_dry_run_says_would() {
        let mut changed = TimerChanged {
            timer: PendingTimer {
                name: "tea".to_owned(),
                at: "2026-11-23T10:00:00.000000000Z".to_owned(),
                set_by: 7,
                key: None,
            },
            sequence: None,
            waits: false,
        };
        let text = line_of("kitchen", "drop", &changed);
        assert!(text.starts_with("would drop timer tea"), "{text}");
        changed.sequence = Some(9);
        let text = line_of("kitchen", "fire", &changed);
        assert!(
            text.contains("kitchen fires it at event 9, unless"),
            "{text}"
        );
    }
}
