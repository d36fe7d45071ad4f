//! Publishing to a stream: one message at a time, or several at once, confirmed by the stream.
//!
//! The only place that publishes. Every message names its stream and its id, so that it is stored
//! nowhere else, and not twice within the stream's window.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::client::{PublishErrorKind, Request, RequestError, RequestErrorKind};
use async_nats::{HeaderMap, HeaderName, HeaderValue, Message};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::JetStream;
use super::connect::Settings;
use super::headers::Block;
use super::link::{Link, Trouble};
use super::open::trouble;
use super::wire::{self, Api, StreamConfig, StreamInfo};
use crate::timestamp;

/// How long a confirmation may take.
pub const CONFIRMATION_MAX: Duration = Duration::from_secs(5);
/// The header with the id of a message. Its case matters to servers.
const ID_HEADER: &str = "Nats-Msg-Id";
/// Headers of messages that are stored together.
const BATCH_HEADER: &str = "Nats-Batch-Id";
const BATCH_SEQUENCE_HEADER: &str = "Nats-Batch-Sequence";
/// Headers of messages that are kept for a while, or stored on a condition.
const TTL_HEADER: &str = "Nats-TTL";
const EXPECTED_HEADER: &str = "Nats-Expected-Last-Subject-Sequence";
const EXPECTED_OF_HEADER: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
/// The first level of the server's interface (nats-server 2.12) that knows conditions on other
/// subjects than that of the message. Older servers ignore them.
const LEVEL_OF_CONDITIONS: u32 = 2;
/// The server's code for a last sequence that is not the expected one.
const WRONG_LAST_SEQUENCE: u64 = 10_071;
/// Its code for a message whose id belongs to one that its servers have not agreed on yet.
const ID_IN_PROCESS: u64 = 10_158;
/// Its code for a batch with a message that it recognises by its id.
const KNOWN_ID: u64 = 10_201;
/// Most messages that are looked at to find out what is stored.
const LOOKED_AT_MAX: usize = 50_000;
/// How many of them are asked for at a time, each in a part of the stream, and how long a part is at
/// least.
const LOOKS: u64 = 16;
const LOOK_MIN: u64 = 256;
/// A stream that removes messages sooner does not show what it had stored.
const KEPT_MIN: Duration = Duration::from_secs(3_600);
/// How long a publisher stays with a server that does not have the stream, if others are configured:
/// they may be no cluster of each other, and it may have come here while the right one was away.
const STAY_MIN: Duration = Duration::from_secs(10);
/// How long the stream may take to describe itself.
const DESCRIPTION_MAX: Duration = Duration::from_secs(5);

/// A message to publish.
#[derive(Clone, Debug, Default)]
pub struct Outgoing {
    /// Its id; empty if nobody has to recognise it.
    pub id: String,
    /// Its subject.
    pub subject: String,
    /// Headers, without those that this module sets.
    pub headers: Vec<(String, String)>,
    /// Its data.
    pub data: Bytes,
    /// How long the stream keeps it, in seconds; none for as long as any other.
    pub time_to_live_s: Option<u32>,
    /// A pattern that covers the subject, and the sequence that its last message must have.
    pub condition: Option<(String, u64)>,
}

/// The confirmation of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The stream had it already.
    pub is_duplicate: bool,
    /// Its sequence in the stream.
    pub sequence: u64,
}

/// Why a message is not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The stream has not stored it, and will not.
    #[error("{0}")]
    NotStored(String),
    /// Its condition does not hold, so the stream has not stored it.
    #[error("{0}")]
    Conflict(String),
    /// The stream may have stored it.
    #[error("{0}")]
    Unknown(String),
}

/// Why a batch is not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The cursor is not where it was, because another owner has moved it, or the condition of a
    /// message does not hold. Nothing is stored.
    #[error("{0}")]
    Moved(String),
    /// A message of it is in the stream already, within the window in which the stream recognises
    /// ids. Nothing is stored.
    #[error("{0}")]
    Known(String),
    /// The stream has stored nothing of it, and will not.
    #[error("{0}")]
    NotStored(String),
    /// The stream may have stored all of it.
    #[error("{0}")]
    Unknown(String),
}

