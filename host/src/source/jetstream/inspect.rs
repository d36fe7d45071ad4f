//! Examines a stream: what it contains, and which of its settings lose data or slow down replay.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::connect::Settings;
use super::left;
use super::link::{Link, Trouble};
use super::missing::{self, has_gaps_by_design};
use super::open::{INACTIVE_THRESHOLD, check_readable, leaves_out, trouble};
use super::permissions::{self, Refused};
use super::proof;
use super::rescue;
use super::wire::{self, Api, StreamConfig, StreamInfo};
use crate::cloudevents::message::{self, ReadAs};
use crate::position::Checkpoint;
use crate::source::{Error, Had, Info, LookError, Lost, SourceState, Waiting};
use crate::timestamp;

/// How long an examination may take.
const EXAMINATION_MAX: Duration = Duration::from_secs(3);
/// The part of it for checking permissions.
const SURVEY_MAX: Duration = Duration::from_secs(1);
/// How many of the first events to read.
const FIRST_EVENTS: u64 = 3;
/// How many messages to read for them, because some may not be events.
const FIRST_MESSAGES_MAX: usize = 16;
/// The oldest supported server.
const SERVER_OLDEST: (i64, i64, i64) = (2, 10, 0);
/// The smallest difference between clocks worth a warning: an answer may take a while.
const SKEW_WARN: Duration = Duration::from_secs(5);
/// Servers allow 1,000 consumers by default if the stream sets no limit; beyond half of them,
/// readers may fail to start after a crash.
const CONSUMERS_MANY: u64 = 500;
/// Each remembered message id costs the server about 150 bytes.
const DUPLICATE_WINDOW_LONG: Duration = Duration::from_secs(30 * 60);

/// The connection for examining streams; opened on demand, and kept.
#[derive(Debug, Default)]
pub(super) struct Inspection {
    link: Mutex<Option<Link>>,
    /// The first events at the last check.
    first_events: parking_lot::Mutex<Option<(Beginning, FirstEvents)>>,
}

/// Identifies the beginning of a stream: its creation, its first sequence, and the last sequence
/// that was read.
type Beginning = (String, u64, u64);

/// How the first events of a stream are interpreted.
#[derive(Clone, Debug, Default)]
struct FirstEvents {
    /// As words; none if there are no events or they could not be read.
    read_as: Option<String>,
    warnings: Vec<String>,
}

impl Inspection {
    /// The current state of the stream.
    pub(super) async fn examine(&self, settings: &Arc<Settings>) -> Info {
        let seconds = EXAMINATION_MAX.as_secs();
        let found = tokio::time::timeout(EXAMINATION_MAX, self.look(settings))
            .await
            .unwrap_or_else(|_| {
                Err(Trouble::lost(format!(
                    // Silence is no answer about the stream, so it is the connection that is in
                    // trouble.
                    "no answer within {seconds} s; check the servers and the network"
                )))
            });
        let mut result = Info {
            name: settings.name.clone(),
            kind: "jetstream",
            stream: settings.stream.clone(),
            reachable: found.is_ok(),
            state: None,
            message: None,
            obstacle: None,
            first_sequence: None,
            is_complete: None,
            last_sequence: None,
            events: None,
            bytes: None,
            first_events: None,
            warnings: Vec::new(),
        };
        match found {
            Err(Trouble { state, message }) => {
                // For a check outside the reader, a server that was never reached is just
                // unreachable.
                result.state = Some(if state.is_trouble() {
                    state
                } else {
                    SourceState::Reconnecting
                });
                result.message = Some(message);
            }
            Ok((info, refused, server)) => {
                // An empty stream reports a first sequence after its last one.
                result.first_sequence = Some(if info.state.messages == 0 {
                    0
                } else {
                    info.state.first_seq
                });
                // Some streams begin with a sequence of the operator's choice (`first_seq`).
                let origin = info.config.first_seq.max(1);
                let is_whole = info.state.num_deleted == 0 || has_gaps_by_design(&info.config);
                result.is_complete = Some(info.first() <= origin && is_whole);
                result.last_sequence = Some(info.state.last_seq);
                result.events = Some(info.state.messages);
                result.bytes = Some(info.state.bytes);
                result.obstacle = refused.advice().or_else(|| {
                    let error = check_readable(&settings.stream, &info.config).err()?;
                    Some(format!("{}: {error}", error.kind()))
                });
                result.warnings = warnings(&info);
                result.warnings.extend(server);
                let first = self.first_events(settings, &info).await;
                result.first_events = first.read_as;
                result.warnings.extend(first.warnings);
            }
        }
        result
    }

