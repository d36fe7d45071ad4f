//! Opening a stream: the proof that it is the one we count in and still has
//! what we have not read, then a consumer that begins behind our position.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Subject, Subscriber};

use super::connect::Settings;
use super::link::{Link, Trouble};
use super::rescue::{self, Rescued, Search, rescue};
use super::wire::{self, Api, ConsumerConfig, ConsumerInfo, RequestLimits, Stored, StreamConfig, StreamInfo};
use crate::api::{SourceState, Start};
use crate::cloudevents::Recognition;
use crate::position::{EventMark, StreamIdentity};
use crate::source::Error;
use crate::source::cloudevents::Reading;
use crate::subject::Pattern;

/// How long the server keeps a consumer that nobody asks for events. After a crash each reader has two of them for this
/// long, and a stream has room for a limited number; a reader whose consumer is gone makes another one.
pub(super) const INACTIVE_THRESHOLD: Duration = Duration::from_secs(15);

/// Where a reader stands.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    /// The last sequence that was read; none begins anew.
    pub(super) position: Option<u64>,
    /// The stream that it counts in, once known.
    pub(super) stream: Option<Arc<StreamIdentity>>,
    /// The last event that was read.
    pub(super) mark: Option<EventMark>,
    /// Where to begin anew.
    pub(super) start: Start,
    /// How many connections were lost at this position, perhaps by a message that the client cannot read.
    pub(super) doubts: u32,
    /// Sequences that are not needed.
    pub(super) skips: Arc<[u64]>,
}

/// Why a stream could not be opened.
#[derive(Debug)]
pub(super) enum Failure {
    /// Something that may pass.
    Trouble(Trouble),
    /// Something that an operator must decide.
    Stop(Error),
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

/// A proved stream with a consumer behind our position.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) link: Link,
    pub(super) api: Arc<Api>,
    /// The number of the connection under which the consumer was made.
    pub(super) generation: u64,
    pub(super) consumer: String,
    pub(super) inbox: Subject,
    pub(super) subscription: Subscriber,
    pub(super) stream: Arc<StreamIdentity>,
    pub(super) position: u64,
    pub(super) head: u64,
    /// Messages behind the position that were fetched by themselves; the consumer begins behind them.
    pub(super) rescued: VecDeque<Rescued>,
    /// As in [`Standing`].
    pub(super) doubts: u32,
    /// How much a request for events may ask for.
    pub(super) limits: RequestLimits,
    /// Events behind the position that may match.
    pub(super) pending: u64,
    /// Whether the server leaves out events.
    pub(super) is_filtered: bool,
    /// Whether the stream keeps only the last events of each subject.
    pub(super) is_compacting: bool,
    /// Whether the position is one that we read, not just where the stream begins today.
    pub(super) is_anchored: bool,
}

/// Opens the stream.
pub(super) async fn open(
    mut link: Link,
    settings: &Settings,
    covering: &Pattern,
    standing: &Standing,
) -> Result<Opened, Failure> {
    let client = link.client().clone();
    let prefix = settings.api_prefix.clone();
    let api = Arc::new(Api { client, prefix, stream: settings.stream.clone() });
    let generation = link.generation();
    let info = stream_info(&mut link, &api).await?;
    check_readable(&api.stream, &info.config).map_err(Failure::Stop)?;
    let stream = identity(&api, &info)?;
    let is_compacting = info.config.max_msgs_per_subject > 0;
    let mut position = verify(&info, &stream, standing).map_err(Failure::Stop)?;
    verify_mark(&mut link, &api, &info, standing).await?;

    let inbox = Subject::from(api.client.new_inbox());
    let subscription = api
        .client
        .subscribe(inbox.clone())
        .await
        .map_err(|error| Trouble::lost(format!("cannot subscribe to {inbox}: {error}")))?;
    let filter = filter(covering, &info.config);
    let rescued = if standing.doubts == 0 {
        VecDeque::new()
    } else {
        let search =
            Search { position, filter: filter.unwrap_or(">"), doubts: standing.doubts, skips: &standing.skips };
        rescue(&mut link, &api, &search).await?
    };
    let behind = rescued.back().map_or(position, Rescued::sequence);
    let made = create_consumer(&mut link, &api, &info.config, filter, behind).await?;

    // Between the look at the stream and the consumer, the stream may have been
    // replaced, or have lost events; this second look sees both.
    let info = stream_info(&mut link, &api).await?;
    if identity(&api, &info)? != stream {
        return Err(Trouble::lost(format!("stream {} was replaced while it was being opened", api.stream)).into());
    }
    let is_anchored = standing.position.is_some() || standing.start == Start::Beginning;
    if info.first() > position + 1 && !is_compacting {
        if is_anchored {
            return Err(Failure::Stop(gap(&api.stream, position + 1, info.first() - 1)));
        }
        position = info.first() - 1;
    }
    Ok(Opened {
        link,
        generation,
        consumer: made.name,
        inbox,
        subscription,
        stream,
        position,
        head: info.state.last_seq.max(position),
        doubts: standing.doubts,
        limits: made.info.config,
        pending: made.info.num_pending + rescued.len() as u64,
        rescued,
        is_filtered: made.is_filtered,
        is_compacting,
        is_anchored,
        api,
    })
}

