//! The few calls of the JetStream API that a reader needs.
//!
//! Written against the wire format, so that every reader needs only one connection and two tasks,
//! and fields added by newer servers do no harm. Source:
//! <https://docs.nats.io/reference/reference-protocols/nats_api_reference>.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_nats::client::{Request, RequestError, RequestErrorKind};
use async_nats::{Client, Message};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::subject::Pattern;

/// How long the API may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// How long it may take to create a consumer: on a stream of hundreds of millions of events the
/// server takes minutes to count what matches a filter, and would start again for each repeated
/// request.
const CREATION_MAX: Duration = Duration::from_secs(15 * 60);

/// Codes of the API that are distinguished.
pub(super) const STREAM_NOT_FOUND: u64 = 10059;
const MESSAGE_NOT_FOUND: u64 = 10037;
/// The filter and the subjects of the stream have nothing in common.
pub(super) const FILTER_NOT_SUBSET: u64 = 10093;
/// The stream, the account or the server has reached its limit of consumers.
pub(super) const CONSUMERS_MAX: u64 = 10026;
/// The account may not use JetStream.
pub(super) const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The API refused.
    #[error("{description} (code {code})")]
    Refused { code: u64, description: String },
    /// No API at this subject.
    #[error(
        "no JetStream at {0}; enable JetStream on the server, or correct the domain or the API \
         prefix"
    )]
    NoJetStream(String),
    /// The call failed on its way.
    #[error("{subject}: {error}")]
    Failed {
        subject: String,
        #[source]
        error: RequestError,
    },
    /// No answer in time: the API may be slow, or the request or its answer was lost.
    #[error("{subject} was not answered within {} s", within.as_secs())]
    Unanswered { subject: String, within: Duration },
    /// A server answered for a stream that it perhaps does not lead any more: it is cut off from the
    /// others, or they have not chosen a leader yet.
    #[error(
        "no server leads the stream for now: {} has not heard from a majority of its servers {}",
        leader.as_deref().unwrap_or("the one that answered"),
        heard.map_or_else(|| "yet".to_owned(), |heard| format!("for {} s", heard.as_secs()))
    )]
    Unled {
        /// The server that answered, if it takes itself for the leader.
        leader: Option<String>,
        /// When it last heard from them.
        heard: Option<Duration>,
    },
    /// The answer cannot be parsed.
    #[error("{reason}")]
    Unreadable {
        /// The sequence of the message that the answer is about, if it names one.
        sequence: Option<u64>,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// Whether the server has no such stream.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == STREAM_NOT_FOUND)
    }

    /// Whether it is about the stream, so that each server would say the same. Other credentials, or
    /// a server that knows more, may help against the others.
    pub(super) fn is_of_stream(&self) -> bool {
        match self {
            Self::Refused { .. } => self.is_missing(),
            Self::Unreadable { .. } => true,
            Self::NoJetStream(_)
            | Self::Failed { .. }
            | Self::Unanswered { .. }
            | Self::Unled { .. } => false,
        }
    }
}

/// How long ago a leader may have heard from a majority of its servers: these wait for it for at
/// least 4 s before they choose another, and it answers for some ten seconds more. Source:
/// `minElectionTimeout` in `raft.go` of nats-server.
const HEARD_MAX: Duration = Duration::from_secs(3);

/// The JetStream API on a connection.
#[derive(Clone, Debug)]
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) prefix: String,
    pub(super) stream: String,
}

/// What the server says about a stream.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: StreamConfig,
    /// In RFC 3339.
    pub(super) created: String,
    pub(super) state: StreamState,
    /// The JetStream domain of the servers that hold it; empty for none.
    #[serde(default)]
    pub(super) domain: String,
    /// When the server said this, in RFC 3339.
    #[serde(default)]
    pub(super) ts: String,
    #[serde(default)]
    pub(super) mirror: Option<MirrorState>,
    #[serde(default)]
    cluster: Option<ClusterInfo>,
}

