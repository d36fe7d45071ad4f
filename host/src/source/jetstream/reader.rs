//! The supervision of a reader: opens the stream, reads, and starts again at
//! its position on any doubt. What may pass is a status; what may not is an
//! error.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tracing::{debug, warn};

use super::appetite::Appetite;
use super::audience::Audience;
use super::connect::{Settings, delay};
use super::cursor::{Cursor, Last, Oddities};
use super::hub::{Key, Parting, SessionFacts};
use super::link::{Link, Trouble};
use super::open::{Failure, Opened, Standing, open};
use super::permissions;
use super::pull::{Demand, REQUEST_BYTES};
use super::ring::Taken;
use super::session::{Replacement, Session};
use super::trusted::Trusted;
use super::wire::Api;
use crate::batch::{Batch, Limits};
use crate::cloudevents::message::Reading;
use crate::event::Headers;
use crate::memory::read_ahead::{ReadAhead, RequestShare};
use crate::position::EventMark;
use crate::source::{Error, Passed, Request, SourceState, StatusSender};
use crate::subject::Pattern;

/// Longest pause before the stream is reopened.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// The same if the server refuses us: that passes only when somebody acts.
const PAUSE_REFUSED_MAX: Duration = Duration::from_secs(10);
/// After this long the status says that the stream is still opening.
const LONG: Duration = Duration::from_secs(10);
/// Pause after an error that an operator must decide, if the caller asks again.
const PAUSE_STOPPED: Duration = Duration::from_secs(1);

/// Pause before another check of a problem that would stop us: a server that has just started, or
/// was just elected, may not have the whole stream yet.
const PAUSE_SUSPICIOUS: Duration = Duration::from_secs(3);

/// An older suspicion counts as a separate one.
const SUSPICION_MAX: Duration = Duration::from_secs(60);

type Opening = BoxFuture<'static, (Option<Link>, Result<Opened, Failure>)>;
type Replacing = BoxFuture<'static, Result<Replacement, Trouble>>;

/// A supervised reader of a JetStream stream.
pub(super) struct Supervised {
    settings: Arc<Settings>,
    request: Request,
    covering: Pattern,
    status: Audience,
    cursor: Cursor,
    /// The connection, kept from one session to the next.
    link: Option<Link>,
    /// The stream being opened. It is stored here so that a caller who cancels `next` again and
    /// again gets there too.
    opening: Option<Opening>,
    session: Option<Session>,
    /// The connection with which the session continues. It is stored here as `opening` is.
    replacing: Option<Replacing>,
    /// How many sessions there were.
    sessions: u64,
    failures: usize,
    /// Whether the stream was read before, so that a failure to connect means that it is lost.
    has_read: bool,
    doubts: Doubts,
    /// What the status shows of invalid messages.
    reported: Oddities,
    retry_at: Option<Instant>,
    passed: Passed,
    /// A problem that stops us unless another check, over another connection, finds otherwise.
    suspicion: Option<Suspicion>,
    /// An error to return after everything before it was returned.
    failed: Option<Error>,
    /// The part of the memory that open requests may fill; none has no limit but its own.
    share: Option<Arc<RequestShare>>,
    /// The memory of which it takes a part while it has a session.
    ahead: Option<ReadAhead>,
    /// How much to request from this server.
    appetite: Appetite,
    /// Jumps of the last session that counted as messages for others, and were not confirmed before
    /// it ended.
    trusted: Trusted,
}

/// Lost connections, perhaps because of a message that the client cannot parse.
#[derive(Debug, Default)]
struct Doubts {
    /// The position.
    position: u64,
    /// How often they were lost there.
    count: u32,
}

/// A problem that would stop a reader, and is checked again first.
#[derive(Clone, Copy, Debug)]
struct Suspicion {
    /// The position.
    position: u64,
    /// As in [`Error::kind`].
    kind: &'static str,
    /// When it was last seen.
    at: Instant,
    /// How many checks in a row showed it.
    checks: u32,
}

impl fmt::Debug for Supervised {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Supervised")
            .field("source", &self.settings.name)
            .field("stream", &self.settings.stream)
            .field("through", &self.cursor.through)
            .finish_non_exhaustive()
    }
}

impl Supervised {
    pub(super) fn new(settings: Arc<Settings>, request: Request, status: StatusSender) -> Self {
        Self::telling(settings, request, Audience::One(status))
    }