    /// What a stream no longer has of a state's range.
    pub(super) async fn lost(
        &self,
        settings: &Arc<Settings>,
        had: &Had<'_>,
    ) -> Result<Option<Lost>, LookError> {
        self.ask(settings, async |link, api| find_lost(link, api, had).await)
            .await
    }

    /// Whether nothing but counts shows what the stream has lost.
    pub(super) async fn hides_losses(&self, settings: &Arc<Settings>) -> Result<bool, LookError> {
        let look = async |link: &mut Link, api: &Api| {
            let info = link.permitted(api.stream_info()).await?;
            let info = info.map_err(|error| trouble(&api.stream, &error))?;
            Ok(has_gaps_by_design(&info.config))
        };
        self.ask(settings, look).await
    }

    /// Asks something over the connection that is kept for this.
    async fn ask<T>(
        &self,
        settings: &Arc<Settings>,
        question: impl AsyncFnOnce(&mut Link, &Api) -> Result<T, Trouble>,
    ) -> Result<T, LookError> {
        let look = async {
            // Taken out while it is used: a call that is dropped half-way leaves no doubtful
            // connection behind.
            let mut slot = self.link.lock().await;
            let mut link = match slot.take() {
                Some(link) if link.is_up() => link,
                _ => Link::connect(settings).await?,
            };
            let api = Api {
                client: link.client().clone(),
                prefix: settings.api_prefix.clone(),
                stream: settings.stream.clone(),
            };
            let found = question(&mut link, &api).await;
            // A connection whose answers do not arrive is not used again.
            *slot = found.is_ok().then_some(link);
            found
        };
        let found = tokio::time::timeout(EXAMINATION_MAX, look).await;
        let found = found.map_err(|_| LookError::Late(EXAMINATION_MAX))?;
        found.map_err(|trouble| LookError::Away(trouble.message))
    }

    /// Why the stream is not the one to which a checkpoint belongs, if it is not.
    pub(super) async fn contradiction(
        &self,
        settings: &Arc<Settings>,
        checkpoint: &Checkpoint,
    ) -> Result<Option<Error>, LookError> {
        let look = async {
            let mut slot = self.link.lock().await;
            let mut link = match slot.take() {
                Some(link) if link.is_up() => link,
                _ => Link::connect(settings).await?,
            };
            let (client, prefix) = (link.client().clone(), settings.api_prefix.clone());
            let api = Api {
                client,
                prefix,
                stream: settings.stream.clone(),
            };
            let found = proof::contradiction(&mut link, &api, checkpoint).await?;
            *slot = Some(link);
            Ok::<_, Trouble>(found)
        };
        let found = tokio::time::timeout(EXAMINATION_MAX, look).await;
        let found = found.map_err(|_| LookError::Late(EXAMINATION_MAX))?;
        found.map_err(|trouble| LookError::Away(trouble.message))
    }

    /// Checks that the kind of stream can be read at all, as far as known at the moment.
    pub(super) async fn check_readable(&self, settings: &Arc<Settings>) -> Result<(), Error> {
        match tokio::time::timeout(EXAMINATION_MAX, self.look(settings)).await {
            // Unknown passes: a server that is away must not refuse a deploy.
            Ok(Ok((info, _, _))) => check_readable(&settings.stream, &info.config),
            _ => Ok(()),
        }
    }

