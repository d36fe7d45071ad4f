//! Watches: the changes of a read model under a prefix, as they become visible.
//!
//! A watch sends the current value of each changed key, not each value that the
//! key ever had. It works in rounds: wait until the position rises, take a
//! snapshot, find the keys that changed since the last round, and send their
//! values from that snapshot. The id of an event is a position from which a
//! client may resume, and the state to which it belongs: only the last change
//! of a round carries the round's own position, the others carry the previous
//! one.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use utoipa::IntoParams;

use crate::api::PositionMark;
use crate::deployment::Deployment;
use crate::runner::Runner;
use crate::serve::App;
use crate::serve::auth::Holder;
use crate::serve::extract::{Listener, Parameters, Segments};
use crate::serve::json;
use crate::serve::position::POSITION;
use crate::serve::problem::Problem;
use crate::serve::sse::{self, CHUNK_BYTES, Ended, HEARTBEAT, Mark, Seat, Sender};
use crate::state::catalogue::Record;
use crate::state::{self, Key, Snapshot};

/// Shortest time between two rounds: a replay commits hundreds of batches per second, and a
/// thousand watches must not check each of them. The first change after a pause is sent at once.
const ROUND_INTERVAL: Duration = Duration::from_millis(5);
/// How often a watch checks whether the deployment of that name is still the same.
const TICK: Duration = Duration::from_secs(1);
/// Pause before the next attempt for a deployment that can't be read at the moment.
const NOT_READY_PAUSE: Duration = Duration::from_millis(200);
/// How long a round may use its snapshot; an older one would keep old values in memory.
const SNAPSHOT_AGE_MAX: Duration = Duration::from_secs(1);
/// How long the response to a watch waits for a deployment that can't be read at the moment, so
/// that it can include the position.
const HOLD: Duration = Duration::from_secs(1);
/// Keys of a round that are looked up without switching threads, if they are in memory.
const KEYS_AT_ONCE: usize = 32;
/// Largest of their values, in bytes.
const VALUE_AT_ONCE_BYTES: usize = 4 << 10;
/// What each watch of the host adds to the time between two of its rounds, so that all of them
/// together run at most 20,000 rounds per second, no matter how many there are and how fast batches
/// are published.
const ROUND_INTERVAL_PER_WATCH: Duration = Duration::from_micros(50);

/// What to watch.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WatchParameters {
    /// Only keys that begin with this prefix.
    #[serde(default)]
    #[param(required = false)]
    prefix: String,
    /// Start with the changes after this position; default: now.
    after: Option<u64>,
}

/// The changes under a prefix, as server-sent events.
///
/// The host holds a watch open if its deployment can't be read yet because the host has just
/// started.
///
/// `change` carries a key and its value; `position`, every few seconds, the
/// progress of the watch; `reset` says that the host no longer knows the
/// changes since the resume point: scan again, with the position as `at-least`,
/// then continue. `end` says why the host closes the watch: `stalled` (the
/// client read nothing for 20 seconds), `host-memory`, or `not-allowed` (the token was withdrawn or
/// no longer covers it).
///
/// The id of an event is the position to resume from, a dot, and the identity
/// of the state, which changes if the deployment is deleted or another
/// generation takes over. If `Last-Event-ID` names another state than the
/// current one, the watch begins with `reset`. `after` is only a position, and
/// refers to the current state.
#[utoipa::path(get, path = "/v1/deployments/{name}/changes", tag = "reads",
    params(
        ("name" = String, Path, description = "Name of the deployment"),
        WatchParameters,
        ("access_token" = Option<String>, Query,
            description = "A token, for a browser's EventSource, which cannot send headers; other \
                           routes do not accept it here"),
    ),
    responses(
        (status = 200, description = "Events `change` (Change), `position` and `reset` \
                                      (PositionMark), `end` (EndMark)",
            body = String, content_type = "text/event-stream"),
        (status = 404, description = "There is no such deployment"),
    ))]
pub(super) async fn changes(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<WatchParameters>,
    listener: Listener,
) -> Result<Response, Problem> {
    let Listener { holder, headers } = listener;
    let after = sse::resume(&headers, parameters.after)?;
    let deployment = app.host.all_deployments().get(&name)?;
    // Not answered yet is no error: see `wait`.
    let view = deployment.view(None, HOLD).await.ok();
    let (sender, mut response) = sse::open(seat(&app, holder)?, app.shutdown.clone());
    let request = Asked {
        app,
        prefix: parameters.prefix,
        after,
        sender,
    };
    match view {
        Some(view) => {
            let position = view.snapshot.position();
            response.headers_mut().insert(
                HeaderName::from_static(POSITION),
                HeaderValue::from(position),
            );
            tokio::spawn(request.begin(deployment, position).run());
        }
        // A browser never retries a watch that was refused, so the watch waits with an open stream.
        None => drop(tokio::spawn(request.wait(name))),
    }
    Ok(response)
}