    fn telling(settings: Arc<Settings>, request: Request, status: Audience) -> Self {
        Self {
            covering: request.subjects.covering(),
            cursor: Cursor::new(request.resume.as_ref(), request.limits),
            settings,
            request,
            status,
            link: None,
            opening: None,
            session: None,
            replacing: None,
            sessions: 0,
            failures: 0,
            has_read: false,
            doubts: Doubts::default(),
            reported: Oddities::default(),
            retry_at: None,
            passed: Passed::default(),
            suspicion: None,
            failed: None,
            share: None,
            ahead: None,
            appetite: Appetite::default(),
            trusted: Trusted::default(),
        }
    }

    /// Itself, with its open requests within a budget.
    pub(super) fn within(mut self, ahead: &ReadAhead) -> Self {
        self.share = Some(Arc::new(ahead.reader()));
        self.ahead = Some(ahead.clone());
        self
    }

    /// See [`super::Reader::next`].
    pub(super) async fn next(&mut self) -> Result<Batch, Error> {
        // A caller who always finds something would otherwise never let other tasks run.
        tokio::task::consume_budget().await;
        loop {
            // Before anything is returned, so that the server never has an event without a request
            // for it.
            if let Some(session) = self.session.as_mut().filter(|session| session.is_new())
                && let Err(trouble) = session.ask().await
            {
                self.end_session(trouble.into());
            }
            // What waits behind an open jump may have to be taken back.
            let in_question = self.session.as_ref().is_some_and(Session::in_question);
            if !in_question
                && self.cursor.is_ready()
                && let Some(batch) = self.cursor.take()
            {
                self.passed.note(&self.settings.stream, &batch);
                return Ok(batch);
            }
            // After the last batch, so that what was read is applied first.
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            match &mut self.session {
                None => self.open().await,
                Some(session) if session.must_replace() => self.replace_link().await,
                Some(session) => {
                    let advanced = session.advance(&mut self.cursor).await;
                    self.status.heard(session.heard_at());
                    self.report_oddities();
                    if let Err(failure) = advanced {
                        // Dropping the session deletes its consumer; the next one begins at the
                        // cursor.
                        self.end_session(failure);
                    }
                }
            }
        }
    }

    /// Opens the stream, or records why not. Cancel-safe: the attempt continues with the next call.
    async fn open(&mut self) {
        // A call that was cancelled sleeps until the same time.
        if let Some(time) = self.retry_at {
            tokio::time::sleep_until(time.into()).await;
            self.retry_at = None;
        }
        // Continued if a call before was cancelled in the middle.
        let attempt = match &mut self.opening {
            Some(opening) => opening,
            None => {
                let opening = self.attempt();
                self.opening.insert(opening)
            }
        };
        let (link, outcome) = attempt.await;
        self.opening = None;
        self.link = link;
        match outcome {
            Ok(opened) => self.begin_session(opened),
            Err(failure) => self.note(failure),
        }
    }

    /// Continues the session over another connection: the client of this one keeps a buffer as large
    /// as the largest message that it has received. Cancel-safe: the attempt continues with the next
    /// call.
    async fn replace_link(&mut self) {
        let settings = &self.settings;
        let replacing = self
            .replacing
            .get_or_insert_with(|| Box::pin(Replacement::connect(Arc::clone(settings))));
        let replaced = replacing.await;
        self.replacing = None;
        match (replaced, &mut self.session) {
            (Ok(over), Some(session)) => {
                self.link = Some(over.link().clone());
                session.move_to(over);
            }
            (Ok(_), None) => {}
            (Err(trouble), _) => self.end_session(trouble.into()),
        }
    }