/// Why nothing can be published for now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unavailable {
    message: String,
    /// Whether another server may say something else of the stream.
    elsewhere: Elsewhere,
}

/// Whether another server may say something else of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Elsewhere {
    /// It may: this one is silent, or cut off from its cluster.
    Perhaps,
    /// Only one that belongs to no cluster with this one.
    IfApart,
    /// No: it is about the stream itself.
    Same,
}

impl Unavailable {
    fn silent(stream: &str) -> Self {
        Trouble::lost(format!("stream {stream} does not answer")).into()
    }

    fn of_stream(message: String) -> Self {
        Self {
            message,
            elsewhere: Elsewhere::Same,
        }
    }
}

impl From<Trouble> for Unavailable {
    fn from(trouble: Trouble) -> Self {
        Self {
            message: trouble.message,
            elsewhere: Elsewhere::Perhaps,
        }
    }
}

/// What a publisher needs to know about a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// When it was created, in nanoseconds since the Unix epoch, as far as the server says.
    pub created_ns: Option<u64>,
    /// How long it recognises ids.
    pub window: Duration,
    /// Whether it keeps messages long enough to find out later what it has stored.
    pub keeps: bool,
    /// Whether it stores some messages under other subjects, where nobody looks for them.
    pub transforms: bool,
    /// Whether it stores several messages at once, or none.
    pub is_atomic: bool,
    /// Whether messages may have a time to live of their own.
    pub takes_ttl: bool,
    /// Whether its server knows conditions on other subjects than that of the message.
    pub takes_conditions: bool,
    /// Its first sequence, or the next one if it is empty.
    pub first: u64,
    /// Its last sequence.
    pub last: u64,
    /// How many messages between them are gone.
    pub deleted: u64,
    /// The server's time, in nanoseconds since the Unix epoch, if it said so.
    pub time_ns: Option<u64>,
}

/// What decides how safe publishing to a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    created_ns: Option<u64>,
    window: Duration,
    keeps: bool,
    transforms: bool,
    is_atomic: bool,
}

impl Description {
    /// What decides how safe publishing is; a stream may be edited at any time.
    pub fn terms(&self) -> Terms {
        Terms {
            created_ns: self.created_ns,
            window: self.window,
            keeps: self.keeps,
            transforms: self.transforms,
            is_atomic: self.is_atomic,
        }
    }
}

/// Publishes to the stream of a source, over a connection of its own.
#[derive(Debug)]
pub struct Publisher {
    pub(super) settings: Arc<Settings>,
    link: Mutex<Option<Link>>,
    /// When it left a server that does not have the stream, and how often it did.
    moves: parking_lot::Mutex<(Option<Instant>, usize)>,
    /// The JetStream domain of the stream, empty for none; none before the stream was described.
    pub(super) domain: parking_lot::Mutex<Option<String>>,
    /// Which other stream has answered to the last message, if one did.
    pub(super) other: parking_lot::Mutex<Option<String>>,
}

/// What a stream answers to a message: `JSPubAckResponse` of nats-server.
#[derive(Deserialize)]
pub(super) struct Answer {
    #[serde(default)]
    pub(super) stream: String,
    #[serde(default)]
    pub(super) domain: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    pub(super) error: Option<Refusal>,
}

#[derive(Deserialize)]
pub(super) struct Refusal {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl JetStream {
    /// A publisher to the stream. It connects when it is used.
    pub fn publisher(&self) -> Publisher {
        Publisher {
            settings: Arc::clone(&self.settings),
            link: Mutex::default(),
            moves: parking_lot::Mutex::default(),
            domain: parking_lot::Mutex::default(),
            other: parking_lot::Mutex::default(),
        }
    }
}

impl Publisher {
    fn api(&self, link: &Link) -> Api {
        let (prefix, stream) = (
            self.settings.api_prefix.clone(),
            self.settings.stream.clone(),
        );
        Api {
            client: link.client().clone(),
            prefix,
            stream,
        }
    }