    /// Time of the next message after a position with a matching subject, in nanoseconds since the
    /// Unix epoch.
    pub(super) async fn time_behind(
        &self,
        settings: &Settings,
        position: u64,
        subject: &str,
    ) -> Waiting {
        let link = self.link.lock().await;
        let Some(client) = link.as_ref().filter(|link| link.is_up()) else {
            return Waiting::Unknown;
        };
        let client = client.client().clone();
        drop(link);
        let api = Api {
            client,
            prefix: settings.api_prefix.clone(),
            stream: settings.stream.clone(),
        };
        match api.time_of_next(position + 1, subject).await {
            Ok(Some(time_ns)) => Waiting::Since(time_ns),
            Ok(None) => Waiting::Nothing,
            Err(_) => Waiting::Unknown,
        }
    }

    /// How the first events are interpreted. They are fetched once, because they do not change.
    async fn first_events(&self, settings: &Settings, info: &StreamInfo) -> FirstEvents {
        let (first, last) = (info.state.first_seq, info.state.last_seq);
        // The end counts only as long as fewer messages are there than are looked at.
        let known_by = (
            info.created.clone(),
            first,
            last.min(first.saturating_add(FIRST_EVENTS)),
        );
        if let Some((state, known)) = &*self.first_events.lock()
            && *state == known_by
        {
            return known.clone();
        }
        let Some(client) = self
            .link
            .lock()
            .await
            .as_ref()
            .map(|link| link.client().clone())
        else {
            return FirstEvents::default();
        };
        let api = Api {
            client,
            prefix: settings.api_prefix.clone(),
            stream: settings.stream.clone(),
        };
        match tokio::time::timeout(SURVEY_MAX, fetch_first(&api, settings, info)).await {
            Ok(found) => {
                *self.first_events.lock() = Some((known_by, found.clone()));
                found
            }
            Err(_) => FirstEvents::default(),
        }
    }

    /// The stream, the permissions that the server refuses, and a warning if there is one.
    async fn look(
        &self,
        settings: &Arc<Settings>,
    ) -> Result<(StreamInfo, Refused, Vec<String>), Trouble> {
        let mut slot = self.link.lock().await;
        let mut link = match slot.take() {
            Some(link) if link.is_up() => link,
            _ => Link::connect(settings).await?,
        };
        let client = link.client().clone();
        let prefix = settings.api_prefix.clone();
        let api = Api {
            client: client.clone(),
            prefix,
            stream: settings.stream.clone(),
        };
        let info = link
            .permitted(api.stream_info())
            .await
            .and_then(|answer| answer.map_err(|error| trouble(&settings.stream, &error)));
        let now_ns = crate::clock::wall_ns();
        // Also if the call was refused: the operator wants to see all refusals at once.
        let refused = survey(&mut link, &api).await;
        // A new connection may have other permissions, and may get the answer.
        *slot = (refused.is_empty() && info.is_ok()).then_some(link);
        let (major, minor, patch) = SERVER_OLDEST;
        let mut warnings: Vec<String> = refused.warning().into_iter().collect();
        warnings.extend((!client.is_server_compatible(major, minor, patch)).then(|| {
            format!(
                "server {} is older than {major}.{minor}, the oldest that is supported; upgrade it",
                client.server_info().version
            )
        }));
        let info = info?;
        warnings.extend(clock_warning(&info, now_ns));
        Ok((info, refused, warnings))
    }
}

/// What a stream no longer has of a state's range.
async fn find_lost(link: &mut Link, api: &Api, had: &Had<'_>) -> Result<Option<Lost>, Trouble> {
    let unknown = |error: wire::Error| trouble(&api.stream, &error);
    let info = link.permitted(api.stream_info()).await?.map_err(unknown)?;
    let is_counted = has_gaps_by_design(&info.config);
    let missing = if is_counted {
        left::lost(link, api, &info, had).await?
    } else {
        let holes = missing::look_up_now(link, api, &info, had.after).await?;
        missing::lost(&info, &holes, (had.after, had.through), had.without)
    };
    Ok(missing.map(|missing| Lost {
        stream: api.stream.clone(),
        missing,
        // A count is one of events that match.
        whose: (!is_counted && leaves_out(&had.subjects.covering(), &info.config)).into(),
        is_counted,
    }))
}