    fn attempt(&mut self) -> Opening {
        let settings = Arc::clone(&self.settings);
        let status = self.status.clone();
        let covering = self.covering.clone();
        let has_read = self.has_read;
        // A client that has ended would never reconnect.
        let link = self.link.take().filter(|link| !link.is_gone());
        let standing = Standing {
            position: self.cursor.position(),
            stream: self.cursor.stream.clone(),
            mark: self.cursor.mark(),
            seen: self.cursor.seen().cloned(),
            earlier: self.cursor.earlier().clone(),
            accepts_through: self.settings.on_missing.accepts_through(&self.request),
            start: self.request.start,
            begins_after: self.request.begins_after,
            // Losses at another position say nothing about this one.
            doubts: if self.doubts.position == self.cursor.through {
                self.doubts.count
            } else {
                0
            },
            skips: Arc::clone(&self.request.skips),
            share: self.share.clone(),
        };
        Box::pin(async move {
            let mut link = match link {
                Some(link) => link,
                None => match Link::connect(&settings).await {
                    Ok(link) => link,
                    Err(Trouble {
                        state: SourceState::Connecting,
                        message,
                    }) if has_read => {
                        return (None, Err(Trouble::lost(message).into()));
                    }
                    Err(trouble) => return (None, Err(trouble.into())),
                },
            };
            // A refused connection is made again, with the current credentials.
            if let Err(trouble) = link
                .up(|trouble| status.report(trouble.state, Some(trouble.message)))
                .await
            {
                return (None, Err(trouble.into()));
            }
            let api = |link: &Link| Api {
                client: link.client().clone(),
                prefix: settings.api_prefix.clone(),
                stream: settings.stream.clone(),
            };
            let known = api(&link);
            let tried = permissions::try_later_needs(&mut link, &known).await;
            // Nothing else keeps the client, which may have to be replaced.
            drop(known);
            let outcome = match tried {
                Ok(()) => {
                    let opening = open(&mut link, &settings, &covering, &standing);
                    Box::pin(report_if_long(opening, &status)).await
                }
                Err(trouble) => Err(trouble.into()),
            };
            match outcome {
                // A new connection may have other permissions, and the server says again what it
                // may not receive.
                // Only the first refused permission is known so far.
                Err(Failure::Trouble(trouble)) if trouble.state == SourceState::Unauthorized => {
                    let known = api(&link);
                    let trouble = permissions::explain(&mut link, &known, trouble).await;
                    (None, Err(trouble.into()))
                }
                // An answer that did not come may have been lost with this connection.
                outcome @ Err(Failure::Trouble(Trouble {
                    state: SourceState::Reconnecting,
                    ..
                })) => (None, outcome),
                outcome => (Some(link), outcome),
            }
        })
    }

    fn begin_session(&mut self, opened: Opened) {
        self.has_read = true;
        self.sessions += 1;
        self.status.report(SourceState::Reading, None);
        debug!(
            source = self.settings.name,
            position = opened.position,
            head = opened.head,
            is_filtered = opened.is_filtered,
            "reading"
        );
        self.cursor.place(
            Arc::clone(&opened.stream),
            opened.position,
            opened.head,
            opened.pending,
        );
        let trusted = std::mem::take(&mut self.trusted);
        // The settings are still as they were when the jumps were made.
        let trusted = if opened.removes_at_once {
            trusted
        } else {
            Trusted::default()
        };
        let headers = if self.request.wants_headers {
            Headers::Wanted
        } else {
            Headers::Left
        };
        let reading = Reading {
            recognition: self.settings.recognition,
            headers,
        };
        let demand = Demand {
            subjects: self.request.subjects.clone(),
            reading,
            share: self.share.clone(),
            appetite: self.appetite,
        };
        self.session = Some(Session::new(opened, demand, trusted));
    }

    fn end_session(&mut self, failure: Failure) {
        let Some(mut session) = self.session.take() else {
            return;
        };
        self.replacing = None;
        if session.is_bloated() {
            self.link = None;
        }
        self.trusted = session.take_trusted();
        // What is behind an open question was never proved.
        session.abandon(&mut self.cursor);
        // It worked, so the pauses start again.
        if session.has_heard {
            self.failures = 0;
        }
        // Only a lost connection may be due to a message.
        if !session.has_waited()
            && matches!(&failure, Failure::Trouble(trouble) if trouble.state == SourceState::Reconnecting)
        {
            self.doubt();
        }
        self.status.lost();
        let explained = session.is_cut_off().then(|| self.eat_less()).flatten();
        self.note(match (failure, explained) {
            (Failure::Trouble(_), Some(why)) => Trouble::lost(why).into(),
            (failure, _) => failure,
        });
    }

    /// The server has cut the reader off; returns why, once that has happened again and again.
    fn eat_less(&mut self) -> Option<String> {
        let now = Instant::now();
        self.appetite.lost(now);
        let why = self.appetite.explanation(REQUEST_BYTES, now)?;
        if self.appetite.is_worth_a_warning() {
            warn!(source = self.settings.name, "{why}");
        }
        Some(why)
    }

    /// Records that a connection was lost here.
    fn doubt(&mut self) {
        let position = self.cursor.through;
        let before = if self.doubts.position == position {
            self.doubts.count
        } else {
            0
        };
        self.doubts = Doubts {
            position,
            count: before.saturating_add(1),
        };
    }