/// The servers that hold a stream.
#[derive(Clone, Debug, Deserialize)]
struct ClusterInfo {
    /// Empty for a server by itself.
    #[serde(default)]
    name: String,
    /// The leader, as far as the server knows one.
    #[serde(default)]
    leader: Option<String>,
    /// The other servers, if the leader says this.
    #[serde(default)]
    replicas: Vec<Replica>,
}

/// Another server that holds a stream.
#[derive(Clone, Debug, Deserialize)]
struct Replica {
    /// Nanoseconds since the leader heard from it; 0 if it never did.
    #[serde(default)]
    active: u64,
}

impl ClusterInfo {
    /// How long ago the leader last had heard from a majority of the servers, itself among them;
    /// none if it never had.
    fn majority_heard(&self) -> Option<Duration> {
        // All others were taken away: it is a majority by itself.
        if self.replicas.is_empty() {
            return Some(Duration::ZERO);
        }
        let majority = self.replicas.len().div_ceil(2);
        let mut heard: Vec<_> = self.replicas.iter().map(|replica| replica.active).collect();
        heard.retain(|active| *active > 0);
        heard.sort_unstable();
        let last = *heard.get(majority.checked_sub(1)?)?;
        Some(Duration::from_nanos(last))
    }
}

/// Settings of a stream.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamConfig {
    pub(super) subjects: Vec<String>,
    pub(super) retention: String,
    pub(super) storage: String,
    pub(super) discard: String,
    pub(super) max_age: u64,
    pub(super) max_msgs: i64,
    pub(super) max_bytes: i64,
    pub(super) max_msgs_per_subject: i64,
    pub(super) max_consumers: i64,
    pub(super) max_msg_size: i64,
    pub(super) num_replicas: u64,
    pub(super) duplicate_window: u64,
    pub(super) first_seq: u64,
    pub(super) allow_rollup_hdrs: bool,
    pub(super) allow_msg_ttl: bool,
    pub(super) allow_atomic: bool,
    pub(super) deny_delete: bool,
    pub(super) deny_purge: bool,
    pub(super) persist_mode: String,
    pub(super) consumer_limits: ConsumerLimits,
    pub(super) mirror: Option<MirrorConfig>,
    pub(super) sources: Option<Vec<serde::de::IgnoredAny>>,
    pub(super) subject_transform: Option<SubjectTransform>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// The first nats-server that takes ids (`Nats-Msg-Id`) in an atomic batch: 2.12.0 refuses them.
const BATCHES_WITH_IDS: [u32; 3] = [2, 12, 1];

impl StreamConfig {
    /// The level of the interface of the server that has the stream; 0 before nats-server 2.11.
    pub(super) fn api_level(&self) -> u32 {
        let level = self.metadata.get("_nats.level");
        level.and_then(|level| level.parse().ok()).unwrap_or(0)
    }

    /// The version of the server that has the stream, which need not be the connected one; none
    /// before nats-server 2.11.
    pub(super) fn server_version(&self) -> Option<[u32; 3]> {
        let version = self.metadata.get("_nats.ver")?;
        // What follows the numbers is a pre-release or a build.
        let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse().ok());
        Some([numbers.next()??, numbers.next()??, numbers.next()??])
    }

    /// Whether the stream takes atomic batches of messages with ids.
    pub(super) fn takes_batches_with_ids(&self) -> bool {
        self.allow_atomic && self.server_version() >= Some(BATCHES_WITH_IDS)
    }

    /// Whether the stream stores messages to a subject, and under it, as far as its settings say.
    pub(super) fn stores(&self, subject: &str) -> bool {
        let matches =
            |pattern: &str| Pattern::parse(pattern).is_ok_and(|pattern| pattern.matches(subject));
        let transform = self.subject_transform.as_ref();
        let is_moved =
            transform.is_some_and(|transform| transform.src.is_empty() || matches(&transform.src));
        !is_moved && self.subjects.iter().any(|taken| matches(taken))
    }
}

/// A stream stores messages under other subjects than they were published to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SubjectTransform {
    /// The subjects that it changes; empty for all.
    pub(super) src: String,
}

