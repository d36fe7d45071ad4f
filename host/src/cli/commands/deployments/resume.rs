//! `foldstream resume`.

use std::time::Duration;

use anyhow::Context as _;

use crate::api::{
    Deployment, DeploymentList, DeploymentState, Generation, GenerationList, GenerationStatus,
    Resume,
};
use crate::cli::Context;
use crate::cli::support::client::Client;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::failed;
use crate::cli::support::output::{grouped, table};
use crate::cli::support::wait_for_cut_over::ended;
use crate::cli::support::wait_until_live;

/// Longest wait for the response: a module may be in the middle of a batch, which it finishes
/// first.
const TIMEOUT: Duration = Duration::from_secs(75);

/// Continue after a pause, or try again after a failure, with or without the event that cannot be
/// folded.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream resume order-totals
  foldstream resume order-totals --candidate
  foldstream resume order-totals --accept-missing   # after source-gap: without events that are gone
  foldstream resume order-totals --skip 17 --reason 'not JSON, ticket 4711'
  foldstream resume order-totals --candidate --skip 17 --reason 'not JSON, ticket 4711'
  foldstream resume --all
  foldstream resume --all --skip 17 --reason 'not JSON, ticket 4711'

A skipped event is left out of the state for good, also by restarts, rollbacks, rebuilds, verify \
and as-of reads. `foldstream skips` lists the skipped events with their reasons, and withdraws a \
decision for states that are built from scratch.")]
pub(crate) struct Args {
    /// Name of the deployment.
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    /// All deployments that a failure stopped; with --skip, those that stopped at one of these
    /// events. Paused deployments stay paused.
    #[arg(long, conflicts_with_all = ["name", "candidate"])]
    all: bool,
    /// With --all: only deployments that read this source.
    #[arg(long, requires = "all", conflicts_with = "name")]
    source: Option<String>,
    /// Continue the candidate instead, after a pause or at the event that stopped it.
    #[arg(long)]
    candidate: bool,
    /// Skip this event: the failing one, or a later one; may be repeated.
    #[arg(long, value_name = "SEQUENCE", requires = "reason")]
    skip: Vec<u64>,
    /// The reason, for the audit log and for everyone who asks later.
    #[arg(long, value_name = "TEXT", requires = "skip")]
    reason: Option<String>,
    /// Continue without events that are gone from the stream, up to its current end; the host
    /// counts them.
    #[arg(long)]
    accept_missing: bool,
}

/// Sends the request and prints the outcome.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let Some(name) = args.name.clone() else {
        return all(&args, &client, context).await;
    };
    let wanted = Resume {
        skip: args.skip.clone(),
        reason: args.reason.clone(),
    };
    let deployment = resume(&client, &name, &parameters(&args), &wanted).await?;
    let outcome = if args.candidate {
        candidate_outcome(&client, &deployment).await
    } else {
        wait_until_live::outcome(&deployment).map_err(Into::into)
    };
    let mut line = match outcome {
        Ok(line) => line,
        Err(error) => {
            failed::show(&deployment, &error, context.output)?;
            return Err(error);
        }
    };
    if !args.skip.is_empty() {
        let named: Vec<String> = args.skip.iter().map(u64::to_string).collect();
        line.push_str(&format!("; skips {}", named.join(", ")));
    }
    context.output.one(&deployment, |_| line)?;
    Ok(())
}

/// What became of a candidate that was resumed, in one line; an error if it failed.
async fn candidate_outcome(client: &Client, deployment: &Deployment) -> anyhow::Result<String> {
    if let Some(candidate) = &deployment.candidate {
        return Ok(continues(&deployment.name, candidate)?);
    }
    // It is none any more: only the list says why.
    let path = ["v1", "deployments", &deployment.name, "generations"];
    let list: GenerationList = client.get(&path, &[]).await?;
    let newest = list
        .generations
        .iter()
        .max_by_key(|generation| generation.number);
    let newest = newest.context("the host lists no generation")?;
    if newest.status != GenerationStatus::Active {
        return Err(ended(&deployment.name, newest).into());
    }
    Ok(format!(
        "{}: generation {} took over",
        deployment.name, newest.number
    ))
}

