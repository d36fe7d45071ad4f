//! `foldstream throttle`.

use clap::ArgGroup;

use crate::api::Deployment;
use crate::cli::Context;
use crate::cli::support::candidate::ThrottleArgs;
use crate::cli::support::output::grouped;

/// Change how fast the candidate of a deployment is built.
#[derive(Clone, Debug, clap::Args)]
#[command(
    group = ArgGroup::new("limits").args(["max_rate", "cpu", "off"]).required(true).multiple(true),
    before_help = "\
Examples:
  foldstream throttle order-totals --max-rate 20000
  foldstream throttle order-totals --cpu 25
  foldstream throttle order-totals --off

A limit that you leave out is removed."
)]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    #[command(flatten)]
    throttle: ThrottleArgs,
    /// Remove all limits.
    #[arg(long, conflicts_with_all = ["max_rate", "cpu"])]
    off: bool,
}

/// Sends the request and prints the outcome.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let path = ["v1", "deployments", &args.name, "throttle"];
    let deployment: Deployment = context
        .client()?
        .act(&path, &args.throttle.parameters())
        .await?;
    context.output.one(&deployment, line)?;
    Ok(())
}

fn line(deployment: &Deployment) -> String {
    let name = &deployment.name;
    // It may have taken over meanwhile.
    let Some(candidate) = &deployment.candidate else {
        return format!("{name}: generation {} is active", deployment.generation);
    };
    let rate = candidate
        .build
        .max_rate
        .map(|rate| format!("{} events per second", grouped(rate)));
    let share = candidate
        .build
        .cpu_percent
        .map(|percent| format!("{percent} % of a core"));
    let limits: Vec<String> = rate.into_iter().chain(share).collect();
    let number = candidate.number;
    if limits.is_empty() {
        return format!("{name}: generation {number} is built without limits");
    }
    format!(
        "{name}: generation {number} is built with at most {}",
        limits.join(" and ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::BuildSettings;

    #[test]
    fn limits_are_reported_as_they_are_now() {
        let told = |max_rate, cpu_percent| {
            let build = BuildSettings {
                max_rate,
                cpu_percent,
                ..BuildSettings::default()
            };
            let candidate = crate::api::Generation {
                build,
                ..super::super::generations::tests::generation()
            };
            line(&Deployment {
                candidate: Some(Box::new(candidate)),
                ..crate::cli::commands::deployments::show::tests::deployment()
            })
        };
        let begin = "order-totals: generation 3 is built";
        assert_eq!(
            told(Some(20_000), Some(25)),
            format!("{begin} with at most 20,000 events per second and 25 % of a core")
        );
        assert_eq!(
            told(None, Some(25)),
            format!("{begin} with at most 25 % of a core")
        );
        assert_eq!(told(None, None), format!("{begin} without limits"));
    }
}