/// The parameters of a watch.
struct Asked {
    app: App,
    prefix: String,
    after: Option<Mark>,
    sender: Sender,
}

impl Asked {
    /// Waits until the deployment can be read, and then watches it. Ends with the client, the host
    /// or the deployment.
    async fn wait(mut self, name: String) {
        let mut comment_at = Instant::now();
        loop {
            let Ok(deployment) = self.app.host.all_deployments().get(&name) else {
                return;
            };
            // Proxies close connections on which nothing comes.
            if comment_at <= Instant::now() {
                comment_at = Instant::now() + HEARTBEAT;
                self.sender.comment("the deployment can't be read yet");
            }
            if self.sender.flush().await.is_err() {
                return;
            }
            // Both arms only observe.
            let view = tokio::select! {
                biased;
                _ = self.sender.ended() => return,
                view = deployment.view(None, HOLD) => view,
            };
            if let Ok(view) = view {
                let position = view.snapshot.position();
                return self.begin(deployment, position).run().await;
            }
        }
    }

    /// Starts from the state that can be read now.
    fn begin(self, deployment: Arc<Deployment>, position: u64) -> Watch {
        let Self {
            app,
            prefix,
            after,
            sender,
        } = self;
        let (record, runner) = deployment.current();
        let (generation_begins, state) = (record.active().serves_from, state_of(&record));
        // A position alone does not say whether it was read before a part of the state was repaired
        // at it; the identity of the state does. This call also lets the store know that somebody
        // watches, so that it remembers more from now on.
        let was_patched = runner.was_patched_at(position);
        let was_repaired = was_patched
            && after
                .as_ref()
                .is_some_and(|after| after.state.is_none() && after.position == position);
        Watch {
            app,
            runner,
            repairs: record.repairs,
            deployment,
            prefix,
            state,
            seen: after.map_or(position, |after| after.position),
            // A later position than that of the state may be of another stream.
            is_of_same_stream: after.is_none_or(|after| after.position <= position),
            must_reset: was_repaired
                || after
                    .is_some_and(|after| !is_resumable(after, state, position, generation_begins)),
            next_round: Instant::now(),
            heartbeat: Instant::now() + HEARTBEAT,
            sender,
        }
    }
}

/// Whether a watch may continue after a position. A future position belongs to another state. A
/// position from before the active generation took over counted values of its predecessor, any of
/// which may differ. The position of the cut-over itself may belong to either, unless the mark says
/// which.
fn is_resumable(after: Mark, state: u64, position: u64, generation_begins: u64) -> bool {
    let of_this_state = after.state.is_none_or(|of| of == state);
    let is_at_its_beginning = after.state.is_some() && after.position == generation_begins;
    let of_this_generation =
        generation_begins == 0 || after.position > generation_begins || is_at_its_beginning;
    of_this_state && of_this_generation && after.position <= position
}

/// The identity of the active state among those that had or will have the same name: when the
/// deployment was created (as far as its record goes back), the number of the state file, which is
/// never reused under one deployment, and how often parts of it were repaired. Once the oldest rows
/// of the record are forgotten, watches get an unnecessary `reset`.
fn state_of(record: &Record) -> u64 {
    let mut hash = Sha256::new();
    hash.update(
        record
            .generations
            .first()
            .map_or("", |oldest| oldest.created_at.as_str()),
    );
    hash.update([0]);
    // Another source is another stream, whose positions mean something else.
    hash.update(record.active().source.as_str());
    hash.update(record.active().state_file.to_be_bytes());
    hash.update(record.repairs.to_be_bytes());
    let digest = hash.finalize();
    u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}

/// A place for a stream.
pub(super) fn seat(app: &App, holder: Holder) -> Result<Seat, Problem> {
    if app.shutdown.is_cancelled() {
        return Err(Problem::stopping());
    }
    let (permit, memory) = (app.capacity.watch()?, app.capacity.stream());
    Ok(Seat {
        permit,
        gauge: app.host.metrics().watch(),
        memory,
        standing: holder.standing,
    })
}

struct Watch {
    app: App,
    deployment: Arc<Deployment>,
    /// The runner whose changes are sent.
    runner: Arc<Runner>,
    prefix: String,
    /// The identity of the runner's state.
    state: u64,
    /// How many partial repairs of it this watch knows of.
    repairs: u64,
    /// Everything up to this position was sent.
    seen: u64,
    /// Whether positions of the previous runner and of this one belong to the same stream.
    is_of_same_stream: bool,
    /// What was sent is no longer valid: the next round says so instead of continuing.
    must_reset: bool,
    next_round: Instant,
    /// When to send the position next, whether or not there were changes.
    heartbeat: Instant,
    sender: Sender,
}