    /// Asks about the stream. The next call makes another connection if that may help: this one may
    /// reach a server that is cut off from its cluster, and another server may know more.
    async fn asked<T>(
        &self,
        link: &mut Link,
        question: impl Future<Output = Result<T, wire::Error>>,
    ) -> Result<T, Unavailable> {
        let answer = self.answer(link, question).await;
        let helps = match answer.as_ref().err().map(|why| why.elsewhere) {
            Some(Elsewhere::Perhaps) => true,
            Some(Elsewhere::IfApart) => self.moves_on(),
            Some(Elsewhere::Same) | None => false,
        };
        if helps {
            self.give_up(link).await;
        }
        answer
    }

    /// Whether it is time to look for the stream at another of the configured servers; then that one
    /// is tried next.
    fn moves_on(&self) -> bool {
        if self.settings.servers.len() < 2 {
            return false;
        }
        let mut moves = self.moves.lock();
        let is_soon = |at: Instant| at.elapsed() < STAY_MIN;
        // Each attempt to publish asks, and a cluster has nothing else to say.
        if moves.0.is_some_and(is_soon) {
            return false;
        }
        *moves = (Some(Instant::now()), moves.1 + 1);
        true
    }

    /// The answer to a question about the stream.
    async fn answer<T>(
        &self,
        link: &mut Link,
        question: impl Future<Output = Result<T, wire::Error>>,
    ) -> Result<T, Unavailable> {
        let stream = &self.settings.stream;
        let asked = tokio::time::timeout(DESCRIPTION_MAX, link.permitted(question)).await;
        let answer = asked.map_err(|_| Unavailable::silent(stream))??;
        answer.map_err(|error| Unavailable {
            message: trouble(stream, &error).message,
            elsewhere: match error {
                _ if error.is_missing() => Elsewhere::IfApart,
                _ if error.is_of_stream() => Elsewhere::Same,
                _ => Elsewhere::Perhaps,
            },
        })
    }

    /// Connects if it must, and asks the server about the stream.
    pub(super) async fn stream_info(&self) -> Result<StreamInfo, Unavailable> {
        let mut link = self.link().await?;
        let api = self.api(&link);
        match self.asked(&mut link, api.stream_info()).await {
            Ok(info) => {
                *self.domain.lock() = Some(info.domain.clone());
                Ok(info)
            }
            // What else takes the messages is the better half of the explanation.
            Err(mut away) => {
                if let Some(other) = self.other.lock().as_ref() {
                    away.message = format!("{}; {other}", away.message);
                }
                Err(away)
            }
        }
    }

    /// Connects if it must, and finds out whether the stream stores messages to a subject, and under
    /// it, as far as its settings say. An error says why that is not known.
    pub async fn stores(&self, subject: &str) -> Result<bool, Unavailable> {
        Ok(self.stream_info().await?.config.stores(subject))
    }

    /// Connects if it must, and describes the stream.
    pub async fn describe(&self) -> Result<Description, Unavailable> {
        let info = self.stream_info().await?;
        check(&self.settings.stream, &info.config)?;
        Ok(Description {
            created_ns: info.created_ns().ok(),
            window: Duration::from_nanos(info.config.duplicate_window),
            keeps: keeps(&info.config),
            transforms: info.config.subject_transform.is_some(),
            is_atomic: info.config.takes_batches_with_ids(),
            // A server that does not know it does not repeat it.
            takes_ttl: info.config.allow_msg_ttl,
            takes_conditions: info.config.api_level() >= LEVEL_OF_CONDITIONS,
            first: info.first(),
            last: info.state.last_seq,
            deleted: info.state.num_deleted,
            time_ns: timestamp::parse_ns(&info.ts).ok(),
        })
    }

