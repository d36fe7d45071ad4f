//! `foldstream deploy`: deploys a module.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;

use crate::api::{DeployOutcome, Deployed, Deployment, EffectsFrom};
use crate::cli::Context;
use crate::cli::support::candidate::CandidateArgs;
use crate::cli::support::client::{Client, UPLOAD_TIMEOUT};
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::failed;
use crate::cli::support::output::{Output, grouped};
use crate::cli::support::wait_for_cut_over;
use crate::cli::support::wait_until_live;
use crate::lanes::Lanes;
use crate::overview::missing_remark;

/// Largest file to read, in bytes; the host has its own, lower limit.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// The first bytes of every WebAssembly file.
const MAGIC: &[u8] = b"\0asm";

/// Deploy a module under a name, and build its read model from the stream.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream deploy order-totals.wasm
  foldstream deploy order-totals.wasm --wait --timeout 10min
  foldstream deploy order-totals.wasm --name totals-next --source orders
  foldstream deploy order-totals.wasm --start first-available
  foldstream deploy order-totals.wasm --accept-missing
  foldstream deploy order-totals.wasm --check-events on
  foldstream deploy order-totals.wasm --strategy rebuild --require-equal --wait
  foldstream deploy order-totals.wasm --manual --compare --max-rate 50000
  foldstream deploy order-totals.wasm --rules expected.toml --sample 10000
  foldstream deploy order-totals.wasm --lanes auto
  foldstream deploy shipping.wasm --allow-publish 'shipping.*.cmd@orders'
  foldstream deploy shipping.wasm --allow-publish 'shipping.>@orders' --effects-from beginning

Deploying the same module again changes nothing. If the deployment has another module with the \
same state version and subjects, the new one inherits its read model. Otherwise the host builds \
a new read model alongside the active generation, which takes over when it has caught up.")]
pub(crate) struct Args {
    /// The module, as `foldstream build` writes it.
    file: PathBuf,
    /// Name of the deployment; default: the module's own.
    #[arg(long)]
    name: Option<String>,
    /// Source to read; default: that of the existing deployment, or the only one.
    #[arg(long)]
    source: Option<String>,
    /// Where a new read model begins; default: where that of the existing deployment began, or
    /// sequence 1.
    #[arg(long, value_enum)]
    start: Option<Start>,
    /// How to build the read model; by default the host decides and says why.
    #[arg(long, value_enum)]
    strategy: Option<Strategy>,
    /// Continue without events that are gone from the stream, up to its current end; the host
    /// counts them.
    #[arg(long)]
    accept_missing: bool,
    /// What happens to an event that has used up its attempts; default: as before, or `stop` for a
    /// new deployment.
    /// `park` sets it aside with later events of its key, and continues with other keys.
    #[arg(long, value_name = "WHAT")]
    on_failure: Option<OnFailure>,
    /// Retry what an earlier module has parked, once this one continues its state.
    #[arg(long)]
    retry_parked: bool,
    /// Publish an event for each event that is parked, such as to `ops.failures@orders`; '' stops
    /// that.
    #[arg(long, value_name = "SUBJECT@SOURCE")]
    failure_events: Option<String>,
    /// Fold a projection with a key rule in this many lanes, each with its own instance, thread and
    /// keys, with the same result; `auto` is one for each core, at most 4. Default: as before, or as
    /// the configuration says.
    #[arg(long, value_name = "N|auto")]
    lanes: Option<Lanes>,
    /// Check events, and what a handler publishes, against the schemas that the module carries; an
    /// event that does not fit fails as one does that the module rejects. Default: as before, or
    /// `off` for a new deployment.
    #[arg(long, value_name = "WHETHER")]
    check_events: Option<CheckEvents>,
    #[command(flatten)]
    effects: EffectsArgs,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    candidate: CandidateArgs,
}

/// What a handler may publish, and for which events.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct EffectsArgs {
    /// Let a handler publish under these subjects to the stream of a source; repeat it for more. It
    /// replaces earlier grants; an empty text withdraws them. Without it, a new handler may publish
    /// nothing.
    #[arg(long, value_name = "SUBJECTS@SOURCE")]
    allow_publish: Option<Vec<String>>,
    /// From which event on a new handler publishes: `now` for events after this deploy,
    /// `beginning`, or a sequence; default: now. It handles the events before that as well, without
    /// publishing.
    #[arg(long, value_name = "EVENT")]
    effects_from: Option<EffectsFrom>,
}

impl EffectsArgs {
    /// As API parameters.
    pub(crate) fn parameters(&self) -> Vec<(&'static str, String)> {
        let from = self
            .effects_from
            .map(|from| ("effects-from", effects_from(from)));
        self.later_parameters().into_iter().chain(from).collect()
    }

