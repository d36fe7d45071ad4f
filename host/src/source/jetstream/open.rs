//! Opening a stream: the proof that it is the one we count in and still has
//! what we have not read, then a consumer that begins behind our position.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Client, Subject, Subscriber};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::connect::Settings;
use super::link::{Link, Trouble};
use super::missing::{self, Holes, has_gaps_by_design, removes_at_once};
use super::proof::prove;
use super::rescue::{Rescued, Search, rescue};
use super::wire::{
    self, Api, ConsumerConfig, ConsumerInfo, RequestLimits, StreamConfig, StreamInfo,
};
use crate::memory::read_ahead::RequestShare;
use crate::position::{Checkpoint, EarlierMarks, EventMark, Start, StreamIdentity};
use crate::source::{Error, Missing, SourceState};
use crate::subject::Pattern;

/// How long the server keeps a consumer that nobody reads from. After a crash each reader has two
/// of them for this long, and a stream has room for a limited number; a reader whose consumer is
/// gone creates another one.
pub(super) const INACTIVE_THRESHOLD: Duration = Duration::from_secs(15);
/// A cluster that has not made a consumer after this long is asked again; each wait is half as long
/// again as the one before. A cluster gives consumers to a server that was killed until it notices:
/// in the first 15 s, three servers of 2.10.26 did so with 10 of 40. Others are made within
/// milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for a server by itself. It loses a request only if it is reached through another one,
/// as over a leaf node: a lost connection of our own is noticed. Asked again, it counts again what
/// matches the filter.
const PATIENCE_ALONE: Duration = Duration::from_secs(20);

/// The highest sequence with which a stream may begin. The server stores messages beyond 2^63, says
/// that it has them, and returns none.
const FIRST_SEQUENCE_MAX: u64 = 1 << 62;

/// The position of a reader.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    /// The last sequence that was read; none starts from scratch.
    pub(super) position: Option<u64>,
    /// The stream to which it belongs, once known.
    pub(super) stream: Option<Arc<StreamIdentity>>,
    /// The last event that was read.
    pub(super) mark: Option<EventMark>,
    /// The last message that was read, if that came later.
    pub(super) seen: Option<EventMark>,
    /// Events before the last one that was read.
    pub(super) earlier: EarlierMarks,
    /// The sequence up to which messages may be missing.
    pub(super) accepts_through: u64,
    /// Where to start from scratch.
    pub(super) start: Start,
    /// After which sequence to start from scratch, whatever `start` says.
    pub(super) begins_after: Option<u64>,
    /// How many connections were lost at this position, perhaps by a message that the client cannot
    /// read.
    pub(super) doubts: u32,
    /// Sequences that are skipped.
    pub(super) skips: Arc<[u64]>,
    /// Whose memory a message takes that has to be fetched; none has no limit.
    pub(super) share: Option<Arc<RequestShare>>,
}

impl Standing {
    /// That of a state, which accepts and doubts nothing.
    pub(super) fn at(checkpoint: &Checkpoint) -> Self {
        Self {
            position: Some(checkpoint.position),
            stream: Some(Arc::new(checkpoint.stream.clone())),
            mark: checkpoint.last_event.clone(),
            seen: checkpoint.last_seen.clone(),
            earlier: checkpoint.earlier.clone(),
            accepts_through: 0,
            start: Start::Beginning,
            begins_after: None,
            doubts: 0,
            skips: Arc::default(),
            share: None,
        }
    }