    /// Ids of messages after a sequence whose subjects match, and that begin with a prefix; none if
    /// there are too many messages to look at. They are read from the leader, so what is not among
    /// them was not stored when this began. `last` is about where the stream ends; `passed` learns how
    /// many sequences up to there are behind.
    pub async fn ids_after(
        &self,
        (sequence, last): (u64, u64),
        (subjects, prefix): (&str, &str),
        passed: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Option<HashSet<String>>, Unavailable> {
        let link = self.link().await?;
        let search = Search {
            subjects,
            prefix,
            last,
            left: AtomicUsize::new(LOOKED_AT_MAX),
            behind: AtomicU64::new(0),
            passed,
        };
        let parts = parts_after(sequence, last).into_iter();
        let looks = parts.map(|part| self.ids_in(link.clone(), part, &search));
        let found = futures_util::future::try_join_all(looks).await?;
        // Of one part too many: nothing is known.
        let found: Option<Vec<_>> = found.into_iter().collect();
        Ok(found.map(|found| found.into_iter().flatten().collect()))
    }

    /// The same for a part of the stream, whose end may be open.
    async fn ids_in(
        &self,
        mut link: Link,
        (mut from, until): (u64, u64),
        search: &Search<'_>,
    ) -> Result<Option<HashSet<String>>, Unavailable> {
        let api = self.api(&link);
        let mut ids = HashSet::new();
        // One message at a time, because headers are not part of any list that the server gives, and
        // a direct get may be answered by a replica that lacks the newest ones.
        loop {
            let one_less = |left: usize| left.checked_sub(1);
            if search
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
                .is_err()
            {
                return Ok(None);
            }
            let next = api.next_message(from, search.subjects);
            let found = self.asked(&mut link, next).await?;
            // Nothing more: what is not in the set was not stored.
            let Some(stored) = found.filter(|stored| stored.sequence <= until) else {
                search.advance((from, until.saturating_add(1)));
                return Ok(Some(ids));
            };
            search.advance((from, stored.sequence + 1));
            from = stored.sequence + 1;
            let headers = Block::read(&stored.headers).headers;
            let id = headers
                .into_iter()
                .find(|(name, _)| name == ID_HEADER)
                .map(|(_, id)| id);
            ids.extend(id.filter(|id| id.starts_with(search.prefix)));
        }
    }

    /// Whether the stream lacks a message after a sequence and up to its end. What it has too many of
    /// to list may be there.
    pub async fn lacks_after(
        &self,
        sequence: u64,
        description: &Description,
    ) -> Result<bool, Unavailable> {
        if description.deleted == 0 || sequence >= description.last {
            return Ok(false);
        }
        if description.deleted > LOOKED_AT_MAX as u64 {
            return Ok(true);
        }
        let mut link = self.link().await?;
        let api = self.api(&link);
        let info = self
            .asked(&mut link, api.stream_info_with_deleted())
            .await?;
        Ok(info.state.deleted.iter().any(|gone| *gone > sequence))
    }

    /// Whether the stream has a message under the subject to which it was sent; none if it has no
    /// such message at that sequence.
    pub async fn has_as_sent(
        &self,
        sequence: u64,
        message: &Outgoing,
    ) -> Result<Option<bool>, Unavailable> {
        let mut link = self.link().await?;
        let api = self.api(&link);
        let found = self.answer(&mut link, api.message(sequence)).await?;
        let found = found.filter(|stored| is_itself(message, &stored.headers));
        Ok(found.map(|stored| stored.subject == message.subject))
    }

    /// Sequence and data of the last message of a subject; none if there is none.
    pub async fn last_of(&self, subject: &str) -> Result<Option<(u64, Bytes)>, Unavailable> {
        let mut link = self.link().await?;
        let api = self.api(&link);
        let found = self.asked(&mut link, api.last_message(subject)).await?;
        Ok(found.map(|stored| (stored.sequence, stored.data)))
    }

    /// Whether it is connected at the moment.
    pub fn is_up(&self) -> bool {
        let slot = self.link.try_lock();
        slot.is_ok_and(|link| link.as_ref().is_some_and(Link::is_up))
    }

    /// Connects if it must.
    pub async fn ready(&self) -> Result<(), Unavailable> {
        self.link().await.map(drop)
    }

    /// Publishes a message, and waits until the stream has stored it.
    pub async fn publish(&self, message: &Outgoing) -> Result<Confirmed, PublishError> {
        let mut link = self
            .link()
            .await
            .map_err(|error| PublishError::NotStored(error.message))?;
        let headers = self.headers(message).map_err(PublishError::NotStored)?;
        let answer = ask(&mut link, message, headers)
            .await
            // The message may have been on its way when the connection ended.
            .map_err(|trouble| PublishError::Unknown(trouble.message))?;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Err(self.unanswered(message, &error).await),
        };
        // A request to that subject reached a service of somebody else.
        let said = serde_json::from_slice(&answer.payload).map_err(|_| {
            PublishError::Unknown(format!(
                "subject {} is answered by something that is no stream",
                message.subject
            ))
        });
        let confirmed = match said {
            Ok(said) => match self.other_stream(&message.subject, &said).await {
                Some(other) => return self.read_back(message, other).await,
                None => self.confirmed(message, said),
            },
            Err(unknown) => Err(unknown),
        };
        let refused = match confirmed {
            Ok(confirmed) => return Ok(confirmed),
            Err(unknown @ PublishError::Unknown(_)) => {
                // An earlier leader that is cut off may answer like this.
                drop(self.stream_info().await);
                return Err(unknown);
            }
            Err(refused) => refused,
        };
        // Newer servers ask for the condition before they recognise an id, and older ones forget ids:
        // a message that is sent again may be what its own condition excludes, or what fills a limit.
        match self.own_sequence(message).await {
            Ok(Some(sequence)) => Ok(Confirmed {
                is_duplicate: true,
                sequence,
            }),
            Ok(None) => Err(refused),
            // It would be set aside for ever.
            Err(error) if matches!(refused, PublishError::Conflict(_)) => {
                Err(PublishError::Unknown(error.message))
            }
            Err(_) => Err(refused),
        }
    }

