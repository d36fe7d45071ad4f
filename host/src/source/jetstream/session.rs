//! A session: one consumer on one connection, with the proof that nothing that
//! it did not deliver was there to deliver.
//!
//! A jump over sequences may mean that they were deleted one by one, which is
//! nothing to us, that the server's filter left them out, or that a purge or
//! the stream's limits removed them before we read them. So what lies behind a
//! jump is held back until a look at the stream shows that it still reaches
//! back before the jump. A filtered reader that has caught up needs no such
//! look: the server sends it each event the moment it is stored.
//!
//! An idle consumer tells in its heartbeats how far it has looked. By that the
//! position moves over events for others, after the same look at the stream.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::task::coop::unconstrained;
use tracing::{debug, warn};

use super::cursor::Cursor;
use super::link::{Link, Trouble};
use super::open::{Failure, Opened, check_readable, gap, trouble};
use super::pull::{Claim, Jump, Pull};
use super::wire::{self, Api, StreamInfo};
use crate::position::StreamIdentity;
use crate::source::cloudevents::Reading;
use crate::subject::SubjectSet;

/// How often the end of the stream is looked at while a filtered reader reads, as events tell only of those like them.
const HEAD_INTERVAL: Duration = Duration::from_secs(1);

/// What a look at the stream is to answer.
#[derive(Clone, Copy, Debug)]
enum Question {
    /// Whether what is missing was still there to be sent.
    Jump(Jump),
    /// Whether what an idle consumer looked through was all there.
    Claim(Claim),
    /// Where the stream ends.
    Head,
}

/// A look at the stream that is under way.
struct Look {
    question: Question,
    answer: BoxFuture<'static, Result<Box<StreamInfo>, wire::Error>>,
}

/// One consumer on one connection.
pub(super) struct Session {
    link: Link,
    api: Arc<Api>,
    stream: Arc<StreamIdentity>,
    generation: u64,
    denials: u64,
    pull: Pull,
    look: Option<Look>,
    looked_at: Instant,
    /// Where the reader was at the last look.
    looked_through: u64,
    has_warned: bool,
    is_filtered: bool,
    is_compacting: bool,
    is_anchored: bool,
    /// Whether the connection is lost. What came before that is still read: where it stops tells which message it may
    /// have died of.
    is_ending: bool,
    /// Whether anything at all came from the consumer.
    pub(super) has_heard: bool,
}

/// What ended a wait.
enum Wake {
    Read(Result<(), Trouble>),
    Looked(Result<Box<StreamInfo>, wire::Error>),
    Reported,
    Time,
}

impl Session {
    /// Begins with what was opened.
    pub(super) fn new(opened: Opened, subjects: SubjectSet, reading: Reading) -> Self {
        Self {
            link: opened.link.clone(),
            api: Arc::clone(&opened.api),
            stream: Arc::clone(&opened.stream),
            generation: opened.generation,
            denials: opened.link.denials(),
            look: None,
            looked_at: Instant::now(),
            looked_through: opened.position,
            has_warned: false,
            is_filtered: opened.is_filtered,
            is_compacting: opened.is_compacting,
            is_anchored: opened.is_anchored,
            is_ending: false,
            has_heard: false,
            pull: Pull::new(opened, subjects, reading),
        }
    }

    /// When anything came from the consumer, or from the server as it was made.
    pub(super) fn heard_at(&self) -> Instant {
        self.pull.heard_at()
    }

    /// Whether nothing was asked for yet.
    pub(super) fn is_new(&self) -> bool {
        self.pull.is_new()
    }

    /// Asks for events where that is due. Cancel-safe.
    pub(super) async fn ask(&mut self) -> Result<(), Trouble> {
        self.pull.ask().await
    }

    /// Whether what the cursor holds must not be handed out yet.
    pub(super) fn in_question(&self) -> bool {
        self.pull.jump().is_some()
    }

    /// Takes back what the cursor holds behind an open question.
    pub(super) fn abandon(&self, cursor: &mut Cursor) {
        if let Some(jump) = self.pull.jump() {
            cursor.roll_back(jump.count, jump.from - 1);
        }
    }

    /// Waits for something to happen and takes it in. Cancel-safe: all that was
    /// read is in the cursor, and all that is under way in `self`.
    pub(super) async fn advance(&mut self, cursor: &mut Cursor) -> Result<(), Failure> {
        self.ask_if_up().await?;
        let wake = self.wait(cursor).await;
        let has_read = matches!(wake, Wake::Read(_));
        match wake {
            Wake::Read(read) => {
                read?;
                self.has_heard = true;
                self.look(cursor);
                // Before the caller goes to work on what has come, so that the wire doesn't run dry meanwhile.
                self.ask_if_up().await?;
            }
            Wake::Looked(answer) => {
                let Some(look) = self.look.take() else { return Ok(()) };
                match (answer, look.question) {
                    (Ok(info), question) => self.judge(question, &info, cursor)?,
                    // The API may be slow, and only where the stream ends was asked; another consumer would not help it.
                    (Err(error), Question::Head) => {
                        debug!(stream = self.api.stream, %error, "no look at the head");
                        self.looked_at = Instant::now();
                    }
                    (Err(error), _) => return Err(trouble(&self.api.stream, &error).into()),
                }
                self.look(cursor);
            }
            Wake::Reported => {
                if let Some(trouble) = self.link.denied_since(self.denials) {
                    return Err(trouble.into());
                }
            }
            Wake::Time => {}
        }
        self.is_ending = self.is_ending || self.link.generation() != self.generation || !self.link.is_up();
        if self.is_ending && (!has_read || self.in_question()) {
            return Err(Trouble::lost("the connection was lost").into());
        }
        if !self.in_question() && self.pull.is_lost() {
            return Err(Trouble::lost("the server fell silent").into());
        }
        Ok(())
    }