    /// Whether it is given, and not just where the stream happens to begin.
    fn is_anchored(&self) -> bool {
        self.position.is_some() || self.begins_after.is_some() || self.start == Start::Beginning
    }
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

/// A proved stream with a consumer after our position.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) link: Link,
    pub(super) api: Arc<Api>,
    /// The number of the connection under which the consumer was created.
    pub(super) generation: u64,
    pub(super) consumer: String,
    pub(super) inbox: Subject,
    pub(super) subscription: Subscriber,
    pub(super) stream: Arc<StreamIdentity>,
    pub(super) position: u64,
    pub(super) head: u64,
    /// When the stream was asked where it ends.
    pub(super) looked_at: Instant,
    /// When the server that answered certainly led the stream.
    pub(super) led_at: Option<Instant>,
    /// Messages after the position that were fetched alone; the consumer starts after them.
    pub(super) rescued: VecDeque<Rescued>,
    /// As in [`Standing`].
    pub(super) doubts: u32,
    /// The limits of a request for events.
    pub(super) limits: RequestLimits,
    /// Events after the position that may match.
    pub(super) pending: u64,
    /// Whether the server filters events.
    pub(super) is_filtered: bool,
    /// Whether several servers hold the stream, any of which may hold the consumer.
    pub(super) is_replicated: bool,
    /// The subjects that the consumer delivers.
    pub(super) filter: String,
    /// Whether the stream may have messages that the module does not read.
    pub(super) reads_part: bool,
    /// What the stream lacks after the position, if the server filters events: all of it is
    /// accepted.
    pub(super) holes: Holes,
    /// The sequence up to which messages may be missing.
    pub(super) accepts_through: u64,
    /// Sequences that are skipped, and so are not missed.
    pub(super) skips: Arc<[u64]>,
    /// Whether the stream leaves out sequences by design.
    pub(super) has_gaps_by_design: bool,
    /// Whether the stream may remove a message before it is sent.
    pub(super) removes_at_once: bool,
    /// Whether the position was read, and is not just the current beginning of the stream.
    pub(super) is_anchored: bool,
}

/// Opens the stream. Replaces the connection if its client keeps a large buffer.
pub(super) async fn open(
    link: &mut Link,
    settings: &Arc<Settings>,
    covering: &Pattern,
    standing: &Standing,
) -> Result<Opened, Failure> {
    let mut api = api(link, settings);
    // Read before the first call, so that a reconnect during the opening is noticed.
    let mut generation = link.generation();
    let info = stream_info(link, &api).await?;
    // Before the proof: a stream that loses events by its kind proves nothing.
    check_readable(&api.stream, &info.config).map_err(Failure::Stop)?;
    let stream = identity(&api, &info)?;
    if let Some(memory) = prove(link, &api, &info, standing).await? {
        *link = Link::connect(settings).await?;
        generation = link.generation();
        api = self::api(link, settings);
        // Only now: the buffer went with the client.
        drop(memory);
    }
    let mut position = begin(&info, standing);
    check_begins_within(&api, &info, standing)?;
    let filter = filter(covering, &info.config);
    let reads_part = filter.is_some();
    // The host matches then.
    let filter = filter.filter(|_| !removes_at_once(&info.config));
    let reach = Reach {
        standing,
        position,
        reads_part,
        is_filtered: filter.is_some(),
    };
    let mut holes = missing(link, &api, &info, reach).await?;

    // Subscribed before the consumer exists, so that no message comes too early.
    let (inbox, subscription) = subscribe(&api.client).await?;
    let mut delivery = Delivery {
        after: position,
        filter,
    };
    let rescued = fetched_alone(link, &api, standing, delivery).await?;
    // The consumer starts behind what was fetched alone.
    delivery.after = rescued.back().map_or(position, Rescued::sequence);
    let made = create_consumer(link, &api, &info, delivery).await?;

    // Between the check of the stream and the creation of the consumer, the stream may have been
    // replaced, or have lost events; this second check sees both.
    let before = info;
    let looked_at = Instant::now();
    let info = stream_info(link, &api).await?;
    if identity(&api, &info)? != stream {
        return Err(Trouble::lost(format!(
            "stream {} was replaced while it was being opened",
            api.stream
        ))
        .into());
    }
    // From the first available event on, what is gone by now does not matter.
    let is_anchored = standing.is_anchored();
    if !is_anchored {
        position = position.max(info.first() - 1);
    }
    if (made.is_filtered && holes.seen() != missing::Seen::of(&info))
        || info.first() > before.first()
    {
        holes = missing(link, &api, &info, reach.of_consumer(&made, position)).await?;
    }
    Ok(Opened {
        link: link.clone(),
        generation,
        consumer: made.name,
        inbox,
        subscription,
        stream,
        position,
        head: info.state.last_seq.max(position),
        looked_at,
        led_at: info.led_at(looked_at),
        doubts: standing.doubts,
        limits: made.info.config,
        pending: made.info.num_pending + rescued.len() as u64,
        rescued,
        filter: filter
            .filter(|_| made.is_filtered)
            .unwrap_or(">")
            .to_owned(),
        is_filtered: made.is_filtered,
        reads_part,
        is_replicated: info.is_replicated(),
        holes,
        accepts_through: standing.accepts_through,
        skips: Arc::clone(&standing.skips),
        has_gaps_by_design: has_gaps_by_design(&info.config),
        removes_at_once: removes_at_once(&info.config),
        is_anchored,
        api,
    })
}