    /// The same for a deployment that exists: from which event on it publishes was decided once, by
    /// the first deploy.
    pub(crate) fn later_parameters(&self) -> Vec<(&'static str, String)> {
        let grants = self
            .allow_publish
            .as_ref()
            .map(|grants| ("allow-publish", grants.join(",")));
        grants.into_iter().collect()
    }
}

/// Whether to wait, and for how long.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct Waiting {
    /// Wait until the deployment has caught up and is active (with --manual: ready), or has failed.
    #[arg(long)]
    wait: bool,
    /// Longest wait, such as `30s` or `10min`; default: no limit.
    #[arg(long, value_name = "DURATION", requires = "wait")]
    timeout: Option<humantime::Duration>,
}

/// What happens to an event that has used up its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnFailure {
    /// The deployment stops at the event.
    Stop,
    /// The event is parked: later events of its key wait behind it, and other keys continue.
    Park,
}

impl OnFailure {
    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Park => "park",
        }
    }
}

/// Whether events are checked against the schemas that a module carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CheckEvents {
    /// From the deploy on, or from the first event if the read model is rebuilt.
    On,
    /// No longer.
    Off,
}

impl CheckEvents {
    fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// Where a new read model begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Start {
    /// At sequence 1; refused if the stream no longer has it.
    Beginning,
    /// At the first event that the stream still has; the read model lacks the earlier ones.
    FirstAvailable,
}

impl Start {
    fn name(self) -> &'static str {
        match self {
            Self::Beginning => "beginning",
            Self::FirstAvailable => "first-available",
        }
    }
}

/// How a module's read model is created if the deployment already has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Strategy {
    /// Fold the stream again, alongside the active generation.
    Rebuild,
    /// Take over the active state as it is; both versions must store the same.
    Inherit,
    /// Convert the entries of the active state with the module's own `migrate`.
    Migrate,
}

impl Strategy {
    fn name(self) -> &'static str {
        match self {
            Self::Rebuild => "rebuild",
            Self::Inherit => "inherit",
            Self::Migrate => "migrate",
        }
    }
}

/// Parameters of a deploy; the host decides what is absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    /// Name; absent: the module's.
    pub name: Option<String>,
    /// Source; absent: that of the existing deployment, or the only one.
    pub source: Option<String>,
    /// Where a new read model begins.
    pub start: Option<Start>,
    /// How it is created.
    pub strategy: Option<Strategy>,
    /// How to build a candidate, as API parameters.
    pub candidate: Vec<(&'static str, String)>,
}

/// Uploads the module and prints the outcome.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut candidate = args.candidate.parameters()?;
    candidate.extend(args.accept_missing.then(accept_missing));
    candidate.extend(args.effects.parameters());
    candidate.extend(
        args.on_failure
            .map(|what| ("on-failure", what.name().to_owned())),
    );
    candidate.extend(
        args.retry_parked
            .then(|| ("retry-parked", "true".to_owned())),
    );
    candidate.extend(args.lanes.map(|lanes| ("lanes", lanes.to_string())));
    candidate.extend(
        args.check_events
            .map(|whether| ("check-events", whether.name().to_owned())),
    );
    candidate.extend(args.failure_events.map(|place| ("failure-events", place)));
    let module = read_module(&args.file)?;
    let client = context.client()?;
    let Args {
        name,
        source,
        start,
        strategy,
        waiting,
        ..
    } = args;
    let request = Request {
        name,
        source,
        start,
        strategy,
        candidate,
    };
    let deployed = upload(&client, module, &request).await?;
    show_outcome(deployed, waiting, &client, context.output).await
}

/// The event from which a handler publishes, as the API takes it.
pub(crate) fn effects_from(from: EffectsFrom) -> String {
    match from {
        EffectsFrom::Now => "now".to_owned(),
        EffectsFrom::Beginning => "beginning".to_owned(),
        EffectsFrom::Sequence(sequence) => sequence.to_string(),
    }
}

/// The parameter that accepts missing events.
pub(crate) fn accept_missing() -> (&'static str, String) {
    ("accept-missing", "true".to_owned())
}

/// Prints what a deploy or rebuild started; with `--wait`, waits for its end and prints that.
pub(crate) async fn show_outcome(
    deployed: Deployed,
    waiting: Waiting,
    client: &Client,
    output: Output,
) -> anyhow::Result<()> {
    if waiting.wait {
        // To standard error: scripts get one object on standard output, that of the end.
        output.note(&describe(&deployed));
    } else {
        output.one(&deployed, describe)?;
    }
    for warning in &deployed.warnings {
        output.warning(warning);
    }
    if !waiting.wait {
        return Ok(());
    }
    let deployment = match settled(client, &deployed, waiting.timeout.map(Into::into), output).await
    {
        Ok(deployment) => deployment,
        Err(error) => {
            show_failed(client, deployed, &error, output).await?;
            return Err(error);
        }
    };
    let generation = deployed.generation;
    output.one(
        &Deployed {
            deployment,
            ..deployed
        },
        |deployed| end_line(&deployed.deployment, generation),
    )?;
    Ok(())
}

