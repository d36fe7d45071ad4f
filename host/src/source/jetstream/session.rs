//! A session: one consumer on one connection, with the proof that nothing that
//! it did not deliver was there to deliver.
//!
//! If the server does not filter for a reader, a jump over sequences means that
//! they are gone: removed by a purge, a limit, an expiry or one by one. If it
//! filters, it usually means that they belong to others. So while events for us
//! may be unsent in the stream, everything after a jump is held back until a
//! check of the stream shows which sequences it lacks; each of those may have
//! been for us. A filtered reader that has caught up needs no such check: the
//! server sends it each event soon after it is stored, unless that server lags
//! behind others that hold the stream, which `currency` is about. Streams that
//! may remove an event even sooner are read without a filter.
//!
//! The heartbeats of an idle consumer say how far it has looked. With that, the
//! position moves over messages for others, after the same check of the stream,
//! which also returns the last of them as a mark.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Subject, Subscriber};
use futures_util::future::BoxFuture;
use tokio::task::coop::unconstrained;
use tracing::{debug, warn};

use super::connect::Settings;
use super::cursor::Cursor;
use super::link::{Link, Trouble};
use super::missing::{self, Holes, has_gaps_by_design, removes_at_once};
use super::open::{Failure, Opened, check_readable, subscribe, trouble};
use super::proof;
use super::pull::{Claim, Demand, Jump, Pull};
use super::trusted::Trusted;
use super::wire::{self, Api, StreamInfo};
use crate::position::{EventMark, StreamIdentity};
use crate::source::{Error, Missing};
use crate::subject::Pattern;

/// How often the end of the stream is checked while a filtered reader reads, because events only
/// show events like them.
const HEAD_INTERVAL: Duration = Duration::from_secs(1);

/// How long a reader that gets nothing trusts its consumer before it asks whether the stream has
/// anything for it.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a consumer may take to deliver what the stream has.
const DELIVERY_MAX: Duration = Duration::from_secs(2);

/// How often the check of a jump may get no answer before the session ends: everything after the
/// jump waits for it.
const JUMP_ASKED_MAX: u32 = 2;

/// How often in a row a server may answer that does not lead the stream.
const UNLED_MAX: u32 = 3;

/// Most subjects to ask for after a jump.
const PATTERNS_MAX: usize = 16;

/// How many sequences to try in order to find the last existing message.
const LAST_TRIED: u64 = 8;

/// The question for a check of the stream.
#[derive(Clone, Copy, Debug)]
enum Question {
    /// Whether missing sequences were still there to be sent.
    Jump(Jump),
    /// Whether everything that an idle consumer examined still existed.
    Claim(Claim),
    /// Where the stream ends.
    Head,
    /// Whether the stream has anything for a reader that gets nothing.
    Idle,
}

/// The result of a check of the stream.
struct View {
    info: StreamInfo,
    /// What it lacks, if requested and changed.
    holes: Option<Holes>,
    /// The last message that a consumer looked through, if that was asked for, and whether it
    /// should have delivered it.
    last: Option<(EventMark, bool)>,
    /// The first message for us that was not delivered, if that was asked for.
    next: Option<u64>,
    /// Whether what a jump passed over was for others.
    is_for_others: bool,
}

/// A running check of the stream.
struct Look {
    question: Question,
    asked: Instant,
    /// The position at that time.
    through: u64,
    answer: BoxFuture<'static, Result<Box<View>, wire::Error>>,
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
    /// How many checks in a row got no answer in time.
    unanswered: u32,
    /// The position at the last check.
    looked_through: u64,
    /// Where the reader is, and since when it gets nothing there.
    idle: (u64, Instant),
    /// When the stream was last asked whether it has anything for a reader that gets nothing.
    idle_asked: Instant,
    /// Where the reader was when the stream had something for it that the consumer had not
    /// delivered.
    waits_at: Option<u64>,
    has_warned: bool,
    is_filtered: bool,
    /// Whether the stream may have messages that the module does not read.
    reads_part: bool,
    /// The subjects that the consumer delivers.
    filter: String,
    is_anchored: bool,
    /// Whether the stream may remove messages at once since its settings were changed: nothing more
    /// is read until a look at all that was read shows what is gone of it.
    is_edited: bool,
    /// What the stream lacks, as far as it was asked; only for a filtered reader.
    holes: Holes,
    /// Whether it was logged that too much is missing to be listed.
    has_logged_unlisted: bool,
    /// Up to which sequence missing ones were counted.
    counted: u64,
    /// The sequence up to which messages may be missing.
    accepts_through: u64,
    /// Sequences that are skipped, and so are not missed.
    skips: Arc<[u64]>,
    /// Whether the connection is lost. What arrived before is still read: where it stops shows
    /// which message may have caused that.
    is_ending: bool,
    /// Whether anything arrived from the consumer.
    pub(super) has_heard: bool,
    /// When the stream was asked for the settings that last confirmed jumps.
    pub(super) confirmed_at: Option<Instant>,
}

