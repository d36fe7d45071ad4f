//! `foldstream deploy`: puts a module into service.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::ValueEnum;

use super::client::{Client, UPLOAD_TIMEOUT};
use super::exit::{Exit, Failure};
use super::output::grouped;
use super::show::state_word;
use super::{Context, catching_up};
use crate::api::{DeployOutcome, Deployed};

/// Largest file that is read, in bytes; the host has a limit of its own, which is lower.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// What every WebAssembly file begins with.
const MAGIC: &[u8] = b"\0asm";

/// Put a module into service under a name, and build its read model from the stream.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream deploy order-totals.wasm
  foldstream deploy order-totals.wasm --wait --timeout 10min
  foldstream deploy order-totals.wasm --name totals-next --source orders
  foldstream deploy order-totals.wasm --start first-available

Deploying the same module again changes nothing; another module under a name replaces the one that runs there.")]
pub struct Args {
    /// The module, as `foldstream build` writes it.
    file: PathBuf,
    /// Name of the deployment; left out, the module's own.
    #[arg(long)]
    name: Option<String>,
    /// Source to read; left out, the only one.
    #[arg(long)]
    source: Option<String>,
    /// Where a new read model begins: at sequence 1, or at what the stream still has.
    #[arg(long, value_enum, default_value_t)]
    start: Start,
    /// Wait until it has caught up, or failed.
    #[arg(long)]
    wait: bool,
    /// Longest wait, such as `30s` or `10min`; left out, as long as it takes.
    #[arg(long, value_name = "DURATION", requires = "wait")]
    timeout: Option<humantime::Duration>,
}

/// Where a new read model begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Start {
    /// At sequence 1; refused where the stream no longer has it.
    #[default]
    Beginning,
    /// At the first event that the stream still has: the read model lacks what came before.
    FirstAvailable,
}

/// What a deployment is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Name; none takes the module's.
    pub name: Option<String>,
    /// Source; none takes the only one.
    pub source: Option<String>,
    /// Where a new read model begins.
    pub start: Start,
}

/// Uploads the module and tells what came of it.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let module = read_module(&args.file)?;
    let client = context.client()?;
    let request = Request { name: args.name, source: args.source, start: args.start };
    let mut deployed = upload(&client, module, &request).await?;
    if args.wait {
        let timeout = args.timeout.map(Into::into);
        context.output.note(&describe(&deployed));
        let name = deployed.deployment.name.clone();
        deployed.deployment = catching_up::wait(&client, &name, timeout, context.output).await?;
        context.output.one(&deployed, |deployed| {
            let deployment = &deployed.deployment;
            let (state, position) = (state_word(deployment.state), grouped(deployment.position));
            format!("{}: {state} at position {position}", deployment.name)
        })?;
        return Ok(());
    }
    context.output.one(&deployed, describe)?;
    Ok(())
}

/// Reads a module, and refuses what plainly is none before it is sent.
pub fn read_module(file: &Path) -> anyhow::Result<Bytes> {
    let shown = file.display();
    let refused = |message: String| Failure::new(Exit::Refused, message);
    let metadata = std::fs::metadata(file).map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        Failure::new(exit, format!("cannot read {shown}: {error}; `foldstream build` writes a module"))
    })?;
    if metadata.is_dir() {
        return Err(refused(format!("{shown} is a folder; build it first: foldstream build {shown}")).into());
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(refused(format!("{shown} has {} bytes, too many for a module", metadata.len())).into());
    }
    let module =
        std::fs::read(file).map_err(|error| Failure::new(Exit::Failed, format!("cannot read {shown}: {error}")))?;
    if !module.starts_with(MAGIC) {
        return Err(
            refused(format!("{shown} is no WebAssembly file; `foldstream build` makes one from a crate")).into()
        );
    }
    Ok(module.into())
}

/// Sends a module to the host.
pub async fn upload(client: &Client, module: Bytes, request: &Request) -> Result<Deployed, super::client::Error> {
    let mut parameters = Vec::new();
    parameters.extend(request.name.clone().map(|name| ("name", name)));
    parameters.extend(request.source.clone().map(|source| ("source", source)));
    let start = match request.start {
        Start::Beginning => "beginning",
        Start::FirstAvailable => "first-available",
    };
    parameters.push(("start", start.to_owned()));
    client.post(&["v1", "deployments"], &parameters, ("application/wasm", module), UPLOAD_TIMEOUT).await
}

/// What a deployment did, in one line.
pub fn describe(deployed: &Deployed) -> String {
    let deployment = &deployed.deployment;
    let outcome = match deployed.outcome {
        DeployOutcome::Created => "created",
        DeployOutcome::Unchanged => "unchanged",
        DeployOutcome::Inherited => "inherited the state of the generation before",
        DeployOutcome::Rebuilding => "building its read model beside the one that serves",
        DeployOutcome::Migrating => "migrating the read model that serves",
    };
    let compiled = match deployed.compile_ms {
        0 => String::new(),
        milliseconds => format!(", compiled in {milliseconds} ms"),
    };
    format!(
        "{}: {outcome} (generation {}, source {}{compiled})",
        deployment.name, deployed.generation, deployment.source
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_is_told_in_one_line() {
        let deployment = super::super::show::tests::deployment();
        let mut deployed = Deployed {
            deployment,
            outcome: DeployOutcome::Created,
            generation: 2,
            reason: String::new(),
            compile_ms: 48,
        };
        assert_eq!(describe(&deployed), "order-totals: created (generation 2, source events, compiled in 48 ms)");
        deployed.outcome = DeployOutcome::Unchanged;
        deployed.compile_ms = 0;
        assert_eq!(
            describe(&deployed),
            "order-totals: unchanged, this module already runs (generation 2, source events)"
        );
    }

    #[test]
    fn what_is_no_module_is_not_sent() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("text.wasm");
        std::fs::write(&file, "no module").expect("write");
        let said = read_module(&file).expect_err("is no module").to_string();
        assert!(said.ends_with("is no WebAssembly file; `foldstream build` makes one from a crate"), "{said}");
        let said = read_module(folder.path()).expect_err("is a folder").to_string();
        assert!(said.contains("is a folder; build it first: foldstream build "), "{said}");
        let error = read_module(&folder.path().join("missing.wasm")).expect_err("is missing");
        assert_eq!(super::super::exit::exit_of(&error), Exit::NotFound);
    }
}