    /// Why a message was not answered. A server that is cut off from its cluster says no more than
    /// this, so the stream is asked: if it can't answer either, another connection may help.
    async fn unanswered(&self, message: &Outgoing, error: &RequestError) -> PublishError {
        let (stream, subject) = (&self.settings.stream, &message.subject);
        match error.kind() {
            RequestErrorKind::TimedOut => {
                // The message may be stored, whatever the answer is.
                drop(self.stream_info().await);
                PublishError::Unknown(format!("stream {stream} did not confirm within 5 s"))
            }
            // Nobody subscribes to it, so no stream can have stored it.
            RequestErrorKind::NoResponders => {
                PublishError::NotStored(match self.stream_info().await {
                    Ok(_) => nobody_stores(stream, subject),
                    Err(away) => away.message,
                })
            }
            // The client has not sent it.
            RequestErrorKind::MaxPayloadExceeded => {
                PublishError::NotStored(too_large(subject, error))
            }
            _ => PublishError::Unknown(error.to_string()),
        }
    }

    /// The sequence of a message that the stream has although it refuses it now; none if it does not
    /// have it where it would be: if it has a condition, as the first one after the sequence that it
    /// expects, because it was stored when that was the last one, and otherwise as the last one of its
    /// subject.
    pub async fn own_sequence(&self, message: &Outgoing) -> Result<Option<u64>, Unavailable> {
        let mut link = self.link().await?;
        let api = self.api(&link);
        let look = async {
            match &message.condition {
                Some((subjects, sequence)) => {
                    api.next_message(sequence.saturating_add(1), subjects).await
                }
                None => api.last_message(&message.subject).await,
            }
        };
        // It has just answered to the message, so no other connection would know more.
        let found = self.answer(&mut link, look).await?;
        Ok(found
            .filter(|stored| is_itself(message, &stored.headers))
            .map(|stored| stored.sequence))
    }