/// Another connection for a session.
pub(super) struct Replacement {
    link: Link,
    generation: u64,
    inbox: Subject,
    subscription: Subscriber,
}

impl Replacement {
    pub(super) async fn connect(settings: Arc<Settings>) -> Result<Self, Trouble> {
        let mut link = Link::connect(&settings).await?;
        link.up(|_| {}).await?;
        let generation = link.generation();
        let (inbox, subscription) = subscribe(link.client()).await?;
        Ok(Self {
            link,
            generation,
            inbox,
            subscription,
        })
    }

    /// The connection.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }
}

/// Why a wait ended.
enum Wake {
    Read(Result<(), Trouble>),
    Looked(Result<Box<View>, wire::Error>),
    Reported,
    Time,
}

impl Session {
    /// Starts with an opened stream. `trusted` are jumps of the session before, if the stream may
    /// remove messages at once since then.
    pub(super) fn new(opened: Opened, demand: Demand, trusted: Trusted) -> Self {
        Self {
            link: opened.link.clone(),
            api: Arc::clone(&opened.api),
            stream: Arc::clone(&opened.stream),
            generation: opened.generation,
            denials: opened.link.denials(),
            look: None,
            looked_at: Instant::now(),
            unanswered: 0,
            looked_through: opened.position,
            idle: (opened.position, Instant::now()),
            idle_asked: Instant::now(),
            waits_at: None,
            has_warned: false,
            is_filtered: opened.is_filtered,
            reads_part: opened.reads_part,
            filter: opened.filter.clone(),
            is_anchored: opened.is_anchored,
            is_edited: !trusted.is_empty(),
            holes: opened.holes.clone(),
            has_logged_unlisted: false,
            counted: opened.position,
            accepts_through: opened.accepts_through,
            skips: Arc::clone(&opened.skips),
            is_ending: false,
            has_heard: false,
            confirmed_at: None,
            pull: Pull::new(opened, demand, trusted),
        }
    }

    /// When anything arrived from the consumer, or from the server when it was created.
    pub(super) fn heard_at(&self) -> Instant {
        self.pull.heard_at()
    }

    /// Whether the connection was lost while events were on their way.
    pub(super) fn is_cut_off(&self) -> bool {
        self.is_ending && self.has_heard && self.pull.expects_events()
    }

    /// Whether nothing was requested yet.
    pub(super) fn is_new(&self) -> bool {
        self.pull.is_new()
    }

    /// Requests events if that is due. Cancel-safe.
    pub(super) async fn ask(&mut self) -> Result<(), Trouble> {
        self.pull.ask().await
    }

    /// Whether it has waited for others so long that the server may have removed the consumer: a loss
    /// of that says nothing about the next message.
    pub(super) fn has_waited(&self) -> bool {
        self.pull.has_waited()
    }

    /// Whether the client of its connection keeps a large buffer.
    pub(super) fn is_bloated(&self) -> bool {
        self.pull.is_bloated()
    }

    /// Whether the connection is to be replaced because of that. Not while something is in question,
    /// which is answered over it.
    pub(super) fn must_replace(&self) -> bool {
        self.is_bloated() && !self.in_question() && !self.is_ending
    }