/// Whether a stream of this kind can be read at all: only one that keeps its events whoever else reads them can.
pub(super) fn check_readable(stream: &str, config: &StreamConfig) -> Result<(), Error> {
    let consequence = match config.retention.as_str() {
        "" | "limits" => return Ok(()),
        "interest" => "it drops events once its consumers have acknowledged them",
        "workqueue" => "it gives each event to one consumer and then drops it",
        _ => "how long it keeps events is not known",
    };
    let reason = format!("its retention is {}, so {consequence}", config.retention);
    Err(Error::Unsupported { stream: stream.to_owned(), reason })
}

/// Events that are gone before they were read.
pub(super) fn gap(stream: &str, from: u64, to: u64) -> Error {
    Error::Gap { stream: stream.to_owned(), from, to }
}

/// What went wrong with a call, for the status of the source.
pub(super) fn trouble(stream: &str, error: &wire::Error) -> Trouble {
    match error {
        wire::Error::Refused { code: wire::STREAM_NOT_FOUND, .. } => Trouble {
            state: SourceState::StreamMissing,
            message: format!("stream {stream} does not exist; create it, or correct `stream` of this source"),
        },
        wire::Error::Refused { code: wire::NOT_ENABLED_FOR_ACCOUNT, .. } => {
            Trouble::refused("JetStream is not enabled for this account; enable it, or use another account")
        }
        wire::Error::Refused { code: wire::CONSUMERS_MAX, description } => Trouble::lost(format!(
            "stream {stream} has no room for another consumer ({description}): each generation that is read needs one, and \
             after a crash another one for {} s; delete consumers that nobody uses (`nats consumer ls {stream}`), or raise \
             max_consumers of the stream or the limit of the account",
            INACTIVE_THRESHOLD.as_secs()
        )),
        error => Trouble::lost(error.to_string()),
    }
}

async fn stream_info(link: &mut Link, api: &Api) -> Result<StreamInfo, Trouble> {
    link.permitted(api.stream_info()).await?.map_err(|error| trouble(&api.stream, &error))
}

fn identity(api: &Api, info: &StreamInfo) -> Result<Arc<StreamIdentity>, Trouble> {
    let created_ns = info.created_ns().map_err(|error| trouble(&api.stream, &error))?;
    Ok(Arc::new(StreamIdentity { name: api.stream.clone(), created_ns }))
}

