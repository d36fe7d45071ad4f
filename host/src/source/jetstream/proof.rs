//! The proof that a stream is the one to which a position belongs.
//!
//! The proof is what was read from it: the last event that was applied, some before it, and the
//! last message that was seen. Its name and its creation time are only hints. Servers change the
//! creation time of a healthy stream (a restart after its settings were changed, an idempotent
//! create), and a mirror or a restored stream may take the place of another.

use tracing::warn;

use super::link::{Link, Trouble};
use super::open::{Failure, Standing, identity, trouble};
use super::pull::BUFFER_KEPT;
use super::rescue;
use super::wire::{self, Api, Stored, StreamInfo};
use crate::cloudevents::Recognition;
use crate::cloudevents::message::Reading;
use crate::event::Headers;
use crate::memory::read_ahead::{Large, RequestShare};
use crate::position::{Checkpoint, EventMark, StreamIdentity};
use crate::source::Error;

/// Whether anything that was read before was found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    Found,
    /// What was read is no longer there, or nothing was read.
    Unseen,
}

/// Compares a stream with our position in it; an error unless we may continue. Returns the memory of
/// a large message that was fetched for that: the client of the connection keeps a buffer of its size.
pub(super) async fn prove(
    link: &mut Link,
    api: &Api,
    info: &StreamInfo,
    standing: &Standing,
) -> Result<Option<Large>, Failure> {
    // A state to which nothing was applied, and that has seen nothing, belongs to no history yet.
    let has_seen = standing.seen.is_some() || standing.mark.is_some();
    let Some(position) = standing
        .position
        .filter(|position| *position > 0 || has_seen)
    else {
        return Ok(None);
    };
    let stream = &*identity(api, info)?;
    let mut stored_in = In {
        link,
        api,
        info,
        share: standing.share.as_deref(),
        memory: None,
    };
    let mut proof = Proof::Unseen;
    if let Some(mark) = &standing.seen {
        // The first message of a state to which nothing was applied was read as an event.
        let is_same = |stored: &Stored| of_message(stored) == *mark || is_event(mark, stored);
        proof = stored_in.compare(mark, is_same).await?;
    }
    if let Some(mark) = &standing.mark
        && stored_in
            .compare(mark, |stored| is_event(mark, stored))
            .await?
            == Proof::Found
    {
        proof = Proof::Found;
    }
    // A mark that differs has ended this above; here only name and creation time do.
    if let Some(expected) = standing
        .stream
        .as_deref()
        .filter(|expected| *expected != stream)
    {
        if proof == Proof::Unseen {
            proof = stored_in.find_earlier(standing).await?;
        }
        // Everything that was read is gone, and nothing else: the next message is the next one for
        // us.
        let mut marked = [&standing.seen, &standing.mark].into_iter().flatten();
        let continues = expected.name == stream.name
            && info.first() == position + 1
            && marked.all(|mark| mark.sequence <= position);
        if proof == Proof::Unseen && !continues {
            return Err(Failure::Stop(another(expected, stream, info)));
        }
        warn!(
            stream = stream.name,
            created = info.created,
            before = expected.name,
            position,
            "the stream has another name or creation time than before, but still has what was read \
             from it, or continues right behind it, so it is the same stream"
        );
    }
    // Positions of a proved stream can be compared.
    let last = info.state.last_seq;
    if position > last {
        return Err(Failure::Stop(Error::Truncated {
            stream: stream.name.clone(),
            last,
            position,
        }));
    }
    Ok(stored_in.memory)
}

/// The stream in which messages are looked for.
struct In<'a> {
    link: &'a mut Link,
    api: &'a Api,
    info: &'a StreamInfo,
    /// Whose memory a message takes.
    share: Option<&'a RequestShare>,
    /// The memory of a large one that was fetched. There is never more than one at a time.
    memory: Option<Large>,
}