    /// Publishes messages and behind them a cursor, all or nothing: only if the last message of the
    /// cursor's subject has the sequence `after` (0 for none). At most 1,000 in all. Returns the
    /// sequence of the cursor.
    pub async fn publish_batch(
        &self,
        messages: &[Outgoing],
        (subject, data): (&str, Bytes),
        after: u64,
    ) -> Result<u64, BatchError> {
        let not_stored = BatchError::NotStored;
        let mut link = self
            .link()
            .await
            .map_err(|error| not_stored(error.message))?;
        // The server holds parts of batches apart by it.
        let batch = format!("{:016x}", fastrand::u64(..));
        let mut numbered = Vec::with_capacity(messages.len());
        for (number, message) in (1_u64..).zip(messages) {
            let mut headers = self.headers(message).map_err(not_stored)?;
            headers.insert(BATCH_HEADER, batch.as_str());
            headers.insert(BATCH_SEQUENCE_HEADER, number.to_string().as_str());
            numbered.push((message.subject.clone(), headers, message.data.clone()));
        }
        let (number, after) = ((messages.len() + 1).to_string(), after.to_string());
        let own = [
            ("Nats-Expected-Stream", self.settings.stream.as_str()),
            (EXPECTED_HEADER, after.as_str()),
            (BATCH_HEADER, batch.as_str()),
            (BATCH_SEQUENCE_HEADER, number.as_str()),
            ("Nats-Batch-Commit", "1"),
        ];
        let request = Request::new()
            .headers(header_map(own.into_iter()).map_err(not_stored)?)
            .payload(data)
            .timeout(Some(CONFIRMATION_MAX));
        let (client, subject) = (link.client().clone(), subject.to_owned());
        let subject_of_cursor = subject.clone();
        let stream = &self.settings.stream;
        let unknown = BatchError::Unknown;
        let call = async move {
            // Unconfirmed: the stream answers to the last one, about all of them.
            for (subject, headers, data) in numbered {
                let sent = client
                    .publish_with_headers(subject.clone(), headers, data)
                    .await;
                sent.map_err(|error| match error.kind() {
                    // The batch stays incomplete, so nothing of it is stored.
                    PublishErrorKind::MaxPayloadExceeded => not_stored(too_large(&subject, &error)),
                    _ => unknown(error.to_string()),
                })?;
            }
            let answer = client.send_request(subject.clone(), request).await;
            answer.map_err(|error| match error.kind() {
                // Nobody got the last one, so nothing of the batch is stored.
                RequestErrorKind::NoResponders => not_stored(nobody_stores(stream, &subject)),
                _ => unknown(error.to_string()),
            })
        };
        let answer = link.permitted(call).await;
        let answer = answer.map_err(|trouble| unknown(trouble.message))?;
        let said = serde_json::from_slice(&answer?.payload).map_err(|_| {
            unknown(format!(
                "messages for stream {stream} are answered by something else"
            ))
        })?;
        match self.other_stream(&subject_of_cursor, &said).await {
            // The cursor tells what is stored.
            Some(other) => Err(unknown(other)),
            None => self.batch_confirmed(said),
        }
    }

    /// Why the stream refuses a message as a part of a batch; none if it does not say. Stores
    /// nothing, because the batch is never completed.
    pub async fn refusal(&self, message: &Outgoing) -> Option<String> {
        let mut link = self.link().await.ok()?;
        let mut headers = self.headers(message).ok()?;
        headers.insert(BATCH_HEADER, format!("{:016x}", fastrand::u64(..)).as_str());
        headers.insert(BATCH_SEQUENCE_HEADER, "1");
        let (stream, subject) = (&self.settings.stream, &message.subject);
        match ask(&mut link, message, headers).await.ok()? {
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                Some(nobody_stores(stream, subject))
            }
            Err(error) if error.kind() == RequestErrorKind::MaxPayloadExceeded => {
                Some(too_large(subject, &error))
            }
            Err(_) => None,
            Ok(answer) => {
                let answer: Answer = serde_json::from_slice(&answer.payload).ok()?;
                let refusal = answer.error?;
                Some(refused(
                    stream,
                    subject,
                    &refusal.description,
                    refusal.err_code,
                ))
            }
        }
    }

    /// What the answer to a batch says.
    fn batch_confirmed(&self, said: Answer) -> Result<u64, BatchError> {
        let stream = &self.settings.stream;
        let Some(Refusal {
            err_code,
            description,
        }) = said.error
        else {
            return if said.seq > 0 {
                Ok(said.seq)
            } else {
                Err(BatchError::Unknown(format!(
                    "messages for stream {stream} are answered by something else"
                )))
            };
        };
        let text = format!("stream {stream} refuses messages: {description} (code {err_code})");
        Err(match err_code {
            WRONG_LAST_SEQUENCE => BatchError::Moved(text),
            KNOWN_ID => BatchError::Known(text),
            _ => BatchError::NotStored(text),
        })
    }