/// How a candidate continues; an error if it failed.
fn continues(name: &str, candidate: &Generation) -> Result<String, Failure> {
    let number = candidate.number;
    let mut line = match candidate.position {
        0 => format!("{name}: generation {number} continues"),
        position => {
            let position = grouped(position);
            format!("{name}: generation {number} continues at position {position}")
        }
    };
    if let Some(failure) = &candidate.failure {
        let why = format!("{}: {}", failure.kind, failure.message);
        if candidate.state == Some(DeploymentState::Failed) {
            let message = format!("generation {number} of {name} failed: {why}");
            return Err(Failure::new(Exit::Failed, message));
        }
        line.push_str(&format!(", nothing applied yet ({why})"));
    }
    Ok(line)
}

fn parameters(args: &Args) -> Vec<(&'static str, String)> {
    let mut parameters = Vec::new();
    parameters.extend(args.candidate.then(|| ("candidate", "true".to_owned())));
    parameters.extend(args.accept_missing.then(super::deploy::accept_missing));
    parameters
}

async fn resume(
    client: &Client,
    name: &str,
    parameters: &[(&'static str, String)],
    wanted: &Resume,
) -> anyhow::Result<Deployment> {
    let path = ["v1", "deployments", name, "resume"];
    if wanted.skip.is_empty() {
        return Ok(client.act(&path, parameters).await?);
    }
    let body = serde_json::to_vec(wanted).context("cannot write the request as JSON")?;
    Ok(client
        .post(
            &path,
            parameters,
            ("application/json", body.into()),
            TIMEOUT,
        )
        .await?)
}

/// Resumes all failed deployments, one after another. Fails if one of them can't be resumed, or
/// failed again.
async fn all(args: &Args, client: &Client, context: &Context) -> anyhow::Result<()> {
    let list: DeploymentList = client.get(&["v1", "deployments"], &[]).await?;
    let chosen = chosen(&list.deployments, args)?;
    let (mut resumed, mut failures) = (Vec::new(), Vec::new());
    for deployment in chosen {
        let failed_at = deployment
            .failure
            .as_ref()
            .and_then(|failure| failure.sequence);
        // Each skips only the event that it has failed at: another one may be able to fold the
        // events at which its siblings failed.
        let skip = args
            .skip
            .iter()
            .copied()
            .filter(|sequence| Some(*sequence) == failed_at)
            .collect();
        let wanted = Resume {
            skip,
            reason: args.reason.clone(),
        };
        match resume(client, &deployment.name, &parameters(args), &wanted).await {
            Ok(now) => {
                failures.extend(wait_until_live::outcome(&now).err());
                resumed.push(now);
            }
            Err(error) => {
                let message = format!("{}: {error}", deployment.name);
                failures.push(Failure::new(Exit::Refused, message));
            }
        }
    }
    let shown = DeploymentList {
        deployments: resumed,
    };
    context.output.many(&shown.deployments, &shown, lines)?;
    let paused: Vec<&str> = list
        .deployments
        .iter()
        .filter(|deployment| deployment.state == DeploymentState::Paused)
        .map(|deployment| deployment.name.as_str())
        .collect();
    if !paused.is_empty() {
        context.output.note(&format!(
            "still paused by an operator: {}",
            paused.join(", ")
        ));
    }
    all_of(failures).map_err(Into::into)
}

/// One failure for all. A refusal decides the exit code, because it says that a request changed
/// nothing.
fn all_of(failures: Vec<Failure>) -> Result<(), Failure> {
    let is_refused = |failure: &Failure| failure.exit == Exit::Refused;
    let exit = match failures.iter().any(is_refused) {
        true => Exit::Refused,
        false => Exit::Failed,
    };
    let messages: Vec<String> = failures
        .into_iter()
        .map(|failure| failure.message)
        .collect();
    match messages.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(exit, messages.join("\n"))),
    }
}