/// Why a stream is not the one to which a checkpoint belongs, if it is not. A tail that was lost
/// contradicts nothing.
pub(super) async fn contradiction(
    link: &mut Link,
    api: &Api,
    checkpoint: &Checkpoint,
) -> Result<Option<Error>, Trouble> {
    let unknown = |error: wire::Error| trouble(&api.stream, &error);
    let info = link.permitted(api.stream_info()).await?.map_err(unknown)?;
    match prove(link, api, &info, &Standing::at(checkpoint)).await {
        // A lost tail is another problem, with another remedy.
        Ok(_) | Err(Failure::Stop(Error::Truncated { .. })) => Ok(None),
        Err(Failure::Stop(error)) => Ok(Some(error)),
        Err(Failure::Trouble(trouble)) => Err(trouble),
    }
}

impl In<'_> {
    /// Looks for what was read before the last event, which may have been removed since.
    async fn find_earlier(&mut self, standing: &Standing) -> Result<Proof, Failure> {
        for mark in standing.earlier.latest_first() {
            let is_same = |stored: &Stored| is_event(mark, stored);
            if self.compare(mark, is_same).await? == Proof::Found {
                return Ok(Proof::Found);
            }
        }
        Ok(Proof::Unseen)
    }

    /// Checks whether a stream has what was read, in its place.
    async fn compare(
        &mut self,
        mark: &EventMark,
        is_same: impl FnOnce(&Stored) -> bool,
    ) -> Result<Proof, Failure> {
        let Self {
            link, api, info, ..
        } = self;
        // Removed since, or lost with the tail: nothing can be compared.
        if mark.sequence < info.first() || mark.sequence > info.state.last_seq {
            return Ok(Proof::Unseen);
        }
        // Its size is not known, but it is one of the stream.
        let most = (link.client().server_info().max_payload as u64).min(info.state.bytes);
        if let (Some(share), None) = (self.share, &self.memory) {
            self.memory = Some(share.large(most).await);
        }
        let found = link
            .permitted(api.message(mark.sequence))
            .await?
            .map_err(|error| trouble(&api.stream, &error))?;
        if found
            .as_ref()
            .is_none_or(|stored| stored.data.len() <= BUFFER_KEPT)
        {
            self.memory = None;
        }
        match found {
            None => Ok(Proof::Unseen),
            Some(stored) if is_same(&stored) => Ok(Proof::Found),
            Some(_) => Err(Failure::Stop(Error::Diverged(format!(
                "message {} of stream {} is not the one that was read before; the stream's history \
                 was replaced: restore it, or delete and deploy again to build from the remaining \
                 events",
                mark.sequence, api.stream
            )))),
        }
    }
}

/// The error for a stream that cannot be proved to be the one that was read.
fn another(expected: &StreamIdentity, stream: &StreamIdentity, info: &StreamInfo) -> Error {
    if expected.name != stream.name {
        return Error::Diverged(format!(
            "the state was built from stream {}, the source is stream {}, and nothing that was \
             read is in it; correct `stream`, or delete and deploy again to build from {}",
            expected.name, stream.name, stream.name
        ));
    }
    Error::Diverged(format!(
        "stream {} was created again at {}, and nothing that was read before is in it, so the \
         state belongs to a history that is gone; restore the stream from a backup, or delete and \
         deploy again to build from the remaining events",
        stream.name, info.created
    ))
}

/// The mark of a stored message.
pub(super) fn of_message(stored: &Stored) -> EventMark {
    EventMark::of_message(
        stored.sequence,
        stored.time_ns,
        stored.subject.as_bytes(),
        &stored.data,
    )
}

/// Whether a message is the event of a mark, no matter how the source was configured to read
/// CloudEvents at that time.
fn is_event(mark: &EventMark, stored: &Stored) -> bool {
    [Recognition::Auto, Recognition::Off]
        .into_iter()
        .any(|recognition| {
            let reading = Reading {
                recognition,
                headers: Headers::Left,
            };
            EventMark::of(&rescue::into_event(stored, None, reading)) == *mark
        })
}