    /// Sends a message that no stream stores, such as a reply. Nobody confirms it.
    pub async fn send(&self, message: &Outgoing) -> Result<(), PublishError> {
        let mut link = self
            .link()
            .await
            .map_err(|error| PublishError::NotStored(error.message))?;
        let others = message
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let headers = header_map(others).map_err(PublishError::NotStored)?;
        let (client, subject) = (link.client().clone(), message.subject.clone());
        let data = message.data.clone();
        let call = async move {
            let sent = client.publish_with_headers(subject, headers, data).await;
            sent.map_err(|error| error.to_string())?;
            client.flush().await.map_err(|error| error.to_string())
        };
        let sent = tokio::time::timeout(CONFIRMATION_MAX, link.permitted(call)).await;
        let Ok(sent) = sent else {
            // Nobody waits for it that long, so the next one had better take another way.
            self.give_up(&link).await;
            return Err(PublishError::Unknown("the server is slow".to_owned()));
        };
        sent.map_err(|trouble| PublishError::Unknown(trouble.message))?
            .map_err(PublishError::Unknown)
    }

    /// What the answer of the stream to a message says.
    fn confirmed(&self, message: &Outgoing, said: Answer) -> Result<Confirmed, PublishError> {
        let (stream, subject) = (&self.settings.stream, &message.subject);
        if let Some(Refusal {
            err_code,
            description,
        }) = said.error
        {
            let text = refused(stream, subject, &description, err_code);
            return Err(match err_code {
                WRONG_LAST_SEQUENCE if message.condition.is_some() => PublishError::Conflict(text),
                // Sent before, and perhaps stored soon.
                ID_IN_PROCESS => PublishError::Unknown(text),
                _ => PublishError::NotStored(text),
            });
        }
        // A stream that keeps what consumers want names no sequence of a message that it recognises
        // and that nobody wanted.
        if said.seq > 0 || said.duplicate {
            return Ok(Confirmed {
                is_duplicate: said.duplicate,
                sequence: said.seq,
            });
        }
        Err(PublishError::Unknown(format!(
            "stream {stream} confirms a message to {subject} without a sequence"
        )))
    }

    fn headers(&self, message: &Outgoing) -> Result<HeaderMap, String> {
        let id = (!message.id.is_empty()).then_some((ID_HEADER, message.id.as_str()));
        let stream = ("Nats-Expected-Stream", self.settings.stream.as_str());
        let own = id.into_iter().chain([stream]);
        let others = message
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let mut map = header_map(own.chain(others))?;
        if let Some(seconds) = message.time_to_live_s {
            map.insert(TTL_HEADER, seconds.to_string().as_str());
        }
        if let Some((subjects, sequence)) = &message.condition {
            map.insert(EXPECTED_HEADER, sequence.to_string().as_str());
            // Only if it must: older servers know the other header alone.
            if *subjects != message.subject {
                map.insert(EXPECTED_OF_HEADER, subjects.as_str());
            }
        }
        Ok(map)
    }

    /// Lets the next call make another connection.
    async fn give_up(&self, link: &Link) {
        let mut slot = self.link.lock().await;
        // Not one that another call has made meanwhile.
        if slot.as_ref().is_some_and(|known| known.is_same(link)) {
            *slot = None;
        }
    }

    /// The connection, once it is up. A client that is gone gives way to a new one.
    async fn link(&self) -> Result<Link, Unavailable> {
        let mut slot = self.link.lock().await;
        let known = match slot.take() {
            Some(mut link) => match link.up(|_| ()).await {
                Ok(()) => Some(link),
                Err(_) => None,
            },
            None => None,
        };
        let link = match known {
            Some(link) => link,
            None => {
                let moves = self.moves.lock().1;
                // Each in its turn, once it has found the stream missing.
                let first = (moves > 0).then_some(moves);
                Link::connect_from(&self.settings, first).await?
            }
        };
        *slot = Some(link.clone());
        Ok(link)
    }
}

/// A search for ids, in several parts of the stream at the same time.
struct Search<'a> {
    subjects: &'a str,
    prefix: &'a str,
    /// About where the stream ends.
    last: u64,
    /// How many messages may still be looked at.
    left: AtomicUsize,
    /// How many sequences are behind, in all parts.
    behind: AtomicU64,
    /// Learns that number.
    passed: &'a (dyn Fn(u64) + Send + Sync),
}

impl Search<'_> {
    /// A part has come from one sequence to another, which is next. What lies behind the end does not
    /// count.
    fn advance(&self, (from, next): (u64, u64)) {
        let next = next.min(self.last.saturating_add(1));
        let more = next.saturating_sub(from);
        let behind = self.behind.fetch_add(more, Ordering::Relaxed) + more;
        (self.passed)(behind);
    }
}