    /// Continues with the same consumer over another connection.
    pub(super) fn move_to(&mut self, over: Replacement) {
        let Replacement {
            link,
            generation,
            inbox,
            subscription,
        } = over;
        self.pull.move_to(&link, inbox, subscription);
        self.api = Arc::new(Api {
            client: link.client().clone(),
            prefix: self.api.prefix.clone(),
            stream: self.api.stream.clone(),
        });
        self.generation = generation;
        self.denials = link.denials();
        self.link = link;
        // Asked again over this connection, if it still matters.
        self.look = None;
    }

    /// Whether the contents of the cursor must not be returned yet.
    pub(super) fn in_question(&self) -> bool {
        self.pull.jump().is_some() || self.is_edited
    }

    /// Whether it works and nothing that it read is in question.
    pub(super) fn is_settled(&self) -> bool {
        !self.in_question() && !self.is_ending && self.link.generation() == self.generation
    }

    /// The jumps that counted as messages for others and were not confirmed since.
    pub(super) fn trusted(&self) -> &Trusted {
        self.pull.trusted()
    }

    /// The same, for the session after it.
    pub(super) fn take_trusted(&mut self) -> Trusted {
        std::mem::take(self.pull.trusted_mut())
    }

    /// Takes back the contents of the cursor after an open question.
    pub(super) fn abandon(&self, cursor: &mut Cursor) {
        if let Some(jump) = self.pull.jump() {
            // One before the jump: that sequence was still in order.
            cursor.roll_back(jump.from - 1);
        }
    }

    /// Waits for something to happen and processes it. Cancel-safe: everything
    /// read is in the cursor, and everything running is in `self`.
    pub(super) async fn advance(&mut self, cursor: &mut Cursor) -> Result<(), Failure> {
        self.ask_if_up(cursor).await?;
        // A session may begin with this question.
        if self.is_edited && self.look.is_none() {
            self.look(cursor);
        }
        let wake = self.wait(cursor).await;
        let has_read = matches!(wake, Wake::Read(_));
        match wake {
            Wake::Read(read) => {
                read?;
                self.has_heard = true;
                // While a jump is open, its own answer counts the sequences.
                if !self.in_question() {
                    self.count(cursor.through, cursor)?;
                }
                // A check may be due by what has just arrived.
                self.look(cursor);
                // Before the caller processes what arrived, so that the next events are already on
                // their way.
                self.ask_if_up(cursor).await?;
            }
            Wake::Looked(answer) => {
                let Some(look) = self.look.take() else {
                    return Ok(());
                };
                match answer {
                    Ok(view) => {
                        self.unanswered = 0;
                        let end = view.info.state.last_seq;
                        let led_at = view.info.led_at(look.asked);
                        self.judge(&look, *view, cursor)?;
                        // After the answer was judged, as it may have moved the cursor.
                        if let Some(led_at) = led_at {
                            self.pull.stream_ends(led_at, end, cursor.through);
                        }
                    }
                    Err(error) => self.bear(look.question, &error)?,
                }
                self.look(cursor);
            }
            // A refused permission is reported over the connection, and not as an answer.
            Wake::Reported => {
                if let Some(trouble) = self.link.denied_since(self.denials) {
                    return Err(trouble.into());
                }
            }
            Wake::Time => {}
        }
        self.is_ending =
            self.is_ending || self.link.generation() != self.generation || !self.link.is_up();
        // What arrived before the end is read first; only then the session ends.
        if self.is_ending && (!has_read || self.in_question()) {
            return Err(Trouble::lost("the connection was lost").into());
        }
        // During a question nothing is read, so silence means nothing.
        if !self.in_question() && self.pull.is_lost() {
            return Err(Trouble::lost("the server fell silent").into());
        }
        Ok(())
    }