/// Prints for programs how the deployment is after a wait that failed.
async fn show_failed(
    client: &Client,
    deployed: Deployed,
    error: &anyhow::Error,
    output: Output,
) -> anyhow::Result<()> {
    // A host that does not answer says nothing about it.
    if let Ok(deployment) = client.deployment(&deployed.deployment.name).await {
        let now = Deployed {
            deployment,
            ..deployed
        };
        failed::show(&now, error, output)?;
    }
    Ok(())
}

/// Waits until the new generation is active and has caught up, or is ready if it waits for a
/// promotion.
pub(crate) async fn settled(
    client: &Client,
    deployed: &Deployed,
    timeout: Option<Duration>,
    output: Output,
) -> anyhow::Result<Deployment> {
    let meant = (deployed.deployment.name.as_str(), deployed.generation);
    match deployed.outcome {
        DeployOutcome::Rebuilding | DeployOutcome::Migrating => {
            wait_for_cut_over::wait(client, meant, timeout, output).await
        }
        // The same module again, which is still the candidate.
        DeployOutcome::Unchanged if deployed.generation != deployed.deployment.generation => {
            wait_for_cut_over::wait(client, meant, timeout, output).await
        }
        DeployOutcome::Inherited => {
            wait_for_cut_over::wait_inherited(client, meant, timeout, output).await
        }
        DeployOutcome::Created | DeployOutcome::Unchanged => {
            wait_until_live::wait(client, meant.0, timeout, output).await
        }
    }
}

/// The outcome, in one line.
pub(crate) fn end_line(deployment: &Deployment, generation: u64) -> String {
    let name = &deployment.name;
    match &deployment.candidate {
        Some(candidate) if candidate.number == generation => format!(
            "{name}: generation {generation} is ready at position {}{}; `foldstream promote {name}` \
             makes it active",
            grouped(candidate.position),
            missing_remark(candidate.missing_events)
        ),
        _ => format!(
            "{name}: {} at position {}{}",
            deployment.state.name(),
            grouped(deployment.position),
            missing_remark(deployment.missing_events)
        ),
    }
}

/// Reads a module, and refuses a file that clearly is not one before uploading it.
pub(crate) fn read_module(file: &Path) -> anyhow::Result<Bytes> {
    let shown = file.display();
    let refused = |message: String| Failure::new(Exit::Refused, message);
    let metadata = std::fs::metadata(file).map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound {
            Exit::NotFound
        } else {
            Exit::Failed
        };
        Failure::new(
            exit,
            format!("cannot read {shown}: {error}; `foldstream build` creates a module"),
        )
    })?;
    if metadata.is_dir() {
        return Err(refused(format!(
            "{shown} is a folder; build it first: foldstream build {shown}"
        ))
        .into());
    }
    let unreadable =
        |error: io::Error| Failure::new(Exit::Failed, format!("cannot read {shown}: {error}"));
    // Its beginning first: a large file of another kind need not be read.
    let mut content = File::open(file).map_err(unreadable)?;
    let mut module = Vec::new();
    content
        .by_ref()
        .take(MAGIC.len() as u64)
        .read_to_end(&mut module)
        .map_err(unreadable)?;
    if module != MAGIC {
        return Err(refused(format!(
            "{shown} is not a WebAssembly file; `foldstream build` creates one from a crate"
        ))
        .into());
    }
    // The size in the metadata does not count, because pipes and devices have none.
    let read = content
        .take(FILE_BYTES_MAX)
        .read_to_end(&mut module)
        .map_err(unreadable)?;
    // Reading ends at the limit, so this file may be longer.
    if read as u64 == FILE_BYTES_MAX {
        return Err(refused(format!(
            "{shown} has more than {FILE_BYTES_MAX} bytes, too many for a module"
        ))
        .into());
    }
    Ok(module.into())
}

/// Sends a module to the host.
pub(crate) async fn upload(
    client: &Client,
    module: Bytes,
    request: &Request,
) -> Result<Deployed, crate::cli::support::client::Error> {
    let content = ("application/wasm", module);
    client
        .post(
            &["v1", "deployments"],
            &parameters(request),
            content,
            UPLOAD_TIMEOUT,
        )
        .await
}