    /// Reports invalid messages, if there are new ones.
    fn report_oddities(&mut self) {
        // Followers count what they take.
        let Audience::One(status) = &self.status else {
            return;
        };
        let found = self.cursor.oddities;
        let reported = std::mem::replace(&mut self.reported, found);
        if (reported.passed_over, reported.repaired) != (found.passed_over, found.repaired) {
            status.send_modify(|status| {
                status.passed_over += found.passed_over - reported.passed_over;
                status.repaired += found.repaired - reported.repaired;
            });
        }
    }

    fn note(&mut self, failure: Failure) {
        match failure {
            Failure::Trouble(trouble) => self.note_trouble(trouble),
            Failure::Stop(error)
                if !self.has_passed(&error) && self.suspect(error.kind()) < error.checks() =>
            {
                let source = &self.settings.name;
                warn!(
                    source,
                    position = self.cursor.through,
                    %error,
                    "checking again before this stops anything"
                );
                let message = format!("{}: {error} (looking again)", error.kind());
                self.status.doubt(&message);
                // Over another connection, in case this one reaches a server that is mistaken.
                self.link = None;
                self.retry_at = Some(Instant::now() + PAUSE_SUSPICIOUS);
            }
            Failure::Stop(error) => {
                self.stop(error);
            }
        }
    }

    fn stop(&mut self, error: Error) {
        self.status.stop(format!("{}: {error}", error.kind()));
        // Returned by `next`, after everything that was read.
        self.failed = Some(error);
        self.retry_at = Some(Instant::now() + PAUSE_STOPPED);
    }

    /// Whether an error is about messages before the position: nobody looks at those again.
    fn has_passed(&self, error: &Error) -> bool {
        matches!(error, Error::Gap { missing, .. } if missing.from <= self.cursor.through)
    }

    /// Records that a check showed a problem; returns how many in a row did.
    fn suspect(&mut self, kind: &'static str) -> u32 {
        let position = self.cursor.through;
        let is_same = |known: &Suspicion| known.position == position && known.kind == kind;
        // An old one does not count: in between everything was fine.
        let known = self
            .suspicion
            .filter(|known| is_same(known) && known.at.elapsed() < SUSPICION_MAX);
        let checks = known.map_or(0, |known| known.checks).saturating_add(1);
        self.suspicion = Some(Suspicion {
            position,
            kind,
            at: Instant::now(),
            checks,
        });
        checks
    }

    fn note_trouble(&mut self, trouble: Trouble) {
        let longest = if trouble.state == SourceState::Unauthorized {
            PAUSE_REFUSED_MAX
        } else {
            PAUSE_MAX
        };
        // The first attempt after a working session comes at once: usually only its consumer was
        // lost.
        self.retry_at = (self.failures > 0).then(|| Instant::now() + delay(self.failures, longest));
        self.failures = self.failures.saturating_add(1);
        // If it lasts, the host reports it, once for all that read this source.
        debug!(
            source = self.settings.name,
            position = self.cursor.through,
            reason = trouble.message,
            "reading paused"
        );
        self.status.report(trouble.state, Some(trouble.message));
    }
}

/// What a reader does with others of the same source (`hub`).
impl Supervised {
    /// What it has in common with those with which it may share a reader.
    pub(super) fn key(&self) -> Key {
        Key {
            subjects: self.request.subjects.clone(),
            wants_headers: self.request.wants_headers,
        }
    }

    /// The largest batch that it returns.
    pub(super) fn limits(&self) -> Limits {
        self.request.limits
    }

    /// Where its state is reported, if it reads for one deployment.
    pub(super) fn status(&self) -> Option<&StatusSender> {
        match &self.status {
            Audience::One(status) => Some(status),
            Audience::Followers(_) => None,
        }
    }

    /// The memory for what it reads ahead, if that is limited.
    pub(super) fn ahead(&self) -> Option<&ReadAhead> {
        self.ahead.as_ref()
    }

    /// Its position; none while its beginning is undecided.
    pub(super) fn position(&self) -> Option<u64> {
        self.cursor.position()
    }

    /// The mark of its last event.
    pub(super) fn mark(&self) -> Option<EventMark> {
        self.cursor.mark()
    }

    /// Its last event.
    pub(super) fn last(&self) -> Last {
        self.cursor.last().clone()
    }