    /// Continues without the answer to a check of the stream, if that is possible.
    fn bear(&mut self, question: Question, error: &wire::Error) -> Result<(), Failure> {
        let is_unanswered = matches!(
            error,
            wire::Error::Unanswered { .. } | wire::Error::Unled { .. }
        );
        // Other errors show that the API works, and start the count again.
        self.unanswered = if is_unanswered {
            self.unanswered.saturating_add(1)
        } else {
            0
        };
        let is_unled = matches!(error, wire::Error::Unled { .. });
        let may_continue = match question {
            // The server may be cut off from its cluster, and the consumer with it: events may come
            // elsewhere. One answer may be late; an idle reader has waited long enough.
            Question::Head if is_unled => self.unanswered < UNLED_MAX,
            Question::Idle if is_unled => false,
            // Something is held back until it is answered.
            Question::Head | Question::Idle => !self.is_edited || is_unanswered,
            // The API may be slow, and another consumer would not help. The next heartbeat makes
            // the claim again.
            Question::Claim(_) => is_unanswered,
            Question::Jump(_) => is_unanswered && self.unanswered < JUMP_ASKED_MAX,
        };
        if !may_continue {
            return Err(trouble(&self.api.stream, error).into());
        }
        debug!(stream = self.api.stream, ?question, %error, "cannot check the stream");
        self.looked_at = Instant::now();
        Ok(())
    }

    /// Requests events unless the connection is lost.
    async fn ask_if_up(&mut self, cursor: &Cursor) -> Result<(), Trouble> {
        self.is_ending = self.is_ending || self.link.is_gone();
        // What was read before a large event does not wait for the memory of that.
        let must_return = self.pull.waits_for_large() && cursor.sequences().next().is_some();
        if self.is_ending || must_return {
            Ok(())
        } else {
            self.pull.ask().await
        }
    }

    async fn wait(&mut self, cursor: &mut Cursor) -> Wake {
        // While a jump is in question, events stay in the subscription, which has room for all
        // requested ones.
        let may_read = !self.in_question();
        let mut until = self.pull.silent_at();
        if !may_read {
            // A question has its own time limit; this is only so that the loop looks again.
            until = Instant::now() + Duration::from_secs(60);
        } else if let Some(time) = cursor.empty_at() {
            until = until.min(time);
        }
        let Self {
            link,
            pull,
            look,
            is_ending,
            ..
        } = self;
        let is_ending = *is_ending;
        tokio::select! {
            biased;
            // One call reads up to a whole batch, which is the limit; yielding every 128 messages
            // would split batches.
            read = unconstrained(poll_fn(|context| pull.poll_read(context, cursor))), if may_read => Wake::Read(read),
            () = std::future::ready(()), if is_ending => Wake::Time,
            // The check stays in place if another arm wins.
            answer = async { match look { Some(look) => (&mut look.answer).await, None => pending().await } } => {
                Wake::Looked(answer)
            }
            () = link.changed() => Wake::Reported,
            () = tokio::time::sleep_until(until.into()) => Wake::Time,
        }
    }

    /// Starts a check of the stream if one is due.
    fn look(&mut self, cursor: &Cursor) {
        // It has moved: the clock of idleness starts again.
        if cursor.through != self.idle.0 {
            self.idle = (cursor.through, Instant::now());
        }
        let waits_for_head = |look: &Look| matches!(look.question, Question::Head | Question::Idle);
        if self
            .look
            .as_ref()
            .is_some_and(|look| !waits_for_head(look) || !self.in_question())
        {
            return;
        }
        let question = if let Some(jump) = self.pull.jump() {
            Question::Jump(jump)
        } else if let Some(claim) = self
            .pull
            .take_claim()
            .filter(|claim| claim.through > cursor.through)
        {
            Question::Claim(claim)
        } else if self.is_edited {
            Question::Head
        } else if self.is_idle() {
            self.idle_asked = Instant::now();
            Question::Idle
        } else if self.is_filtered
            && (cursor.through > self.looked_through || self.pull.needs_proof())
            && self.looked_at.elapsed() >= HEAD_INTERVAL
        {
            Question::Head
        } else {
            return;
        };
        let api = Arc::clone(&self.api);
        let is_filtered = self.is_filtered;
        let (filter, through) = (self.filter.clone(), cursor.through);
        let (known, mut after) = (self.holes.seen(), self.counted);
        let (trusted_from, is_edited) = (self.pull.trusted().first(), self.is_edited);
        let own = self.own_patterns(question);
        // Polled by `wait` alongside reading, so that nothing waits for the answer.
        let answer = Box::pin(async move {
            let info = api.stream_info().await?;
            // Events removed after they were sent do not matter to a reader that has caught up.
            let may_lack = match question {
                Question::Jump(_) => true,
                Question::Claim(claim) => !claim.is_live,
                Question::Head | Question::Idle => false,
            };
            // The list is large, and is the same as long as nothing was removed.
            let mut must_list = is_filtered && may_lack && known != missing::Seen::of(&info);
            // Its settings were changed since the last look, and what was taken for messages of
            // others may have been removed.
            if let Some(from) = trusted_from.filter(|_| is_edited || removes_at_once(&info.config))
            {
                must_list = true;
                after = after.min(from - 1);
            }
            let holes = if must_list {
                Some(missing::look_up(&api, &info, after).await?)
            } else {
                None
            };
            let last = match question {
                Question::Claim(claim) if is_filtered => {
                    last_message(&api, claim.through, after, &filter).await
                }
                _ => None,
            };
            let next = match question {
                // Beyond its position the stream has messages, of which one may be for us.
                Question::Idle if info.state.last_seq > through => {
                    api.next_message(through + 1, &filter).await?
                }
                _ => None,
            };
            let is_for_others = match question {
                Question::Jump(jump) => are_for_others(&api, &info, jump, &own).await?,
                _ => false,
            };
            Ok(Box::new(View {
                info,
                holes,
                last,
                next: next.map(|stored| stored.sequence),
                is_for_others,
            }))
        });
        let asked = Instant::now();
        self.look = Some(Look {
            question,
            asked,
            through: cursor.through,
            answer,
        });
        self.looked_at = asked;
        self.looked_through = cursor.through;
    }