/// The permissions that the server refuses, checked once per connection.
async fn survey(link: &mut Link, api: &Api) -> Refused {
    // Permissions do not change while a connection lasts.
    if link.is_tried() {
        return Refused::default();
    }
    let found = tokio::time::timeout(SURVEY_MAX, permissions::survey(link, api)).await;
    link.set_tried();
    found.unwrap_or_default()
}

/// Reads the first events of a stream.
async fn fetch_first(api: &Api, settings: &Settings, info: &StreamInfo) -> FirstEvents {
    let (mut found, mut ways, mut count) = (FirstEvents::default(), Vec::new(), 0_u64);
    let mut next = info.state.first_seq;
    for _ in 0..FIRST_MESSAGES_MAX {
        if count == FIRST_EVENTS || next > info.state.last_seq {
            break;
        }
        // Best effort: what cannot be read is left out of a description.
        let Ok(Some(stored)) = api.next_message(next, ">").await else {
            break;
        };
        next = stored.sequence + 1;
        if rescue::is_bookkeeping(&stored) {
            continue;
        }
        count += 1;
        // Each way once, in the order in which they were found.
        match message::describe(rescue::message_of(&stored), settings.recognition) {
            ReadAs::Kind(way) if ways.contains(&way) => {}
            ReadAs::Kind(way) => ways.push(way),
            ReadAs::Plain(note) => found.warnings.push(format!(
                "event {} was meant to be a CloudEvent and is read as a plain event: it {note}; \
                 correct its publisher",
                stored.sequence
            )),
        }
    }
    if !ways.is_empty() {
        let which = if count == 1 {
            "the first one is".to_owned()
        } else {
            format!("the first {count} are")
        };
        found.read_as = Some(format!("{which} read as {}", ways.join("; and as ")));
    }
    found
}

/// Says that the clock of the server is not this machine's, which has this time, if so.
fn clock_warning(info: &StreamInfo, now_ns: u64) -> Option<String> {
    // Servers before nats-server 2.10 do not say what time it is.
    let server_ns = timestamp::parse_ns(&info.ts).ok()?;
    let apart = Duration::from_nanos(server_ns.abs_diff(now_ns));
    let way = if server_ns > now_ns {
        "ahead of"
    } else {
        "behind"
    };
    (apart >= SKEW_WARN).then(|| {
        format!(
            "the clock of its server is {} s {way} that of the host, and lag in seconds and the \
             times of delayed messages depend on both; run NTP on both",
            apart.as_secs()
        )
    })
}

/// What the settings of a stream may lose or slow down.
fn warnings(info: &StreamInfo) -> Vec<String> {
    let mut warnings = Vec::new();
    removal(&info.config, &mut warnings);
    durability(&info.config, &mut warnings);
    replay(info, &mut warnings);
    warnings
}