/// A new inbox, and what arrives there.
pub(super) async fn subscribe(client: &Client) -> Result<(Subject, Subscriber), Trouble> {
    let inbox = Subject::from(client.new_inbox());
    let subscription = client
        .subscribe(inbox.clone())
        .await
        .map_err(|error| Trouble::lost(format!("cannot subscribe to {inbox}: {error}")))?;
    Ok((inbox, subscription))
}

fn api(link: &Link, settings: &Settings) -> Arc<Api> {
    Arc::new(Api {
        client: link.client().clone(),
        prefix: settings.api_prefix.clone(),
        stream: settings.stream.clone(),
    })
}

/// The messages after a position that have to be fetched one by one, because the client may not be
/// able to read one of them.
async fn fetched_alone(
    link: &mut Link,
    api: &Api,
    standing: &Standing,
    delivery: Delivery<'_>,
) -> Result<VecDeque<Rescued>, Failure> {
    // Without a lost connection every message can be parsed, as far as is known.
    if standing.doubts == 0 {
        return Ok(VecDeque::new());
    }
    let search = Search {
        position: delivery.after,
        filter: delivery.filter.unwrap_or(">"),
        doubts: standing.doubts,
        skips: &standing.skips,
    };
    rescue(link, api, &search).await
}

/// Whether the kind of stream can be read at all: only if it keeps its events no matter who else
/// reads them, and the server returns what it stores.
pub(super) fn check_readable(stream: &str, config: &StreamConfig) -> Result<(), Error> {
    if config.first_seq > FIRST_SEQUENCE_MAX {
        let reason = format!(
            "it begins with sequence {}, and nats-server returns no message near or beyond 2^63",
            config.first_seq
        );
        return Err(Error::Unsupported {
            stream: stream.to_owned(),
            reason,
        });
    }
    let consequence = match config.retention.as_str() {
        "" | "limits" => return Ok(()),
        "interest" => "it drops events once its consumers have acknowledged them",
        "workqueue" => "it gives each event to one consumer and then drops it",
        _ => "how long it keeps events is not known",
    };
    let reason = format!("its retention is {}, so {consequence}", config.retention);
    Err(Error::Unsupported {
        stream: stream.to_owned(),
        reason,
    })
}

/// What went wrong with a call, for the status of the source.
pub(super) fn trouble(stream: &str, error: &wire::Error) -> Trouble {
    match error {
        wire::Error::Refused {
            code: wire::STREAM_NOT_FOUND,
            ..
        } => Trouble {
            state: SourceState::StreamMissing,
            message: format!(
                "stream {stream} does not exist; create it, or correct `stream` of this source"
            ),
        },
        wire::Error::Refused {
            code: wire::NOT_ENABLED_FOR_ACCOUNT,
            ..
        } => Trouble::refused(
            "JetStream is not enabled for this account; enable it, or use another account",
        ),
        wire::Error::Refused {
            code: wire::CONSUMERS_MAX,
            description,
        } => Trouble::lost(format!(
            "stream {stream} has no room for another consumer ({description}): each generation \
             that reads needs one, and after a crash another one for {} s; delete consumers that \
             nobody uses (`nats consumer ls {stream}`), or raise max_consumers of the stream or \
             the limit of the account",
            INACTIVE_THRESHOLD.as_secs()
        )),
        error => Trouble::lost(error.to_string()),
    }
}