    /// Asks for events unless the connection is lost.
    async fn ask_if_up(&mut self) -> Result<(), Trouble> {
        self.is_ending = self.is_ending || self.link.is_gone();
        if self.is_ending { Ok(()) } else { self.pull.ask().await }
    }

    async fn wait(&mut self, cursor: &mut Cursor) -> Wake {
        // While a jump is in question, what comes stays in the subscription, which has room for all we asked for.
        let may_read = !self.in_question();
        let mut until = self.pull.silent_at();
        if !may_read {
            until = Instant::now() + Duration::from_secs(60);
        } else if let Some(time) = cursor.empty_at() {
            until = until.min(time);
        }
        let Self { link, pull, look, is_ending, .. } = self;
        let is_ending = *is_ending;
        tokio::select! {
            biased;
            // One call reads up to a whole batch, which is the bound; yielding every 128 messages would cut batches.
            read = unconstrained(poll_fn(|context| pull.poll_read(context, cursor))), if may_read => Wake::Read(read),
            () = std::future::ready(()), if is_ending => Wake::Time,
            // The look stays where it is when another arm wins.
            answer = async { match look { Some(look) => (&mut look.answer).await, None => pending().await } } => {
                Wake::Looked(answer)
            }
            () = link.changed() => Wake::Reported,
            () = tokio::time::sleep_until(until.into()) => Wake::Time,
        }
    }

    /// Begins a look at the stream where one is due.
    fn look(&mut self, cursor: &Cursor) {
        let waits_for_head = |look: &Look| matches!(look.question, Question::Head);
        if self.look.as_ref().is_some_and(|look| !waits_for_head(look) || !self.in_question()) {
            return;
        }
        let question = if let Some(jump) = self.pull.jump() {
            Question::Jump(jump)
        } else if let Some(claim) = self.pull.take_claim().filter(|claim| claim.through > cursor.through) {
            Question::Claim(claim)
        } else if self.is_filtered && cursor.through > self.looked_through && self.looked_at.elapsed() >= HEAD_INTERVAL
        {
            Question::Head
        } else {
            return;
        };
        let api = Arc::clone(&self.api);
        let answer = Box::pin(async move { api.stream_info().await.map(Box::new) });
        self.look = Some(Look { question, answer });
        self.looked_at = Instant::now();
        self.looked_through = cursor.through;
    }

    /// Draws the conclusion from a look at the stream.
    fn judge(&mut self, question: Question, info: &StreamInfo, cursor: &mut Cursor) -> Result<(), Failure> {
        let created_ns = info.created_ns().map_err(|error| trouble(&self.api.stream, &error))?;
        if created_ns != self.stream.created_ns {
            return Err(Trouble::lost("the stream was replaced").into());
        }
        // Its settings may have been edited since it was opened.
        check_readable(&self.api.stream, &info.config).map_err(Failure::Stop)?;
        cursor.head = cursor.head.max(info.state.last_seq);
        match question {
            Question::Head => Ok(()),
            Question::Jump(jump) => {
                // On failure the jump stays in question, so that what lies behind it is never handed out.
                self.must_reach_back(info, jump.from, jump.to, cursor)?;
                self.pull.clear_jump();
                Ok(())
            }
            Question::Claim(claim) if claim.through <= cursor.through => Ok(()),
            Question::Claim(claim) => {
                if claim.is_live {
                    self.warn_of_short_life(info, cursor.through + 1);
                } else {
                    self.must_reach_back(info, cursor.through + 1, claim.through, cursor)?;
                }
                cursor.through = claim.through;
                cursor.pending = 0;
                self.pull.caught_up();
                Ok(())
            }
        }
    }

    /// Whether nothing from `from` on was removed before it was sent; what is missing up to `to` is a gap otherwise.
    fn must_reach_back(&self, info: &StreamInfo, from: u64, to: u64, cursor: &Cursor) -> Result<(), Failure> {
        let first = info.first();
        let has_begun = self.is_anchored || cursor.position().is_some();
        if first <= from || self.is_compacting || !has_begun {
            return Ok(());
        }
        Err(Failure::Stop(gap(&self.stream.name, from, to.min(first - 1))))
    }

    /// Tells once that the stream removes what the server has just looked at.
    fn warn_of_short_life(&mut self, info: &StreamInfo, from: u64) {
        if info.first() > from && !self.is_compacting && !self.has_warned {
            self.has_warned = true;
            warn!(
                stream = self.stream.name,
                "the stream removes events within seconds, so a filtered reader that loses its connection may stop \
                 with source-gap; raise its max_age, max_msgs or max_bytes"
            );
        }
    }
}