    /// Whether the consumer has delivered nothing for so long that the stream is asked whether it
    /// has anything for us. One that an operator paused, or whose server is mistaken about it,
    /// sends heartbeats all the same.
    fn is_idle(&self) -> bool {
        let (through, since) = self.idle;
        let interval = if self.waits_at == Some(through) {
            DELIVERY_MAX
        } else {
            IDLE_INTERVAL
        };
        // Both: it has had nothing for long, and was not asked just now.
        since.elapsed() >= IDLE_INTERVAL && self.idle_asked.elapsed() >= interval
    }

    /// Concludes from what the stream has for a reader that gets nothing; an error if the consumer
    /// does not deliver it.
    fn judge_idle(&mut self, next: Option<u64>, through: u64) -> Result<(), Failure> {
        // It has arrived in the meantime, or never existed.
        let Some(next) = next.filter(|next| *next > through) else {
            self.waits_at = None;
            return Ok(());
        };
        // The first time it gets a moment to deliver; only the second time counts.
        if self.waits_at.replace(through) != Some(through) {
            return Ok(());
        }
        let stream = &self.stream.name;
        Err(Trouble::lost(format!(
            "the consumer does not deliver message {next} of stream {stream}"
        ))
        .into())
    }

    /// Evaluates a check of the stream.
    fn judge(&mut self, look: &Look, view: View, cursor: &mut Cursor) -> Result<(), Failure> {
        let View {
            info,
            holes,
            last,
            next,
            is_for_others,
        } = view;
        let created_ns = info
            .created_ns()
            .map_err(|error| trouble(&self.api.stream, &error))?;
        if created_ns != self.stream.created_ns {
            return Err(Trouble::lost("the stream has another creation time").into());
        }
        // Its settings may have changed since it was opened.
        check_readable(&self.api.stream, &info.config).map_err(Failure::Stop)?;
        if self.is_edited || (self.is_filtered && removes_at_once(&info.config)) {
            self.is_edited = true;
            // What was read since the look may have gone after it.
            if look.through < cursor.through {
                return Ok(());
            }
            self.doubt_trusted(holes.as_ref(), cursor)?;
            if self.is_filtered {
                let reason = "the stream may now remove messages at once, so all of it is read";
                return Err(Trouble::lost(reason).into());
            }
            self.is_edited = false;
        }
        self.pull.trusted_mut().confirm(look.through);
        self.confirmed_at = Some(look.asked);
        cursor.head = cursor.head.max(info.state.last_seq);
        if let Some(holes) = holes {
            self.holes = holes;
        }
        match look.question {
            Question::Head => Ok(()),
            Question::Idle => self.judge_idle(next, cursor.through),
            Question::Jump(jump) => {
                // On failure the jump stays in question, so that nothing after it is ever returned.
                if self.is_filtered {
                    self.must_list(cursor.through)?;
                    self.count(cursor.through, cursor)?;
                } else if !is_for_others {
                    self.pass_gap(&info, jump.from, jump.to, cursor)?;
                }
                self.pull.clear_jump();
                Ok(())
            }
            Question::Claim(claim) if claim.through <= cursor.through => Ok(()),
            Question::Claim(claim) => {
                if let Some((skipped, true)) = last
                    .as_ref()
                    .filter(|(last, _)| last.sequence > cursor.through)
                {
                    // An operator may have edited it. The next one delivers what this one left out.
                    let what = format!(
                        "the consumer has passed message {} without delivering it",
                        skipped.sequence
                    );
                    return Err(Trouble::lost(what).into());
                }
                if claim.is_live {
                    self.warn_of_short_life(&info, cursor.through + 1);
                    self.count(claim.through, cursor)?;
                } else if self.is_filtered {
                    self.must_list(claim.through)?;
                    self.count(claim.through, cursor)?;
                } else {
                    self.pass_gap(&info, cursor.through + 1, claim.through, cursor)?;
                }
                cursor.through = claim.through;
                cursor.pending = 0;
                if let Some((last, _)) = last.filter(|(last, _)| last.sequence <= claim.through) {
                    cursor.pass_marked(last);
                }
                self.pull.caught_up();
                Ok(())
            }
        }
    }

