//! Reads events of a stream for people, without a consumer, so that nothing of it stays on the
//! server.
//!
//! Messages are fetched one by one from the leader in a form that the client can always parse, so
//! that a message that breaks client readers is shown like any other. A page is limited in events,
//! bytes and time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::connect::Settings;
use super::link::{Link, Trouble};
use super::open::trouble;
use super::rescue;
use super::wire::{self, Api, Stored};
use crate::cloudevents::Recognition;
use crate::cloudevents::message::Reading;
use crate::event::{Event, Headers};
use crate::source::{LookError, Page, Wanted};

/// Longest time for a page. When it is over, the page ends with what it has.
const LOOK_MAX: Duration = Duration::from_secs(3);
/// The type of the placeholder for a message that can't be read.
const UNREADABLE: &str = "unreadable";
/// Messages requested at once if all subjects are wanted.
const AT_ONCE: u64 = 16;

/// The connection for reading events; opened on demand, and kept.
#[derive(Debug, Default)]
pub(super) struct Looks {
    link: Mutex<Option<Link>>,
}

impl Looks {
    /// One event; if it does not exist, the last sequence of the stream.
    pub(super) async fn event(
        &self,
        settings: &Arc<Settings>,
        sequence: u64,
    ) -> Result<Result<Event, u64>, LookError> {
        within_time(async {
            let Looked {
                mut link,
                api,
                recognition,
            } = self.open(settings).await?;
            match permitted(&mut link, &api, api.message(sequence)).await? {
                Ok(Some(stored)) => Ok(Ok(event(&stored, recognition))),
                // No such event: whether it is gone or yet to come shows from the end of the
                // stream.
                Ok(None) => Ok(Err(head(&mut link, &api).await?)),
                Err((_, reason)) => Err(Trouble::lost(reason)),
            }
        })
        .await
    }

    /// A page of events.
    pub(super) async fn page(
        &self,
        settings: &Arc<Settings>,
        wanted: &Wanted,
    ) -> Result<Page, LookError> {
        within_time(async {
            let mut looked = self.open(settings).await?;
            let head = head(&mut looked.link, &looked.api).await?;
            let mut page = Page {
                events: Vec::new(),
                through: wanted.after.min(head),
                head,
            };
            // Half of it, so that the last message still has time to arrive.
            let until = Instant::now() + LOOK_MAX / 2;
            let mut bytes = 0;
            while page.through < head
                && page.events.len() < wanted.limit
                && bytes < wanted.bytes_max
            {
                let more = looked.next(wanted, &mut page).await?;
                bytes += more.iter().map(Event::size).sum::<usize>();
                page.events.extend(more);
                if Instant::now() >= until {
                    break;
                }
            }
            Ok(page)
        })
        .await
    }

    async fn open(&self, settings: &Arc<Settings>) -> Result<Looked, Trouble> {
        let mut slot = self.link.lock().await;
        let link = match slot.take() {
            Some(link) if link.is_up() => link,
            _ => Box::pin(Link::connect(settings)).await?,
        };
        // Kept, because people page.
        *slot = Some(link.clone());
        let (client, prefix) = (link.client().clone(), settings.api_prefix.clone());
        let api = Api {
            client,
            prefix,
            stream: settings.stream.clone(),
        };
        Ok(Looked {
            link,
            api,
            recognition: settings.recognition,
        })
    }
}

/// The stream in which events are looked at.
struct Looked {
    link: Link,
    api: Api,
    recognition: Recognition,
}