async fn stream_info(link: &mut Link, api: &Api) -> Result<StreamInfo, Trouble> {
    link.permitted(api.stream_info())
        .await?
        .map_err(|error| trouble(&api.stream, &error))
}

pub(super) fn identity(api: &Api, info: &StreamInfo) -> Result<Arc<StreamIdentity>, Trouble> {
    let created_ns = info
        .created_ns()
        .map_err(|error| trouble(&api.stream, &error))?;
    Ok(Arc::new(StreamIdentity {
        name: api.stream.clone(),
        created_ns,
    }))
}

/// The sequence after which to read.
fn begin(info: &StreamInfo, standing: &Standing) -> u64 {
    // A stream may be configured to start with another sequence than 1.
    let origin = info.config.first_seq.max(1);
    match (standing.position.or(standing.begins_after), standing.start) {
        // Given by a state, so the settings of the start do not matter.
        (Some(position), _) => position,
        // Sequences that a filtered mirror lacks at the front belong to others.
        (None, Start::Beginning) if !has_gaps_by_design(&info.config) => origin - 1,
        (None, _) => info.first().max(origin) - 1,
    }
}

/// An error if a state that is built again began behind the end of the stream, which is then not the
/// one that it was built from.
fn check_begins_within(api: &Api, info: &StreamInfo, standing: &Standing) -> Result<(), Failure> {
    let last = info.state.last_seq;
    match standing.begins_after {
        Some(position) if standing.position.is_none() && position > last => {
            Err(Failure::Stop(Error::Truncated {
                stream: api.stream.clone(),
                last,
                position,
            }))
        }
        _ => Ok(()),
    }
}

/// From where a consumer reads, and which messages.
#[derive(Clone, Copy)]
struct Reach<'a> {
    standing: &'a Standing,
    position: u64,
    /// Whether the stream may have messages that the module does not read.
    reads_part: bool,
    /// Whether the server leaves those out.
    is_filtered: bool,
}

impl Reach<'_> {
    /// That of a consumer, from a position.
    fn of_consumer(self, made: &Made, position: u64) -> Self {
        Self {
            position,
            is_filtered: made.is_filtered,
            ..self
        }
    }
}

/// What a consumer delivers: the messages after a position that match a filter.
#[derive(Clone, Copy)]
struct Delivery<'a> {
    after: u64,
    /// None delivers everything.
    filter: Option<&'a str>,
}

/// What the stream lacks after a position, if that must be known; an error if it may not be passed
/// over.
async fn missing(
    link: &mut Link,
    api: &Api,
    info: &StreamInfo,
    reach: Reach<'_>,
) -> Result<Holes, Failure> {
    let Reach {
        standing,
        position,
        reads_part,
        is_filtered,
    } = reach;
    // If the server does not filter for a reader, the reader sees each gap itself, so they are only
    // looked up to refuse them at once.
    // All of it is accepted, so it need not be known; an unfiltered reader sees it anyway.
    if !is_filtered && standing.accepts_through >= info.state.last_seq {
        return Ok(Holes::default());
    }
    let holes = missing::look_up_now(link, api, info, position).await?;
    let (stream, last) = (api.stream.clone(), info.state.last_seq);
    // What is skipped is not missed if it is gone.
    let gone = missing::undelivered(holes.within(0, u64::MAX), standing.skips.iter().copied());
    let mut refused = missing::refused(gone.into_iter(), standing.accepts_through);
    // Too many to be listed: any of them may have been for us.
    if is_filtered && holes.is_unlisted && standing.accepts_through < last && position < last {
        refused = Some(Missing {
            from: position + 1,
            to: last,
            count: None,
        });
    }
    match refused {
        None => Ok(holes),
        // Without a position it is a new state that would lack them.
        Some(missing) if standing.position.is_none() => Err(Failure::Stop(Error::Incomplete {
            stream,
            missing,
            whose: reads_part.into(),
        })),
        Some(missing) => Err(Failure::Stop(Error::Gap {
            stream,
            missing,
            whose: reads_part.into(),
        })),
    }
}