impl Watch {
    async fn run(mut self) {
        // A client learns at once from where it may resume, also if nothing changes.
        if !self.must_reset {
            self.send_position();
        }
        while self.step().await.is_ok() {}
    }

    fn mark(&self, position: u64) -> Mark {
        Mark {
            position,
            state: Some(self.state),
        }
    }

    fn send_position(&mut self) {
        self.sender.event(
            "position",
            self.mark(self.seen),
            &PositionMark {
                position: self.seen,
            },
        );
    }

    async fn step(&mut self) -> Result<(), Ended> {
        self.round().await?;
        // Until a reset is sent, a position would belong to a state that is gone.
        if !self.must_reset && self.heartbeat <= Instant::now() {
            self.heartbeat = Instant::now() + HEARTBEAT;
            self.send_position();
        }
        self.sender.flush().await?;
        // Not before the next round is due, however fast positions rise.
        let advanced = async {
            tokio::time::sleep_until(self.next_round).await;
            self.runner.advanced(self.seen).await;
        };
        // Dropping a waiting arm loses nothing: each arm only observes, and takes nothing away.
        tokio::select! {
            biased;
            ended = self.sender.ended() => return Err(ended),
            _ = advanced => self.next_round = Instant::now() + self.round_interval(),
            () = tokio::time::sleep(TICK) => {}
        }
        self.follow()
    }

    /// Ends the watch if its deployment was deleted; continues with a generation that took over.
    fn follow(&mut self) -> Result<(), Ended> {
        let current = self
            .app
            .host
            .all_deployments()
            .get(self.deployment.name())
            .map_err(|_| Ended)?;
        // Deleted and deployed again: another deployment of the same name.
        if !Arc::ptr_eq(&current, &self.deployment) {
            self.deployment = current;
        }
        let active = self.deployment.active();
        if !Arc::ptr_eq(&active, &self.runner) {
            self.is_of_same_stream = active.is_of_same_stream(&self.runner);
            self.runner = active;
            self.state = state_of(&self.deployment.record());
            self.must_reset = true;
        }
        let repairs = self.deployment.with_record(|record| record.repairs);
        if repairs != self.repairs {
            // At the old position: only a client that reads again sees the new state.
            self.repairs = repairs;
            self.state = state_of(&self.deployment.record());
            self.must_reset = true;
        }
        Ok(())
    }

    fn round_interval(&self) -> Duration {
        ROUND_INTERVAL.max(ROUND_INTERVAL_PER_WATCH * self.app.capacity.watches_open())
    }

    /// The current snapshot; none while the deployment is opening, or behind what it showed before.
    fn snapshot(&mut self) -> Option<Snapshot> {
        let snapshot = self.runner.try_snapshot(None).ok();
        if snapshot.is_none() {
            self.next_round = Instant::now() + NOT_READY_PAUSE;
        }
        snapshot
    }

    fn reset(&mut self, position: u64) {
        self.seen = position;
        self.must_reset = false;
        self.sender
            .event("reset", self.mark(position), &PositionMark { position });
    }

    /// Whether nothing under the prefix changed since the last round, in which case the round is
    /// over. That needs no snapshot: changes up to a position are recorded before the position
    /// becomes visible.
    fn is_untouched(&mut self) -> bool {
        let through = if self.must_reset {
            None
        } else {
            self.runner.untouched_through(self.seen, &self.prefix)
        };
        // A reopened state is behind for a moment.
        let is_untouched = through.is_some_and(|through| through >= self.seen);
        self.seen = self.seen.max(through.unwrap_or(0));
        is_untouched
    }

