//! `foldstream sagas list`: the instances of sagas, and what they wait for.

use crate::api::{SagaInstance, SagaInstances, SagaStatus};
use crate::cli::Context;
use crate::cli::support::output::table;
use crate::cli::support::pages::{PageArgs, note_end};

/// Show the instances of sagas. In each status and step, the ones that have waited longest come
/// first.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream sagas list orders
  foldstream sagas list orders --status running --step payment
  foldstream sagas list orders --status stuck -o ndjson | jq -r .key
  foldstream get orders saga/order-fulfilment/1001      # all that is known of one instance

Without --status, instances that have ended are left out. `foldstream show` counts the others.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Only instances of this saga.
    #[arg(long, value_name = "NAME")]
    saga: Option<String>,
    /// Only instances with this status.
    #[arg(long, value_name = "STATUS", value_parser = ["running", "compensating", "stuck", "completed", "compensated"])]
    status: Option<String>,
    /// Only instances in this step.
    #[arg(long, value_name = "STEP")]
    step: Option<String>,
    #[command(flatten)]
    page: PageArgs,
}

/// Prints one line per instance.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut query = args.page.query();
    query.extend(args.saga.map(|saga| ("saga", saga)));
    query.extend(args.status.map(|status| ("status", status)));
    query.extend(args.step.map(|step| ("step", step)));
    let page: SagaInstances = context
        .client()?
        .get(&["v1", "deployments", &args.name, "sagas"], &query)
        .await?;
    context.output.many(&page.instances, &page, lines)?;
    note_end(
        context.output,
        &page.instances,
        page.next.as_deref(),
        "no instances",
    );
    Ok(())
}

/// A table of instances.
fn lines(instances: &[SagaInstance]) -> String {
    let rows = instances.iter().map(|instance| {
        vec![
            instance.saga.clone(),
            instance.key.clone(),
            instance.status.name().to_owned(),
            instance.step.clone().unwrap_or("-".to_owned()),
            instance.since.clone(),
            match (instance.attempt, instance.status) {
                (0, _) | (_, SagaStatus::Stuck) => "-".to_owned(),
                (attempt, _) => attempt.to_string(),
            },
            instance.due.clone().unwrap_or("-".to_owned()),
            match instance.reason.as_str() {
                "" => "-".to_owned(),
                reason => reason.to_owned(),
            },
        ]
    });
    table(
        &[
            "SAGA", "KEY", "STATUS", "STEP", "SINCE", "ATTEMPT", "DUE", "REASON",
        ],
        rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_rows() {
        let waiting = SagaInstance {
            saga: "orders".to_owned(),
            key: "1001".to_owned(),
            status: SagaStatus::Running,
            step: Some("payment".to_owned()),
            since: "2026-11-23T10:00:00Z".to_owned(),
            started: "2026-11-23T10:00:00Z".to_owned(),
            attempt: 2,
            due: Some("2026-11-23T10:30:00Z".to_owned()),
            reason: String::new(),
        };
        let stuck = SagaInstance {
            status: SagaStatus::Stuck,
            due: None,
            reason: "payment could not be undone: refund-refused".to_owned(),
            ..waiting.clone()
        };
        assert_eq!(
            lines(&[waiting, stuck]),
            "\
SAGA    KEY   STATUS   STEP     SINCE                 ATTEMPT  DUE                   REASON
orders  1001  running  payment  2026-11-23T10:00:00Z  2        2026-11-23T10:30:00Z  -
orders  1001  stuck    payment  2026-11-23T10:00:00Z  -        -                     payment could not be undone: refund-refused"
        );
    }
}