/// The filter for the server; none if it would filter nothing, because reading
/// everything is faster and shows each gap.
fn filter<'a>(covering: &'a Pattern, config: &StreamConfig) -> Option<&'a str> {
    // A mirror and a stream with sources have subjects that their settings do not name.
    let takes_others = config.mirror.is_some()
        || config
            .sources
            .as_ref()
            .is_some_and(|sources| !sources.is_empty());
    let covers =
        |subject: &String| Pattern::parse(subject).is_ok_and(|pattern| covering.covers(&pattern));
    let covers_all =
        !takes_others && !config.subjects.is_empty() && config.subjects.iter().all(covers);
    // `>` takes everything.
    (covering.as_str() != ">" && !covers_all).then_some(covering.as_str())
}

/// Whether a fold of these subjects skips some of a stream.
pub(super) fn leaves_out(covering: &Pattern, config: &StreamConfig) -> bool {
    filter(covering, config).is_some()
}

struct Made {
    name: String,
    info: ConsumerInfo,
    is_filtered: bool,
}

async fn create_consumer(
    link: &mut Link,
    api: &Api,
    info: &StreamInfo,
    delivery: Delivery<'_>,
) -> Result<Made, Trouble> {
    let wanted = u64::try_from(INACTIVE_THRESHOLD.as_nanos()).expect("a minute fits");
    // A stream may not allow as long as we would like.
    let inactive_threshold = match info.config.consumer_limits.inactive_threshold {
        0 => wanted,
        limit => wanted.min(limit),
    };
    let mut config = ConsumerConfig {
        name: String::new(),
        deliver_policy: "by_start_sequence",
        opt_start_seq: delivery.after + 1,
        ack_policy: "none",
        replay_policy: "instant",
        // The names are those of the API; nothing is acknowledged, and nothing needs to survive.
        filter_subject: delivery.filter,
        inactive_threshold,
        num_replicas: 1,
        mem_storage: true,
    };
    let patience = if info.is_clustered() {
        PATIENCE
    } else {
        PATIENCE_ALONE
    };
    let mut made = link
        .permitted(first_consumer(api, &config, patience))
        .await?;
    // Some servers refuse a filter that has nothing in common with the stream's subjects; then the
    // host matches.
    if let Err(wire::Error::Refused {
        code: wire::FILTER_NOT_SUBSET,
        ..
    }) = made
    {
        config.filter_subject = None;
        made = link
            .permitted(first_consumer(api, &config, patience))
            .await?;
    }
    let is_filtered = config.filter_subject.is_some();
    match made {
        Ok((name, info)) => Ok(Made {
            info,
            is_filtered,
            name,
        }),
        Err(error) => Err(trouble(&api.stream, &error)),
    }
}

/// Makes a consumer.
///
/// A cluster may lose the request, or give the consumer to a server that has just died, and so may
/// a server between us and the stream. Nothing answers then, so this asks again under another name
/// and takes the consumer that is ready first; the others end because nobody uses them.
async fn first_consumer(
    api: &Api,
    config: &ConsumerConfig<'_>,
    mut patience: Duration,
) -> Result<(String, ConsumerInfo), wire::Error> {
    let mut requests = FuturesUnordered::new();
    loop {
        requests.push(async {
            // Random: names of consumers are shared by all readers of the stream.
            let name = format!("foldstream-{:016x}", fastrand::u64(..));
            let config = ConsumerConfig {
                name,
                ..config.clone()
            };
            api.create_consumer(&config)
                .await
                .map(|info| (config.name, info))
        });
        // Biased: an answer that has arrived counts before another request is sent. The requests that
        // are left unanswered may create consumers too; the server removes those that nobody reads.
        tokio::select! {
            biased;
            Some(made) = requests.next() => return made,
            () = tokio::time::sleep(patience) => patience = patience * 3 / 2,
        }
    }
}
