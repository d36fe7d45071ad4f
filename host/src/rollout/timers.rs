//! Timers of a handler that are pending, for people.

use super::{Error, Rollouts};
use crate::actor::blocking;
use crate::api;
use crate::source::Source;
use crate::state::Due;
use crate::state::catalogue::Record;
use crate::timestamp;

impl Rollouts {
    /// A page of the timers that are pending and durable, in the order in which they fire.
    pub async fn pending_timers(
        &self,
        name: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<api::PendingTimers, Error> {
        let deployment = self.deployment(name)?;
        // A projection has no tables of timers.
        if deployment.with_record(|record| record.handler.is_none()) {
            return Err(Error::Refused(format!(
                "{name} is a projection, which sets no timers"
            )));
        }
        let after = after.map(place_of).transpose()?;
        let store = deployment.active().store().ok_or_else(|| {
            Error::Conflict(format!("the state of {name} is not open; try again"))
        })?;
        let timers = blocking(move || {
            let snapshot = store.snapshot();
            let mut timers = Vec::new();
            let page = store.timers_after(after.as_ref(), limit)?;
            // A full page may have a successor; a short one is the last.
            let next = (page.len() == limit)
                .then(|| page.last().map(text_of))
                .flatten();
            for due in page {
                // One that was cancelled or replaced since the last commit is not there any more.
                let known = snapshot.timer(&due.name)?;
                timers.extend(known.filter(|timer| timer.at_ns == due.at_ns).map(|timer| {
                    api::PendingTimer {
                        at: timestamp::format_ns(timer.at_ns),
                        name: due.name,
                        set_by: timer.set_by,
                        key: timer.key,
                    }
                }));
            }
            Ok::<_, crate::state::Error>(api::PendingTimers { timers, next })
        });
        Ok(timers.await?)
    }
}

impl Rollouts {
    /// A warning if a handler sets timers, and its stream does not take their firings.
    pub(super) async fn no_firings_warning(
        &self,
        record: &Record,
        generation: u64,
    ) -> Option<String> {
        let generation = record.generation(generation)?;
        let source = self.inner.sources.get(&generation.source)?;
        let Source::JetStream(jetstream) = source else {
            return None;
        };
        if !generation.module.sets_timers {
            return None;
        }
        let subject = crate::timers::subject(&record.name);
        // A stream that is away was reported already.
        let stores = jetstream.publisher().stores(&subject).await.unwrap_or(true);
        let stream = jetstream.stream();
        (!stores).then(|| {
            format!(
                "stream {stream} does not take {subject}, so no timer of {} can fire; add it to the subjects of the stream: \
                 `nats stream edit {stream} --subjects '…,{}.>'`",
                record.name,
                crate::timers::SUBJECT_PREFIX
            )
        })
    }
}

/// Where a page ended, as text: the time in nanoseconds and the name.
fn text_of(due: &Due) -> String {
    format!("{}/{}", due.at_ns, due.name)
}

fn place_of(text: &str) -> Result<Due, Error> {
    let place = text.split_once('/').and_then(|(at, name)| {
        // The first slash: a time has none, and a name may have one.
        Some(Due {
            at_ns: at.parse().ok()?,
            name: name.to_owned(),
            // Only time and name are the place; the depth is not compared.
            depth: 0,
        })
    });
    place.ok_or_else(|| {
        Error::Refused(format!(
            "`{text}` is not from an earlier page; pass what the page before returned as `next`"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_continues_behind_any_name() {
        let due = Due {
            at_ns: u64::MAX,
            name: "a/b ü/".to_owned(),
            depth: 0,
        };
        assert_eq!(place_of(&text_of(&due)).ok(), Some(due));
        assert!(place_of("a/b").is_err() && place_of("7").is_err());
    }
}