/// Limits of the stream for its consumers; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ConsumerLimits {
    /// In nanoseconds.
    pub(super) inactive_threshold: u64,
}

/// The definition of a mirror.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct MirrorConfig {
    /// The subjects that it copies; empty for all.
    pub(super) filter_subject: String,
    /// The same with renamed subjects.
    pub(super) subject_transforms: Vec<serde::de::IgnoredAny>,
}

/// The contents of a stream.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamState {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    #[serde(default)]
    pub(super) consumer_count: u64,
    #[serde(default)]
    pub(super) num_deleted: u64,
    /// The deleted sequences, in rising order, if requested.
    #[serde(default)]
    pub(super) deleted: Vec<u64>,
}

/// How far a mirror is behind its origin.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct MirrorState {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) lag: u64,
}

impl StreamInfo {
    /// When the stream was created, in nanoseconds since the Unix epoch.
    pub(super) fn created_ns(&self) -> Result<u64, Error> {
        nanoseconds(&self.created).map_err(unreadable)
    }

    /// Whether a cluster holds the stream.
    pub(super) fn is_clustered(&self) -> bool {
        self.cluster
            .as_ref()
            .is_some_and(|cluster| !cluster.name.is_empty())
    }

    /// Whether several servers hold the stream.
    pub(super) fn is_replicated(&self) -> bool {
        self.is_clustered() && self.config.num_replicas > 1
    }

    /// When the server that answered a question of this time certainly led the stream; none if that
    /// is unknown.
    pub(super) fn led_at(&self, asked: Instant) -> Option<Instant> {
        // Also if the stream had several replicas before.
        if !self.is_replicated() {
            return Some(asked);
        }
        asked.checked_sub(self.cluster.as_ref()?.majority_heard()?)
    }

    /// An error if other servers may have chosen another leader than the one that answered.
    fn must_be_led(&self) -> Result<(), Error> {
        let Some(cluster) = self.cluster.as_ref().filter(|_| self.is_replicated()) else {
            return Ok(());
        };
        let (leader, heard) = (cluster.leader.clone(), cluster.majority_heard());
        let is_led = leader.is_some() && heard.is_some_and(|heard| heard <= HEARD_MAX);
        is_led.then_some(()).ok_or(Error::Unled { leader, heard })
    }

    /// First existing sequence, or the next one if the stream is empty.
    pub(super) fn first(&self) -> u64 {
        // An empty stream reports 0, or the first sequence that it will assign.
        if self.state.messages == 0 {
            self.state.last_seq + 1
        } else {
            self.state.first_seq
        }
    }
}

/// A consumer to create. Everything in it is dropped with the connection.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ConsumerConfig<'a> {
    pub(super) name: String,
    pub(super) deliver_policy: &'static str,
    pub(super) opt_start_seq: u64,
    pub(super) ack_policy: &'static str,
    pub(super) replay_policy: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) filter_subject: Option<&'a str>,
    /// In nanoseconds.
    pub(super) inactive_threshold: u64,
    pub(super) num_replicas: u32,
    pub(super) mem_storage: bool,
}

#[derive(Serialize)]
struct CreateConsumer<'a> {
    stream_name: &'a str,
    config: &'a ConsumerConfig<'a>,
    action: &'static str,
}

/// What the server says about a new consumer.
#[derive(Debug, Deserialize)]
pub(super) struct ConsumerInfo {
    /// As the server created it, with the limits of the server, the account and the stream.
    #[serde(default)]
    pub(super) config: RequestLimits,
    /// Matching events after its start.
    #[serde(default)]
    pub(super) num_pending: u64,
}

/// The limits of one request for events; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RequestLimits {
    pub(super) max_batch: u64,
    /// In nanoseconds.
    pub(super) max_expires: u64,
    pub(super) max_bytes: u64,
}

/// A message that was fetched alone.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    /// The server has replaced octets that are not UTF-8.
    pub(super) subject: String,
    pub(super) time_ns: u64,
    /// The header block as published.
    pub(super) headers: Vec<u8>,
    pub(super) data: bytes::Bytes,
}