    /// Sends what changed since the last round.
    async fn round(&mut self) -> Result<(), Ended> {
        if self.is_untouched() {
            return Ok(());
        }
        // None while it opens, or is behind what was shown: the next attempt follows after a pause.
        let Some(mut snapshot) = self.snapshot() else {
            return Ok(());
        };
        let position = snapshot.position();
        if self.must_reset {
            // A generation that took over may be slightly behind what its predecessor, which still
            // follows, has shown.
            if position < self.seen && self.is_of_same_stream {
                return Ok(());
            }
            self.reset(position);
        }
        // A state that was reopened after a disk failure is behind for a moment, and folds the same
        // events again.
        if position <= self.seen {
            return Ok(());
        }
        let Some(mut keys) = snapshot.changed_since(self.seen, &self.prefix) else {
            self.reset(position);
            return Ok(());
        };
        // The next key last, so that taking one moves nothing.
        keys.reverse();
        self.sender.hold(keys.len() * size_of::<Key>())?;
        let mut taken = Instant::now();
        while !keys.is_empty() {
            // Only a newer snapshot: values must not go back while a round is sent.
            if taken.elapsed() > SNAPSHOT_AGE_MAX {
                // If the state cannot be read now, the rest is sent later, from the beginning of
                // the round.
                let Some(newer) = self.snapshot().filter(|newer| newer.position() >= position)
                else {
                    return Ok(());
                };
                (snapshot, taken) = (newer, Instant::now());
            }
            let part = Part {
                keys,
                snapshot,
                resume: self.mark(self.seen),
                through: self.mark(position),
            };
            let (part, events) = part.write().await?;
            (keys, snapshot) = (part.keys, part.snapshot);
            self.sender.extend(&events);
            if self.sender.is_full() {
                self.sender.flush().await?;
            }
        }
        // Only now: a watch that ends before resumes from the beginning of the round.
        self.seen = position;
        self.sender.hold(0)
    }
}

/// The rest of a round.
struct Part {
    /// Keys, the next one last.
    keys: Vec<Key>,
    snapshot: Snapshot,
    /// Where a client resumes that received only part of the round.
    resume: Mark,
    /// Where it resumes once it has received all of it.
    through: Mark,
}

impl Part {
    /// Writes one chunk of changes and removes their keys.
    async fn write(mut self) -> Result<(Self, Vec<u8>), Ended> {
        if self.keys.len() <= KEYS_AT_ONCE
            && self.keys.iter().all(|key| is_at_hand(&self.snapshot, key))
        {
            let events = self.write_now().map_err(|error| failed(&error))?;
            return Ok((self, events));
        }
        let written =
            tokio::task::spawn_blocking(move || self.write_now().map(|events| (self, events)))
                .await;
        written.map_err(|_| Ended)?.map_err(|error| failed(&error))
    }

    fn write_now(&mut self) -> Result<Vec<u8>, state::Error> {
        let position = self.snapshot.position();
        // Up to a chunk, so that a client that reads slowly does not fill the memory.
        let mut events = Vec::new();
        while events.len() < CHUNK_BYTES
            && let Some(key) = self.keys.pop()
        {
            let value = self.snapshot.get(&key)?;
            let id = if self.keys.is_empty() {
                self.through
            } else {
                self.resume
            };
            let deleted = value.is_none();
            let change = json::Change {
                key: &key,
                value: value.as_ref().map(json::Value),
                deleted,
                position,
            };
            sse::write_event(&mut events, "change", id, &change);
        }
        Ok(events)
    }
}

/// Whether reading the value of a key needs no disk and little time.
fn is_at_hand(snapshot: &Snapshot, key: &str) -> bool {
    let value = snapshot.get_recent(key);
    value.is_some_and(|value| value.is_none_or(|value| value.len() <= VALUE_AT_ONCE_BYTES))
}

/// The state failed. The deployment reports that itself, and the client sees it when it reconnects.
fn failed(error: &state::Error) -> Ended {
    tracing::warn!(%error, "a watch ended because it could not read the state");
    Ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_of_this_generation_can_be_resumed() {
        let is_resumable =
            |after: u64, position, begins| is_resumable(after.into(), 1, position, begins);
        assert!(is_resumable(0, 0, 0) && is_resumable(0, 9, 0) && is_resumable(9, 9, 0));
        assert!(is_resumable(8, 9, 7));
    }

    #[test]
    fn position_ahead_or_of_a_predecessor_can_not() {
        let is_resumable =
            |after: u64, position, begins| is_resumable(after.into(), 1, position, begins);
        assert!(!is_resumable(10, 9, 0));
        assert!(!is_resumable(7, 9, 7) && !is_resumable(0, 9, 7));
    }

    #[test]
    fn position_at_which_a_generation_took_over_can_be_resumed_if_it_is_known_to_be_its_own() {
        let own = Mark {
            position: 7,
            state: Some(1),
        };
        assert!(
            is_resumable(own, 1, 7, 7),
            "a reset at it is not followed by another one"
        );
        assert!(
            !is_resumable(7.into(), 1, 7, 7)
                && !is_resumable(
                    Mark {
                        position: 7,
                        state: Some(2)
                    },
                    1,
                    7,
                    7
                )
        );
    }

    #[test]
    fn position_of_another_state_can_not() {
        let of = |state| Mark {
            position: 5,
            state: Some(state),
        };
        assert!(is_resumable(of(1), 1, 9, 0) && !is_resumable(of(2), 1, 9, 0));
    }
}