    /// The stream may remove messages at once since its settings were changed: what the server did
    /// not send since the last look may have been removed, and not for others. What was returned
    /// without it lacks it, and is informed. An error if that is not accepted.
    fn doubt_trusted(&mut self, holes: Option<&Holes>, cursor: &mut Cursor) -> Result<(), Failure> {
        // Only once: what is found is counted, or stops the reader.
        let trusted = self.take_trusted();
        let Some(holes) = holes else {
            return Ok(());
        };
        let doubted = trusted.doubted(holes, &self.skips);
        let Some(missing) = doubted.missing() else {
            return Ok(());
        };
        let is_accepted = self.accepts_through >= missing.to;
        if !is_accepted {
            // The rest is missed when it is read again.
            cursor.roll_back_unreturned(missing.from - 1);
        }
        cursor.overlook(doubted.up_to(cursor.through));
        if !is_accepted {
            return Err(self.gap(missing));
        }
        warn!(
            stream = self.stream.name,
            "{missing} gone from the stream, whose settings were changed a moment ago; any of them \
             may have been for this deployment, and they are passed over, as accepted"
        );
        Ok(())
    }

    /// The subjects of which the stream is asked whether it has removed any, if a jump may have had
    /// messages for others only.
    fn own_patterns(&self, question: Question) -> Vec<Pattern> {
        let subjects = self.pull.subjects();
        let may_tell = matches!(question, Question::Jump(jump) if jump.is_recent)
            && self.reads_part
            && !self.is_filtered
            && !subjects.is_open()
            && subjects.patterns().len() <= PATTERNS_MAX;
        if may_tell {
            subjects.patterns().to_vec()
        } else {
            Vec::new()
        }
    }

    /// Counts what the stream lacks up to a sequence, unless it was delivered before it was
    /// removed; an error if that is not accepted. For a filtered reader.
    fn count(&mut self, through: u64, cursor: &mut Cursor) -> Result<(), Failure> {
        // An unfiltered reader sees each gap itself.
        if !self.is_filtered || through <= self.counted || !self.has_begun(cursor) {
            self.counted = self.counted.max(through);
            return Ok(());
        }
        let gone = self.holes.within(self.counted + 1, through);
        // What was delivered before it was removed is not missing.
        let gone = missing::undelivered(gone, cursor.sequences());
        let gone = missing::undelivered(gone.into_iter(), self.skips.iter().copied());
        if let Some(missing) = missing::refused(gone.iter().cloned(), self.accepts_through) {
            // Events after it must not be returned, even if they have arrived.
            cursor.roll_back(missing.from - 1);
            for range in gone.iter().filter(|range| *range.start() < missing.from) {
                cursor.miss(*range.start()..=(*range.end()).min(missing.from - 1));
            }
            return Err(self.gap(missing));
        }
        gone.into_iter().for_each(|range| cursor.miss(range));
        self.counted = through;
        Ok(())
    }