/// Settings by which events are removed before they are read, or can be removed.
fn removal(config: &StreamConfig, warnings: &mut Vec<String>) {
    let is_mirror = config.mirror.is_some();
    // With `discard = "new"` a full stream refuses new events, and removes none.
    let removes_oldest = config.discard != "new";
    let mut limits = Vec::new();
    if config.max_age > 0 {
        limits.push(format!(
            "max_age {}",
            humantime::format_duration(Duration::from_nanos(config.max_age))
        ));
    }
    if has_gaps_by_design(config) {
        warnings.push(
            "the stream is a mirror with a filter, so it has gaps by design: events that it loses \
             before they are applied are not noticed; read its origin, or a mirror without a filter"
                .to_owned(),
        );
    }
    if config.max_msgs > 0 && removes_oldest {
        limits.push(format!("max_msgs {}", config.max_msgs));
    }
    if config.max_bytes > 0 && removes_oldest {
        limits.push(format!("max_bytes {}", config.max_bytes));
    }
    if !limits.is_empty() {
        warnings.push(format!(
            "{} removes old events: a rebuild lacks them, and a deployment that is behind {}; \
             remove the limit, or keep more than the longest outage needs",
            limits.join(", "),
            if has_gaps_by_design(config) {
                "loses them"
            } else {
                "stops with source-gap"
            }
        ));
    }
    if config.max_msgs_per_subject > 0 {
        warnings.push(format!(
            "max_msgs_per_subject {} keeps only the last events of each subject: a projection sees \
             latest values, not the history, and a rebuilt handler does not find when its timers \
             fired, because all firings of a deployment have one subject; remove the limit for an \
             event stream",
            config.max_msgs_per_subject
        ));
    }
    if config.allow_msg_ttl {
        warnings.push(
            "allow_msg_ttl lets publishers make events that expire; a rebuild lacks them"
                .to_owned(),
        );
    }
    // A mirror cannot be published to, so what follows does not concern it.
    if is_mirror {
        return;
    }
    if config.allow_rollup_hdrs {
        warnings.push(
            "allow_rollup_hdrs lets publishers replace a subject's history with one message"
                .to_owned(),
        );
    }
    match (config.deny_delete, config.deny_purge) {
        (true, true) => {}
        (delete, purge) => {
            let open = [
                (!delete).then_some("deleted (deny_delete)"),
                (!purge).then_some("purged (deny_purge)"),
            ];
            let open: Vec<&str> = open.into_iter().flatten().collect();
            warnings.push(format!(
                "events can be {}; set it for an event store",
                open.join(" and ")
            ));
        }
    }
}

/// Settings by which acknowledged events can be lost with a machine.
fn durability(config: &StreamConfig, warnings: &mut Vec<String>) {
    if config.storage == "memory" {
        warnings.push(
            "storage is memory: the stream is lost when its server stops; use file".to_owned(),
        );
    }
    if config.num_replicas <= 1 {
        warnings.push(
            "the stream has one replica: it is lost with its server's disk; use 3, in different \
             failure domains"
                .to_owned(),
        );
    }
    if config.persist_mode == "async" {
        warnings.push(
            "persist_mode is async: events are acknowledged before they are stored; use default"
                .to_owned(),
        );
    }
}