/// Whether the headers of a stored message are of this one.
fn is_itself(message: &Outgoing, headers: &[u8]) -> bool {
    let mut headers = Block::read(headers).headers.into_iter();
    headers.any(|(name, value)| name == ID_HEADER && value == message.id)
}

/// Parts of a stream after a sequence, as the first and the last sequence of each. The end of the
/// last one is open.
fn parts_after(sequence: u64, last: u64) -> Vec<(u64, u64)> {
    let length = last.saturating_sub(sequence).div_ceil(LOOKS).max(LOOK_MIN);
    let mut parts = Vec::new();
    let mut from = sequence.saturating_add(1);
    while last.saturating_sub(from) >= length {
        parts.push((from, from + length - 1));
        from += length;
    }
    parts.push((from, u64::MAX));
    parts
}

/// Sends a message with these headers; the answer of the stream that stores it, or why there is
/// none.
async fn ask(
    link: &mut Link,
    message: &Outgoing,
    headers: HeaderMap,
) -> Result<Result<Message, RequestError>, Trouble> {
    let request = Request::new()
        .headers(headers)
        .payload(message.data.clone())
        .timeout(Some(CONFIRMATION_MAX));
    let (client, subject) = (link.client().clone(), message.subject.clone());
    let call = async move { client.send_request(subject, request).await };
    link.permitted(call).await
}

fn refused(stream: &str, subject: &str, description: &str, code: u64) -> String {
    format!("stream {stream} refuses a message to {subject}: {description} (code {code})")
}

fn nobody_stores(stream: &str, subject: &str) -> String {
    format!("no stream stores subject {subject}; add it to the subjects of stream {stream}")
}

fn too_large(subject: &str, error: &impl std::error::Error) -> String {
    format!(
        "a message to {subject} is larger than the server takes: {error}; raise `max_payload` of \
         the server, or give the message up with `foldstream outbox drop`"
    )
}

fn header_map<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let parsed = name
            .parse::<HeaderName>()
            .ok()
            .zip(value.parse::<HeaderValue>().ok());
        let (name, value) = parsed.ok_or_else(|| format!("header {name} cannot be sent"))?;
        map.insert(name, value);
    }
    Ok(map)
}

/// Whether a stream keeps messages until somebody has had the time to look for them.
fn keeps(config: &StreamConfig) -> bool {
    let age = Duration::from_nanos(config.max_age);
    let is_long = age.is_zero() || age >= KEPT_MIN;
    // Retention by interest or as a queue removes messages when others have read them.
    (config.retention.is_empty() || config.retention == "limits")
        && config.max_msgs_per_subject <= 0
        && is_long
}

/// Refuses streams that take no messages, or that would answer to one by mistake.
fn check(stream: &str, config: &StreamConfig) -> Result<(), Unavailable> {
    if config.mirror.is_some() {
        return Err(Unavailable::of_stream(format!(
            "stream {stream} is a mirror, which nobody can publish to; publish to its origin"
        )));
    }
    // Without a window an id recognises nothing.
    if config.duplicate_window == 0 {
        return Err(Unavailable::of_stream(format!(
            "stream {stream} recognises no message ids, so a message that is sent again after a \
             crash would be stored twice; set its duplicate window with `nats stream edit {stream} \
             --dupe-window 2m`"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_without_a_gap_and_the_last_one_has_no_end() {
        for (sequence, last) in [
            (0, 0),
            (5, 3),
            (0, 256),
            (7, 600),
            (100, 50_000),
            (u64::MAX, 9),
        ] {
            let parts = parts_after(sequence, last);
            assert!(parts.len() as u64 <= LOOKS, "{parts:?}");
            assert_eq!(parts[0].0, sequence.saturating_add(1));
            assert!(
                parts.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0),
                "{parts:?}"
            );
            assert_eq!(parts.last().expect("one at least").1, u64::MAX);
        }
        assert_eq!(parts_after(0, 50_000).len() as u64, LOOKS);
        assert_eq!(parts_after(0, 256).len(), 1);
    }
}