    /// An error if the stream lacks too much to be listed, and that is not accepted.
    fn must_list(&mut self, through: u64) -> Result<(), Failure> {
        // Logged once; the counts show the rest.
        if !self.holes.is_unlisted || self.accepts_through >= through {
            if self.holes.is_unlisted && !std::mem::replace(&mut self.has_logged_unlisted, true) {
                warn!(
                    stream = self.stream.name,
                    position = through,
                    "the stream lacks too many messages to be listed; those that may have been for \
                     this deployment are passed over uncounted, as accepted"
                );
            }
            return Ok(());
        }
        Err(self.gap(Missing {
            from: self.counted + 1,
            to: through,
            count: None,
        }))
    }

    /// Passes over sequences that an unfiltered reader did not get; an error if they are gone and
    /// that is not accepted.
    fn pass_gap(
        &self,
        info: &StreamInfo,
        from: u64,
        to: u64,
        cursor: &mut Cursor,
    ) -> Result<(), Failure> {
        // Checked now, not when the session started: a mirror may have been promoted since.
        if has_gaps_by_design(&info.config) {
            return Ok(());
        }
        // A reader that starts at the first available event does not miss events removed at the
        // front meanwhile.
        let from = if self.has_begun(cursor) {
            from
        } else {
            from.max(info.first())
        };
        if from > to {
            return Ok(());
        }
        let jump = std::iter::once(from..=to);
        let gone = missing::undelivered(jump, self.skips.iter().copied());
        // All or nothing of one jump.
        if let Some(missing) = missing::refused(gone.iter().cloned(), self.accepts_through) {
            return Err(self.gap(missing));
        }
        gone.into_iter().for_each(|range| cursor.miss(range));
        Ok(())
    }

    fn has_begun(&self, cursor: &Cursor) -> bool {
        self.is_anchored || cursor.position().is_some()
    }

    fn gap(&self, missing: Missing) -> Failure {
        Failure::Stop(Error::Gap {
            stream: self.stream.name.clone(),
            missing,
            whose: self.reads_part.into(),
        })
    }

    /// Warns once if the stream removes events that the server has just examined.
    fn warn_of_short_life(&mut self, info: &StreamInfo, from: u64) {
        if info.first() > from && !self.has_warned {
            self.has_warned = true;
            warn!(
                stream = self.stream.name,
                "the stream removes events within seconds, so a filtered reader that loses its \
                 connection may stop with source-gap; raise its max_age, max_msgs or max_bytes"
            );
        }
    }
}

/// Whether what a jump passed over had none of these subjects. What was stored just now goes only
/// for a newer message of its subject, unless it goes from the front or has a time of its own to
/// live: if the stream has no such message, none of these subjects has lost any.
async fn are_for_others(
    api: &Api,
    info: &StreamInfo,
    jump: Jump,
    own: &[Pattern],
) -> Result<bool, wire::Error> {
    let is_replaced_only =
        removes_at_once(&info.config) && info.first() < jump.from && !info.config.allow_msg_ttl;
    if own.is_empty() || !is_replaced_only {
        return Ok(false);
    }
    for pattern in own {
        if api
            .next_message(jump.from, pattern.as_str())
            .await?
            .is_some()
        {
            return Ok(false);
        }
    }
    // Asked after them: until then, nothing of what was passed over had gone from the front.
    Ok(api.stream_info().await?.first() < jump.from)
}

/// The mark of the last message up to a sequence, and whether the filter takes it: what was looked
/// through may have gone since. Best effort: without it, an earlier mark stays.
async fn last_message(
    api: &Api,
    through: u64,
    after: u64,
    filter: &str,
) -> Option<(EventMark, bool)> {
    let earliest = through.saturating_sub(LAST_TRIED).max(after);
    // From the end: the last message is usually there.
    for sequence in (earliest + 1..=through).rev() {
        match api.message(sequence).await {
            Ok(Some(stored)) => {
                let is_ours =
                    Pattern::parse(filter).is_ok_and(|filter| filter.matches(&stored.subject));
                return Some((proof::of_message(&stored), is_ours));
            }
            Ok(None) => {}
            Err(_) => return None,
        }
    }
    None
}