fn parameters(request: &Request) -> Vec<(&'static str, String)> {
    let named = [
        ("name", request.name.clone()),
        ("source", request.source.clone()),
        ("start", request.start.map(|start| start.name().to_owned())),
        (
            "strategy",
            request.strategy.map(|strategy| strategy.name().to_owned()),
        ),
    ];
    let given = named
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| (name, value)));
    given.chain(request.candidate.iter().cloned()).collect()
}

/// What a deploy did, and why, in one line.
pub(crate) fn describe(deployed: &Deployed) -> String {
    let deployment = &deployed.deployment;
    let outcome = match deployed.outcome {
        DeployOutcome::Created => "created",
        DeployOutcome::Unchanged => "unchanged",
        DeployOutcome::Inherited => "inherited the active read model",
        DeployOutcome::Rebuilding => {
            "rebuilding alongside the active generation, into a new and compact file"
        }
        DeployOutcome::Migrating => "migrating alongside the active generation",
    };
    let compiled = match deployed.compile_ms {
        0 => String::new(),
        milliseconds => format!(", compiled in {milliseconds} ms"),
    };
    // For a new name there is no other reason to give.
    let reason = match deployed.outcome {
        DeployOutcome::Created => deployment
            .outbox
            .as_ref()
            .filter(|outbox| !outbox.grants.is_empty())
            .map(|outbox| format!("; it may publish {}", outbox.grants.join(", ")))
            .unwrap_or_default(),
        _ => format!(": {}", deployed.reason),
    };
    format!(
        "{}: {outcome} (generation {}, source {}{compiled}){reason}",
        deployment.name, deployed.generation, deployment.source
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployed(outcome: DeployOutcome, reason: &str) -> Deployed {
        let deployment = super::super::show::tests::deployment();
        Deployed {
            deployment,
            outcome,
            generation: 3,
            reason: reason.to_owned(),
            compile_ms: 0,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn outcome_is_reported_in_one_line_with_its_reason() {
        let created = Deployed {
            compile_ms: 48,
            ..deployed(DeployOutcome::Created, "the name is new")
        };
        assert_eq!(
            describe(&created),
            "order-totals: created (generation 3, source events, compiled in 48 ms)"
        );
        assert_eq!(
            describe(&deployed(
                DeployOutcome::Unchanged,
                "generation 3 has this module, and is active"
            )),
            "order-totals: unchanged (generation 3, source events): generation 3 has this module, \
             and is active"
        );
        assert_eq!(
            describe(&deployed(
                DeployOutcome::Inherited,
                "both modules have state version 1"
            )),
            "order-totals: inherited the active read model (generation 3, source events): both \
             modules have state version 1"
        );
        assert_eq!(
            describe(&deployed(
                DeployOutcome::Rebuilding,
                "state version 2 instead of 1"
            )),
            "order-totals: rebuilding alongside the active generation, into a new and compact file \
             (generation 3, source events): state version 2 instead of 1"
        );
    }

    #[test]
    fn what_is_left_out_is_left_to_the_host() {
        assert_eq!(parameters(&Request::default()), []);
        let request = Request {
            start: Some(Start::FirstAvailable),
            strategy: Some(Strategy::Migrate),
            candidate: vec![("promote", "manual".to_owned())],
            ..Request::default()
        };
        let wanted = [
            ("start", "first-available"),
            ("strategy", "migrate"),
            ("promote", "manual"),
        ];
        assert_eq!(
            parameters(&request),
            wanted.map(|(name, value)| (name, value.to_owned()))
        );
    }

    #[test]
    fn end_names_the_active_generation_or_the_one_that_is_ready() {
        let mut deployment = super::super::show::tests::deployment();
        assert_eq!(
            end_line(&deployment, 2),
            "order-totals: catching-up at position 400,000"
        );
        deployment.candidate = Some(Box::new(
            crate::cli::commands::rollouts::generations::tests::generation(),
        ));
        assert_eq!(
            end_line(&deployment, 3),
            "order-totals: generation 3 is ready at position 400,000; `foldstream promote \
             order-totals` makes it active"
        );
    }

    #[test]
    fn what_is_no_module_is_not_sent() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("text.wasm");
        std::fs::write(&file, "no module").expect("write");
        let said = read_module(&file).expect_err("is no module").to_string();
        assert!(
            said.ends_with(
                "is not a WebAssembly file; `foldstream build` creates one from a crate"
            ),
            "{said}"
        );
        let said = read_module(folder.path())
            .expect_err("is a folder")
            .to_string();
        assert!(
            said.contains("is a folder; build it first: foldstream build "),
            "{said}"
        );
        let error = read_module(&folder.path().join("missing.wasm")).expect_err("is missing");
        assert_eq!(crate::cli::support::exit::exit_of(&error), Exit::NotFound);
    }
}