/// What slows down reading, or keeps readers out.
fn replay(info: &StreamInfo, warnings: &mut Vec<String>) {
    let config = &info.config;
    let window = Duration::from_nanos(config.duplicate_window);
    if window > DUPLICATE_WINDOW_LONG {
        warnings.push(format!(
            "duplicate_window {} costs the server about 150 bytes for each id in it; a few minutes \
             are enough",
            humantime::format_duration(window)
        ));
    }
    let consumers = info.state.consumer_count;
    let seconds = INACTIVE_THRESHOLD.as_secs();
    if config.max_consumers > 0 {
        let limit = u64::try_from(config.max_consumers).unwrap_or(u64::MAX);
        // After a crash there are twice as many for a while.
        if consumers.saturating_mul(2) >= limit {
            warnings.push(format!(
                "{consumers} of {limit} consumers exist: each generation that reads needs one, and \
                 a second one for {seconds} s after a crash; raise max_consumers"
            ));
        }
    } else if consumers >= CONSUMERS_MANY {
        warnings.push(format!(
            "{consumers} consumers exist, servers allow 1,000 by default, and after a crash there \
             are twice as many for {seconds} s; set max_consumers on the stream"
        ));
    }
    if info.state.num_deleted > 0 && !has_gaps_by_design(&info.config) {
        warnings.push(format!(
            "{} events were deleted from within the stream",
            info.state.num_deleted
        ));
    }
    if let Some(mirror) = info.mirror.as_ref().filter(|_| config.mirror.is_some()) {
        let lag = if mirror.lag > 0 {
            format!(", {} events behind just now", mirror.lag)
        } else {
            String::new()
        };
        warnings.push(format!(
            "the stream is a mirror of {}{lag}: its head is what it copied so far, not that of its \
             origin",
            mirror.name
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(settings: &serde_json::Value) -> StreamInfo {
        let mut config = serde_json::json!({
            "subjects": ["orders.>"], "retention": "limits", "storage": "file", "discard": "new", "num_replicas": 3,
            "max_msgs": -1, "max_bytes": -1, "max_msgs_per_subject": -1, "max_consumers": 1000,
            "duplicate_window": 120_000_000_000_u64, "deny_delete": true, "deny_purge": true,
        });
        for (name, value) in settings.as_object().expect("settings are an object") {
            config[name] = value.clone();
        }
        serde_json::from_value(serde_json::json!({
            "config": config, "created": "2026-11-23T06:00:00Z",
            "state": { "messages": 1, "bytes": 10, "first_seq": 1, "last_seq": 1 },
        }))
        .expect("the description is sound")
    }

    #[test]
    fn a_server_whose_clock_differs_is_named() {
        let at = |second: u32| {
            let mut info = stream(&serde_json::json!({}));
            info.ts = format!("2026-11-23T06:00:{second:02}Z");
            info
        };
        let now_ns = timestamp::parse_ns(&at(30).ts).expect("it is a time");
        let warned = |second| clock_warning(&at(second), now_ns);
        assert_eq!(
            [28, 30, 32].map(warned),
            [None, None, None],
            "the answer took a moment"
        );
        let ahead = warned(50).expect("it is 20 s ahead");
        assert!(ahead.contains("20 s ahead of"), "{ahead}");
        let behind = warned(0).expect("it is 30 s behind");
        assert!(behind.contains("30 s behind"), "{behind}");
        let silent = stream(&serde_json::json!({}));
        assert_eq!(clock_warning(&silent, now_ns), None, "it does not say");
    }

    #[test]
    fn an_event_store_gives_no_warning() {
        assert_eq!(
            warnings(&stream(&serde_json::json!({}))),
            Vec::<String>::new()
        );
    }

    #[test]
    fn each_risky_setting_is_named() {
        for (name, value) in [
            ("max_age", serde_json::json!(3_600_000_000_000_u64)),
            ("max_msgs_per_subject", serde_json::json!(1)),
            ("allow_msg_ttl", serde_json::json!(true)),
            ("allow_rollup_hdrs", serde_json::json!(true)),
            ("deny_delete", serde_json::json!(false)),
            ("deny_purge", serde_json::json!(false)),
            ("storage", serde_json::json!("memory")),
            ("persist_mode", serde_json::json!("async")),
            (
                "duplicate_window",
                serde_json::json!(86_400_000_000_000_u64),
            ),
        ] {
            let found = warnings(&stream(&serde_json::json!({ name: value })));
            assert!(
                matches!(found.as_slice(), [one] if one.contains(name)),
                "{name}: {found:?}"
            );
        }
        let bounded = warnings(&stream(
            &serde_json::json!({ "max_msgs": 10, "discard": "old" }),
        ));
        assert!(
            matches!(bounded.as_slice(), [one] if one.contains("max_msgs 10")),
            "{bounded:?}"
        );
        let mirror = warnings(&stream(&serde_json::json!({
            "max_msgs": 10, "discard": "old", "mirror": { "name": "S", "filter_subject": "a.>" },
        })));
        assert!(
            mirror.iter().any(|one| one.contains("max_msgs 10"))
                && mirror.iter().all(|one| !one.contains("source-gap")),
            "its gaps stop nobody: {mirror:?}"
        );
        let single = warnings(&stream(&serde_json::json!({ "num_replicas": 1 })));
        assert!(
            matches!(single.as_slice(), [one] if one.contains("one replica")),
            "{single:?}"
        );
    }
}