    /// Jumps that a session to come has to confirm.
    pub(super) fn trusted_mut(&mut self) -> &mut Trusted {
        &mut self.trusted
    }

    /// Whether it has returned all that the stream has, nothing of it is in question, and it has no
    /// permissions for what follows that others lack.
    pub(super) fn has_caught_up(&self) -> bool {
        let Some(position) = self.cursor.position() else {
            return false;
        };
        let is_settled = self.session.as_ref().is_some_and(Session::is_settled);
        let has_permission = self.request.accepts_missing_through > position
            || self
                .request
                .skips
                .last()
                .is_some_and(|skip| *skip > position);
        is_settled
            && !has_permission
            && self.cursor.is_drained()
            && self.cursor.pending == 0
            && self.failed.is_none()
    }

    /// Another reader that continues with the session of this one, for all that follow it. This one
    /// has caught up.
    pub(super) fn hand_over(&mut self, audience: Audience) -> Supervised {
        let widest = Limits::default();
        let limits = Limits {
            events: self.request.limits.events.max(widest.events),
            // As the host's memory allows it for one reader.
            bytes: self.request.limits.bytes,
        };
        let request = Request {
            resume: None,
            limits,
            // It decides nothing: a reader with a permission reads alone until that is used up.
            accepts_missing_through: 0,
            skips: Arc::default(),
            ..self.request.clone()
        };
        Supervised {
            cursor: self.cursor.at_same_position(limits),
            link: self.link.take(),
            session: self.session.take(),
            replacing: self.replacing.take(),
            sessions: self.sessions,
            has_read: true,
            reported: self.cursor.oddities,
            share: self.share.take(),
            ahead: self.ahead.clone(),
            appetite: self.appetite,
            ..Self::telling(Arc::clone(&self.settings), request, audience)
        }
    }

    /// Ends its session, because it follows another reader from now on.
    pub(super) fn let_go(&mut self) {
        if let Some(mut session) = self.session.take() {
            self.trusted = session.take_trusted();
        }
        self.replacing = None;
        // In this order: the consumer is deleted over the connection.
        self.link = None;
        self.share = None;
    }

    /// Moves over what it took from the reader that it follows.
    pub(super) fn follow(&mut self, taken: &Taken) {
        self.cursor
            .follow(&taken.batch, taken.last.as_ref(), taken.repaired);
        self.report_oddities();
    }

    /// Reads alone again.
    pub(super) fn part(&mut self, parting: Parting) {
        self.share = self.ahead.as_ref().map(|ahead| Arc::new(ahead.reader()));
        self.trusted.extend(parting.trusted);
        self.cursor.overlook_passed(parting.overlooked);
        if let Some(suspected) = parting.suspicion
            && suspected.position == self.cursor.through
        {
            self.suspicion = Some(Suspicion {
                position: suspected.position,
                kind: suspected.kind,
                at: Instant::now(),
                checks: suspected.checks,
            });
        }
        let accepts_through = self.settings.on_missing.accepts_through(&self.request);
        if let Some(gap) = parting.passed
            && gap.missing.to > accepts_through
        {
            self.stop(gap.error());
        }
    }

    /// What its followers have to know of its session.
    pub(super) fn session_facts(&self) -> SessionFacts {
        let session = self.session.as_ref();
        SessionFacts {
            count: self.sessions,
            confirmed_at: session.and_then(|session| session.confirmed_at),
            trusted: session.map_or(&self.trusted, Session::trusted).clone(),
            stream: self.cursor.stream.clone(),
        }
    }

    /// The error that it would return next.
    pub(super) fn take_failed(&mut self) -> Option<Error> {
        self.failed.take()
    }

    /// How many messages it has delivered without their unusable parts since it was last asked.
    pub(super) fn take_repaired(&mut self) -> u64 {
        let found = self.cursor.oddities;
        let reported = std::mem::replace(&mut self.reported, found);
        found.repaired - reported.repaired
    }
}

/// Reports what is waited for if a stream takes long to open.
async fn report_if_long<T>(opening: impl Future<Output = T>, status: &Audience) -> T {
    tokio::pin!(opening);
    // Only observes until it has taken long; the opening continues either way.
    tokio::select! {
        biased;
        result = &mut opening => return result,
        () = tokio::time::sleep(LONG) => {}
    }
    let message = "the server takes long to answer; perhaps it still counts the events that match \
                   the filter, to create a consumer";
    status.report(status.state(), Some(message.to_owned()));
    opening.await
}