impl Looked {
    /// The next item of a page, which advances past it.
    async fn next(&mut self, wanted: &Wanted, page: &mut Page) -> Result<Vec<Event>, Trouble> {
        let (link, api, recognition) = (&mut self.link, &self.api, self.recognition);
        let from = page.through + 1;
        if let Some(subjects) = &wanted.subjects {
            // With subjects the server skips what does not match, however much that is.
            let covering = subjects.covering();
            let fetched = permitted(link, api, api.next_message(from, covering.as_str())).await?;
            let found = readable(from, fetched, recognition);
            page.through = through(page.head, found.as_ref());
            let is_wanted =
                |event: &Event| &*event.kind == UNREADABLE || subjects.matches(&event.subject);
            let event = found.and_then(|found| found.event);
            return Ok(event.into_iter().filter(is_wanted).collect());
        }
        let room = u64::try_from(wanted.limit - page.events.len()).unwrap_or(u64::MAX);
        // Several at once: each costs a round trip.
        let to = page.head.min(page.through + AT_ONCE.min(room));
        let fetch = async {
            futures_util::future::join_all((from..=to).map(|sequence| api.message(sequence))).await
        };
        let fetched = link.permitted(fetch).await?;
        let mut found = Vec::new();
        for (sequence, answer) in (from..=to).zip(fetched) {
            let message = readable(sequence, known(api, answer)?, recognition);
            found.extend(message.and_then(|found| found.event));
        }
        page.through = to;
        if found.is_empty() && to < page.head {
            // Many may have been removed at once.
            let fetched = permitted(link, api, api.next_message(to + 1, ">")).await?;
            let later = readable(to + 1, fetched, recognition);
            page.through = through(page.head, later.as_ref());
            found.extend(later.and_then(|found| found.event));
        }
        Ok(found)
    }
}

/// Up to where a page has come with the next message that matches. Without one, everything was
/// looked at.
fn through(head: u64, found: Option<&Found>) -> u64 {
    found.map_or(head, |found| found.sequence).min(head)
}

/// A message of the stream.
struct Found {
    sequence: u64,
    /// None if it is the broker's own, such as a delete marker: readers pass over these, too.
    event: Option<Event>,
}

/// The result of a fetch: a message, none, or a message that can't be read, with its sequence, if
/// known, and the reason.
type Fetched = Result<Option<Stored>, (Option<u64>, String)>;

async fn permitted(
    link: &mut Link,
    api: &Api,
    call: impl Future<Output = Result<Option<Stored>, wire::Error>>,
) -> Result<Fetched, Trouble> {
    known(api, link.permitted(call).await?)
}

fn known(api: &Api, answer: Result<Option<Stored>, wire::Error>) -> Result<Fetched, Trouble> {
    match answer {
        Ok(found) => Ok(Ok(found)),
        Err(wire::Error::Unreadable { sequence, reason }) => Ok(Err((sequence, reason))),
        Err(error) => Err(trouble(&api.stream, &error)),
    }
}

/// A fetched message as an event; one that can't be read says so in its data.
fn readable(sequence: u64, fetched: Fetched, recognition: Recognition) -> Option<Found> {
    match fetched {
        Ok(stored) => stored.map(|stored| Found {
            sequence: stored.sequence,
            event: (!rescue::is_bookkeeping(&stored)).then(|| event(&stored, recognition)),
        }),
        Err((named, reason)) => {
            let sequence = named.unwrap_or(sequence);
            let placeholder = Event {
                sequence,
                time_ns: 0,
                subject: "".into(),
                kind: UNREADABLE.into(),
                headers: Vec::new(),
                data: reason.into(),
            };
            Some(Found {
                sequence,
                event: Some(placeholder),
            })
        }
    }
}

fn event(stored: &Stored, recognition: Recognition) -> Event {
    let fault = rescue::fault(stored);
    rescue::into_event(
        stored,
        fault.as_deref(),
        Reading {
            recognition,
            headers: Headers::Wanted,
        },
    )
}

async fn head(link: &mut Link, api: &Api) -> Result<u64, Trouble> {
    let info = link
        .permitted(api.stream_info())
        .await?
        .map_err(|error| trouble(&api.stream, &error))?;
    Ok(info.state.last_seq)
}

async fn within_time<T>(look: impl Future<Output = Result<T, Trouble>>) -> Result<T, LookError> {
    match tokio::time::timeout(LOOK_MAX, look).await {
        Ok(looked) => looked.map_err(|trouble| LookError::Away(trouble.message)),
        Err(_) => Err(LookError::Late(LOOK_MAX)),
    }
}
