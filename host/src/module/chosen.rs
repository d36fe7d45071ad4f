//! The events of one call: all of a slice, or some of them, which are not copied for that.

use crate::event::Event;

/// The events of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen<'a> {
    events: &'a [Event],
    /// The indices of the chosen events, in order; none is all.
    picked: Option<&'a [u32]>,
}

impl<'a> Chosen<'a> {
    pub(super) fn all(events: &'a [Event]) -> Self {
        Self {
            events,
            picked: None,
        }
    }

    pub(super) fn picked(events: &'a [Event], picked: &'a [u32]) -> Self {
        Self {
            events,
            picked: Some(picked),
        }
    }

    pub(super) fn whole(self) -> &'a [Event] {
        self.events
    }

    pub(super) fn len(self) -> usize {
        self.picked.map_or(self.events.len(), <[u32]>::len)
    }

    pub(super) fn last(self) -> Option<&'a Event> {
        match self.picked {
            Some(picked) => picked.last().map(|index| &self.events[*index as usize]),
            None => self.events.last(),
        }
    }

    pub(super) fn iter(self) -> impl Iterator<Item = &'a Event> {
        (0..self.len()).map(move |place| match self.picked {
            Some(picked) => &self.events[picked[place] as usize],
            None => &self.events[place],
        })
    }
}