/// Compares the stream with where we stand, and says behind which sequence to read.
fn verify(info: &StreamInfo, stream: &StreamIdentity, standing: &Standing) -> Result<u64, Error> {
    let name = &stream.name;
    if let Some(expected) = &standing.stream {
        if expected.name != *name {
            return Err(Error::Diverged(format!(
                "the state was built from stream {}, the source is stream {name}; correct `stream`, or delete and \
                 deploy again to build from {name}",
                expected.name
            )));
        }
        // A state that reflects nothing belongs to no history yet.
        if expected.created_ns != stream.created_ns && standing.position.is_some_and(|position| position > 0) {
            return Err(Error::Diverged(format!(
                "stream {name} was deleted and created again at {}, so the state belongs to a history that is gone; \
                 restore the stream from a backup, or delete and deploy again to build from what is there",
                info.created
            )));
        }
    }
    let first = info.first();
    let is_compacting = info.config.max_msgs_per_subject > 0;
    match standing.position {
        Some(position) if position > info.state.last_seq => {
            Err(Error::Truncated { stream: name.clone(), last: info.state.last_seq, position })
        }
        Some(position) if first > position + 1 && !is_compacting => Err(gap(name, position + 1, first - 1)),
        Some(position) => Ok(position),
        None => {
            // A stream may be set to begin with another sequence than 1.
            let origin = info.config.first_seq.max(1);
            if standing.start == Start::Beginning && first > origin && !is_compacting {
                return Err(Error::Incomplete { stream: name.clone(), first });
            }
            Ok(first.max(origin) - 1)
        }
    }
}

/// Compares the last event that we read with what the stream has in its place, if it still has it.
async fn verify_mark(link: &mut Link, api: &Api, info: &StreamInfo, standing: &Standing) -> Result<(), Failure> {
    let Some(mark) = &standing.mark else { return Ok(()) };
    if mark.sequence < info.state.first_seq || mark.sequence > info.state.last_seq {
        return Ok(());
    }
    let found = link.permitted(api.message(mark.sequence)).await?.map_err(|error| trouble(&api.stream, &error))?;
    match found {
        Some(stored) if !matches(mark, &stored) => Err(Failure::Stop(Error::Diverged(format!(
            "event {} of stream {} is not the one that was applied; the stream's history was replaced: restore it, or \
             delete and deploy again to build from what is there",
            mark.sequence, api.stream
        )))),
        _ => Ok(()),
    }
}

/// Whether a message is the event that a mark was made of, however the source read CloudEvents then: that may have been
/// configured otherwise since.
fn matches(mark: &EventMark, stored: &Stored) -> bool {
    [Recognition::Auto, Recognition::Off].into_iter().any(|recognition| {
        let reading = Reading { recognition, wants_headers: false };
        EventMark::of(&rescue::into_event(stored, None, reading)) == *mark
    })
}

/// The filter for the server; none where it would leave out nothing, as reading
/// everything is faster and shows each gap.
fn filter<'a>(covering: &'a Pattern, config: &StreamConfig) -> Option<&'a str> {
    let takes_others = config.mirror.is_some() || config.sources.as_ref().is_some_and(|sources| !sources.is_empty());
    let covers = |subject: &String| Pattern::parse(subject).is_ok_and(|pattern| covering.covers(&pattern));
    let covers_all = !takes_others && !config.subjects.is_empty() && config.subjects.iter().all(covers);
    (covering.as_str() != ">" && !covers_all).then_some(covering.as_str())
}

struct Made {
    name: String,
    info: ConsumerInfo,
    is_filtered: bool,
}

async fn create_consumer(
    link: &mut Link,
    api: &Api,
    config: &StreamConfig,
    filter: Option<&str>,
    position: u64,
) -> Result<Made, Trouble> {
    let name = format!("foldstream-{:016x}", fastrand::u64(..));
    let wanted = u64::try_from(INACTIVE_THRESHOLD.as_nanos()).expect("a minute fits");
    let inactive_threshold = match config.consumer_limits.inactive_threshold {
        0 => wanted,
        limit => wanted.min(limit),
    };
    let mut config = ConsumerConfig {
        name: &name,
        deliver_policy: "by_start_sequence",
        opt_start_seq: position + 1,
        ack_policy: "none",
        replay_policy: "instant",
        filter_subject: filter,
        inactive_threshold,
        num_replicas: 1,
        mem_storage: true,
    };
    let mut made = link.permitted(api.create_consumer(&config)).await?;
    // Some servers refuse a filter that has nothing in common with the stream's subjects; then the host matches.
    if let Err(wire::Error::Refused { code: wire::FILTER_NOT_SUBSET, .. }) = made {
        config.filter_subject = None;
        made = link.permitted(api.create_consumer(&config)).await?;
    }
    let is_filtered = config.filter_subject.is_some();
    match made {
        Ok(info) => Ok(Made { info, is_filtered, name }),
        Err(error) => Err(trouble(&api.stream, &error)),
    }
}