#[derive(Deserialize)]
struct Envelope {
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct MessageGet<'a> {
    #[serde(borrow)]
    message: StoredMessage<'a>,
}

#[derive(Deserialize)]
struct StoredMessage<'a> {
    seq: u64,
    subject: String,
    time: String,
    /// Base64, both. Borrowed: a copy of a large message would be one too many.
    #[serde(borrow, default)]
    hdrs: Cow<'a, str>,
    #[serde(borrow, default)]
    data: Cow<'a, str>,
}

impl StoredMessage<'_> {
    /// The message itself; an error names its sequence.
    fn stored(self) -> Result<Stored, Error> {
        let Self {
            seq: sequence,
            subject,
            time,
            hdrs,
            data,
        } = self;
        let unreadable = |reason| Error::Unreadable {
            sequence: Some(sequence),
            reason,
        };
        Ok(Stored {
            sequence,
            subject,
            time_ns: nanoseconds(&time).map_err(unreadable)?,
            headers: decoded(&hdrs).map_err(unreadable)?,
            data: decoded(&data).map_err(unreadable)?.into(),
        })
    }
}

/// The sequence of the message in an answer that cannot be parsed otherwise.
fn sequence_in(answer: &[u8]) -> Option<u64> {
    // As far as it is JSON: a message that cannot be decoded still has its sequence.
    let answer: serde_json::Value = serde_json::from_slice(answer).ok()?;
    answer.pointer("/message/seq")?.as_u64()
}

impl Api {
    /// The current state of the stream.
    pub(super) async fn stream_info(&self) -> Result<StreamInfo, Error> {
        self.described(&serde_json::json!({})).await
    }

    /// The same with all deleted sequences.
    pub(super) async fn stream_info_with_deleted(&self) -> Result<StreamInfo, Error> {
        self.described(&serde_json::json!({ "deleted_details": true }))
            .await
    }

    async fn described(&self, body: &serde_json::Value) -> Result<StreamInfo, Error> {
        let info: StreamInfo = self
            .call(&format!("STREAM.INFO.{}", self.stream), body)
            .await?;
        info.must_be_led()?;
        Ok(info)
    }

    pub(super) async fn create_consumer(
        &self,
        config: &ConsumerConfig<'_>,
    ) -> Result<ConsumerInfo, Error> {
        let mut subject = format!("CONSUMER.CREATE.{}.{}", self.stream, config.name);
        // The server checks permissions by it, so it has to be the filter of the body.
        if let Some(filter) = config.filter_subject {
            subject.push('.');
            subject.push_str(filter);
        }
        let request = CreateConsumer {
            stream_name: &self.stream,
            config,
            action: "create",
        };
        self.call_within(CREATION_MAX, &subject, &request).await
    }

    /// The subject under which a consumer takes requests for events.
    pub(super) fn next_subject(&self, consumer: &str) -> String {
        format!(
            "{}.CONSUMER.MSG.NEXT.{}.{consumer}",
            self.prefix, self.stream
        )
    }

    /// The subject under which a consumer can be deleted.
    pub(super) fn delete_subject(&self, consumer: &str) -> String {
        format!("{}.CONSUMER.DELETE.{}.{consumer}", self.prefix, self.stream)
    }

    /// One message, from the leader of the stream.
    ///
    /// Not a direct get: that returns headers unchanged, and the client drops the connection on a
    /// block that it cannot parse.
    pub(super) async fn message(&self, sequence: u64) -> Result<Option<Stored>, Error> {
        self.get(&serde_json::json!({ "seq": sequence })).await
    }

    /// The first message from a sequence on with a matching subject.
    pub(super) async fn next_message(
        &self,
        from: u64,
        filter: &str,
    ) -> Result<Option<Stored>, Error> {
        self.get(&serde_json::json!({ "seq": from, "next_by_subj": filter }))
            .await
    }

    /// The last message of a subject.
    pub(super) async fn last_message(&self, subject: &str) -> Result<Option<Stored>, Error> {
        self.get(&serde_json::json!({ "last_by_subj": subject }))
            .await
    }

