//! `foldstream rebuild`: rebuilds the active module's state from the stream.

use bytes::Bytes;

use crate::api::{Deployed, EffectsFrom, PartialRebuild};
use crate::cli::Context;
use crate::cli::commands::deployments::deploy::{self, Waiting};
use crate::cli::support::candidate::CandidateArgs;
use crate::cli::support::client::{Client, UPLOAD_TIMEOUT};
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{counted, grouped};
use crate::overview::missing_remark;

/// Build the read model of a deployment from scratch, alongside the active one, and let it take
/// over.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream rebuild order-totals --wait
  foldstream rebuild order-totals --require-equal --wait
  foldstream rebuild order-totals --manual --cpu 20
  foldstream rebuild order-totals --key 42         # only the entries of one key
  foldstream rebuild order-totals --prefix 4
  foldstream rebuild order-totals --accept-missing   # although the stream has lost applied events
  foldstream rebuild fulfilment --accept-lost-effects --effects-from 4711

With --accept-lost-effects, a new state continues a handler whose state file is gone. Messages that \
waited in that file are lost if they belong to events before --effects-from. Messages of later \
events are published again, with the same ids. An embedded log, and a stream that still has them, \
store none twice; any other stream may.

The new generation has a new file without the unused space that the old one has gathered, so a \
rebuild also compacts the state while the host runs.

With --key or --prefix, only the events of these keys are folded again, and the result replaces \
the entries of these keys, by the key rule of the manifest. The host refuses this if their \
events also change entries that do not belong to them.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Rebuild only the entries of this key.
    #[arg(long, conflicts_with_all = ["prefix", "wait"])]
    key: Option<String>,
    /// Rebuild only the entries of keys that begin with this.
    #[arg(long, conflicts_with = "wait")]
    prefix: Option<String>,
    /// Rebuild even if events that were applied are gone from the stream.
    #[arg(long)]
    accept_missing: bool,
    /// Replace the lost state of a handler, with the messages that waited in it, or its state of a
    /// stream that was made again.
    #[arg(long, conflicts_with_all = ["key", "prefix"])]
    accept_lost_effects: bool,
    /// From which event on the new state publishes: `now`, `beginning`, or a sequence; default:
    /// now.
    #[arg(long, value_name = "EVENT", requires = "accept_lost_effects", conflicts_with_all = ["key", "prefix"])]
    effects_from: Option<EffectsFrom>,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    candidate: CandidateArgs,
}

/// Sends the request and prints the outcome.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut parameters = args.candidate.parameters()?;
    let accepts = args.accept_missing.then(deploy::accept_missing);
    let client = context.client()?;
    let part = args
        .key
        .map(|key| ("key", key))
        .or(args.prefix.map(|prefix| ("prefix", prefix)));
    if let Some(part) = part {
        if !parameters.is_empty() {
            let message = "a partial rebuild creates no new generation: remove its options, or \
                           remove --key and --prefix";
            return Err(Failure::new(Exit::Usage, message).into());
        }
        return rebuild_part(
            &client,
            &args.name,
            std::iter::once(part).chain(accepts).collect(),
            context,
        )
        .await;
    }
    parameters.extend(accepts);
    if args.accept_lost_effects {
        parameters.push(("accept-lost-effects", "true".to_owned()));
        let from = args.effects_from.map(deploy::effects_from);
        parameters.extend(from.map(|from| ("effects-from", from)));
    }
    let path = ["v1", "deployments", &args.name, "rebuild"];
    let nothing = ("application/json", Bytes::new());
    let deployed: Deployed = client
        .post(&path, &parameters, nothing, UPLOAD_TIMEOUT)
        .await?;
    deploy::show_outcome(deployed, args.waiting, &client, context.output).await
}

async fn rebuild_part(
    client: &Client,
    name: &str,
    parameters: Vec<(&'static str, String)>,
    context: &Context,
) -> anyhow::Result<()> {
    let path = ["v1", "deployments", name, "rebuild-part"];
    let nothing = ("application/json", Bytes::new());
    let rebuilt: PartialRebuild = client
        .post(&path, &parameters, nothing, UPLOAD_TIMEOUT)
        .await?;
    context.output.one(&rebuilt, |rebuilt| {
        let lacks = rebuilt
            .lacks
            .as_ref()
            .map_or_else(String::new, |lacks| format!("; {lacks}"));
        let missing = missing_remark(rebuilt.missing_events);
        let parked = match rebuilt.parked.events {
            0 => String::new(),
            events => format!(
                "; {} of {} stay parked (`foldstream parked list {name}`)",
                counted(events, "event"),
                counted(rebuilt.parked.keys, "other key")
            ),
        };
        let left = match &rebuilt.left[..] {
            [] => String::new(),
            left => format!(
                "\nnot changed, because none of its events wrote to their tables: {}; if they are \
                 wrong, rebuild everything",
                left.join(", ")
            ),
        };
        format!(
            "{name}: {} rebuilt at position {}: {} events, {} entries written, {} \
             removed{lacks}{missing}{parked}{left}",
            rebuilt.selection,
            grouped(rebuilt.position),
            grouped(rebuilt.events),
            grouped(rebuilt.written),
            grouped(rebuilt.removed)
        )
    })?;
    Ok(())
}