fn chosen<'a>(deployments: &'a [Deployment], args: &Args) -> Result<Vec<&'a Deployment>, Failure> {
    let is_meant = |deployment: &&Deployment| {
        let failed_at = deployment
            .failure
            .as_ref()
            .and_then(|failure| failure.sequence);
        let is_at_event = failed_at.is_some_and(|sequence| args.skip.contains(&sequence));
        let is_of_source = args
            .source
            .as_ref()
            .is_none_or(|source| deployment.source == *source);
        let is_stopped = deployment.state == DeploymentState::Failed;
        is_stopped && is_of_source && (args.skip.is_empty() || is_at_event)
    };
    let chosen: Vec<&Deployment> = deployments.iter().filter(is_meant).collect();
    if args.skip.is_empty() {
        return Ok(chosen);
    }
    let Some(first) = chosen.first() else {
        let message =
            "no deployment has failed at these events; `foldstream list` shows which have failed";
        return Err(Failure::new(Exit::NotFound, message));
    };
    if let Some(other) = chosen.iter().find(|other| other.source != first.source) {
        let message = format!(
            "{} reads {} and {} reads {}, where the same sequence is another event; choose one \
             with --source",
            first.name, first.source, other.name, other.source
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    Ok(chosen)
}

fn lines(deployments: &[Deployment]) -> String {
    let row = |deployment: &Deployment| {
        vec![
            deployment.name.clone(),
            deployment.state.name().to_owned(),
            grouped(deployment.position),
        ]
    };
    table(
        &["DEPLOYMENT", "STATE", "POSITION"],
        deployments.iter().map(row),
    )
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::super::show::tests::deployment;
    use super::*;
    use crate::api;

    fn args(typed: &[&str]) -> Args {
        let command = Args::augment_args(clap::Command::new("test"));
        let matches = command
            .try_get_matches_from([&["test"], typed].concat())
            .expect("is accepted");
        Args::from_arg_matches(&matches).expect("is whole")
    }

    fn failed(name: &str, source: &str, sequence: u64) -> Deployment {
        let failure = api::Failure {
            kind: "rejected".to_owned(),
            class: None,
            message: String::new(),
            sequence: Some(sequence),
            first_at: String::new(),
            attempts: 1,
            next_attempt_at: None,
            breaker_open: false,
        };
        let (name, source) = (name.to_owned(), source.to_owned());
        Deployment {
            name,
            source,
            state: DeploymentState::Failed,
            failure: Some(failure),
            ..deployment()
        }
    }

    #[test]
    fn all_means_those_that_failed_and_with_an_event_those_that_failed_there() {
        let all = [
            failed("a", "x", 5),
            failed("b", "x", 5),
            failed("c", "x", 9),
            deployment(),
        ];
        let names = |typed: &[&str]| -> Result<Vec<String>, Exit> {
            let chosen = chosen(&all, &args(typed)).map_err(|failure| failure.exit)?;
            Ok(chosen
                .iter()
                .map(|deployment| deployment.name.clone())
                .collect())
        };
        assert_eq!(
            names(&["--all"]),
            Ok(["a", "b", "c"].map(str::to_owned).to_vec())
        );
        assert_eq!(
            names(&["--all", "--skip", "5", "--reason", "r"]),
            Ok(["a", "b"].map(str::to_owned).to_vec())
        );
        assert_eq!(
            names(&["--all", "--skip", "6", "--reason", "r"]),
            Err(Exit::NotFound)
        );
    }

    #[test]
    fn one_sequence_of_two_sources_is_two_events() {
        let all = [failed("a", "x", 5), failed("b", "y", 5)];
        let typed = ["--all", "--skip", "5", "--reason", "r"];
        assert_eq!(
            chosen(&all, &args(&typed))
                .expect_err("which is meant?")
                .exit,
            Exit::Usage
        );
        let typed = [&typed[..], &["--source", "y"]].concat();
        assert_eq!(
            chosen(&all, &args(&typed)).expect("one is named")[0].name,
            "b"
        );
    }
}