    async fn get(&self, body: &serde_json::Value) -> Result<Option<Stored>, Error> {
        let subject = format!("STREAM.MSG.GET.{}", self.stream);
        let answer = self.ask(ANSWER_MAX, &subject, body).await?;
        match parsed::<MessageGet<'_>>(&subject, &answer.payload) {
            Ok(answer) => answer.message.stored().map(Some),
            // Not an error: it was removed, or is yet to come.
            Err(Error::Refused {
                code: MESSAGE_NOT_FOUND,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An empty request that only shows whether it is allowed; the answer does not matter.
    pub(super) async fn trial(&self, subject: &str, within: Duration) {
        let request = Request::new()
            .payload(bytes::Bytes::new())
            .timeout(Some(within));
        drop(
            self.client
                .send_request(format!("{}.{subject}", self.prefix), request)
                .await,
        );
    }

    /// Time of the first message from a sequence on with a matching subject, in nanoseconds since
    /// the Unix epoch; none if there is none.
    pub(super) async fn time_of_next(
        &self,
        sequence: u64,
        subject: &str,
    ) -> Result<Option<u64>, Error> {
        let body = serde_json::json!({ "seq": sequence, "next_by_subj": subject });
        let subject = format!("STREAM.MSG.GET.{}", self.stream);
        let answer = self.ask(ANSWER_MAX, &subject, &body).await?;
        match parsed::<MessageGet<'_>>(&subject, &answer.payload) {
            Ok(answer) => nanoseconds(&answer.message.time)
                .map(Some)
                .map_err(unreadable),
            Err(Error::Refused {
                code: MESSAGE_NOT_FOUND,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn call<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        subject: &str,
        body: &B,
    ) -> Result<T, Error> {
        self.call_within(ANSWER_MAX, subject, body).await
    }

    async fn call_within<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        within: Duration,
        subject: &str,
        body: &B,
    ) -> Result<T, Error> {
        let message = self.ask(within, subject, body).await?;
        parsed(subject, &message.payload)
    }

    async fn ask<B: Serialize + Sync>(
        &self,
        within: Duration,
        subject: &str,
        body: &B,
    ) -> Result<Message, Error> {
        let body = serde_json::to_vec(body).expect("requests are plain JSON");
        let request = Request::new().payload(body.into()).timeout(Some(within));
        let full = format!("{}.{subject}", self.prefix);
        self.client
            .send_request(full, request)
            .await
            .map_err(|error| match error.kind() {
                RequestErrorKind::NoResponders => Error::NoJetStream(self.prefix.clone()),
                RequestErrorKind::TimedOut => Error::Unanswered {
                    subject: subject.to_owned(),
                    within,
                },
                _ => Error::Failed {
                    subject: subject.to_owned(),
                    error,
                },
            })
    }
}

/// What a call has returned.
fn parsed<'a, T: Deserialize<'a>>(subject: &str, answer: &'a [u8]) -> Result<T, Error> {
    let unreadable = |error| Error::Unreadable {
        sequence: sequence_in(answer),
        reason: format!("the answer of {subject} cannot be parsed: {error}"),
    };
    // Every answer is either this or an object with its own fields.
    let envelope: Envelope = serde_json::from_slice(answer).map_err(unreadable)?;
    if let Some(error) = envelope.error {
        return Err(Error::Refused {
            code: error.err_code,
            description: error.description,
        });
    }
    serde_json::from_slice(answer).map_err(unreadable)
}

fn unreadable(reason: String) -> Error {
    Error::Unreadable {
        sequence: None,
        reason,
    }
}

fn nanoseconds(time: &str) -> Result<u64, String> {
    let time: jiff::Timestamp = time
        .parse()
        .map_err(|error| format!("the server gave a time of `{time}`: {error}"))?;
    u64::try_from(time.as_nanosecond()).map_err(|_| format!("the server gave a time of {time}"))
}

fn decoded(text: &str) -> Result<Vec<u8>, String> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|error| format!("the server gave invalid base64: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_batches_are_taken_from_the_first_server_on_that_has_them() {
        let takes = |version: Option<&str>| {
            let metadata = version.map(|version| ("_nats.ver".to_owned(), version.to_owned()));
            let config = StreamConfig {
                allow_atomic: true,
                metadata: metadata.into_iter().collect(),
                ..StreamConfig::default()
            };
            config.takes_batches_with_ids()
        };
        for known in ["2.12.1", "2.12.1-RC.2", "2.13.0-dev", "2.15.1", "3.0.0"] {
            assert!(takes(Some(known)), "{known}");
        }
        for not in [
            "2.11.9",
            "2.12.0",
            "2.12",
            "2",
            "",
            "v2.12.1",
            "99999999999.1.1",
        ] {
            assert!(!takes(Some(not)), "{not}");
        }
        assert!(!takes(None));
    }

    #[test]
    fn a_leader_leads_as_long_as_it_hears_from_a_majority() {
        let heard = |others: &[u64]| {
            let replicas: Vec<_> = others
                .iter()
                .map(|active| serde_json::json!({ "name": "s", "active": active }))
                .collect();
            serde_json::from_value::<ClusterInfo>(serde_json::json!({ "replicas": replicas }))
                .expect("it is sound")
                .majority_heard()
                .map(|time| time.as_nanos())
        };
        assert_eq!(heard(&[900, 7]), Some(7), "two of three");
        assert_eq!(heard(&[900, 7, 30, 800]), Some(30), "three of five");
        assert_eq!(heard(&[900, 7, 30]), Some(30), "three of four");
        assert_eq!(heard(&[0, 7]), Some(7));
        assert_eq!(heard(&[0, 0]), None, "it never heard from any");
        assert_eq!(heard(&[]), Some(0), "it has no others");
        let is_believed = |replicas: u64, leader: Option<&str>, active: u64| {
            let info = serde_json::json!({
                "config": { "num_replicas": replicas }, "created": "2026-11-23T06:00:00Z",
                "state": { "messages": 0, "bytes": 0, "first_seq": 0, "last_seq": 0 },
                "cluster": { "name": "c", "leader": leader, "replicas": [{ "active": active }] },
            });
            let info: StreamInfo = serde_json::from_value(info).expect("it is sound");
            info.must_be_led().is_ok()
        };
        let second = 1_000_000_000;
        assert!(is_believed(3, Some("s"), second));
        assert!(
            !is_believed(3, Some("s"), 4 * second),
            "there may be another"
        );
        assert!(!is_believed(3, Some("s"), 0));
        assert!(!is_believed(3, None, second));
        assert!(is_believed(1, None, 0), "it can't differ from itself");
    }

    #[test]
    fn a_message_that_cannot_be_parsed_is_named_by_its_sequence() {
        let sound = serde_json::json!({ "seq": 7, "subject": "a", "time": "2026-11-23T06:00:00Z", "data": "e30=" });
        let read = |change: fn(&mut serde_json::Value)| {
            let mut message = sound.clone();
            change(&mut message);
            let message = message.to_string();
            serde_json::from_str::<StoredMessage<'_>>(&message).map(StoredMessage::stored)
        };
        assert_eq!(
            read(|_| ())
                .expect("it is whole")
                .expect("it is sound")
                .sequence,
            7
        );
        let changes: [fn(&mut serde_json::Value); 3] = [
            |it| it["hdrs"] = "!".into(),
            |it| it["data"] = "!".into(),
            |it| it["time"] = "noon".into(),
        ];
        for change in changes {
            let error = read(change)
                .expect("it is whole")
                .expect_err("it is broken");
            assert!(
                matches!(
                    error,
                    Error::Unreadable {
                        sequence: Some(7),
                        ..
                    }
                ),
                "{error:?}"
            );
        }
        assert_eq!(
            sequence_in(br#"{"message":{"seq":7,"subject":[]}}"#),
            Some(7)
        );
        assert_eq!(sequence_in(br#"{"message":{"seq":7"#), None);
    }
}
