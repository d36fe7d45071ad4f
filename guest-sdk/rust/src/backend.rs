//! The storage below the tables: the host's state, or a map in memory for tests.

use serde::Serialize;

#[cfg(not(target_arch = "wasm32"))]
use crate::effects::{Message, TimerChange};
use crate::event::Payload;
use crate::json;

/// The state of one projection, as in the contract.
pub(crate) trait Backend {
    /// Passes the value of a key to a closure.
    fn get(&self, key: &str, show: &mut dyn FnMut(Option<Payload<'_>>));

    /// Passes the values of many keys to a closure, with the index of each.
    fn get_many(&self, keys: &[String], show: &mut dyn FnMut(usize, Option<Payload<'_>>));

    /// Sets many keys, or deletes them.
    fn put_many(&self, writes: &Writes);

    /// Keeps messages that an event causes, given its index in the batch. In the sandbox only
    /// handlers name the host's function, so that a projection does not import it.
    #[cfg(not(target_arch = "wasm32"))]
    fn publish(&self, cause: u32, messages: Vec<Message>);

    /// Sets and cancels timers, in order.
    #[cfg(not(target_arch = "wasm32"))]
    fn change_timers(&self, changes: Vec<TimerChange>);

    /// Passes a page of entries to a closure, and returns whether there is more.
    fn scan(&self, request: &ScanRequest<'_>, show: &mut dyn FnMut(&str, Payload<'_>)) -> bool;
}

/// The selection and order of a scan.
#[derive(Debug)]
pub(crate) struct ScanRequest<'a> {
    pub(crate) selection: Selection<'a>,
    pub(crate) after: Option<&'a str>,
    pub(crate) backwards: bool,
    pub(crate) limit: u32,
}

/// The keys that a scan covers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Selection<'a> {
    Prefix(&'a str),
    Range(&'a str, &'a str),
}

/// The writes of a batch: all keys and values in one buffer, with their offsets.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    text: Vec<u8>,
    entries: Vec<Write>,
}

#[derive(Debug)]
struct Write {
    key: (u32, u32),
    value: Option<(u32, u32)>,
}

impl Writes {
    /// Adds a key in two pieces, with its value or its absence, and returns the length of the value
    /// as text.
    #[inline]
    pub(crate) fn push<V: Serialize>(
        &mut self,
        name: &[u8],
        key: &[u8],
        value: Option<&V>,
    ) -> Result<u32, serde_json::Error> {
        // Name and key in one piece, as the host wants them, and never as a string of their own.
        let start = self.text.len();
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(key);
        let middle = self.text.len();
        if let Some(value) = value {
            json::append(&mut self.text, value)?;
        }
        let end = self.text.len();
        // Four octets are enough for an offset: a 32-bit memory has no more.
        let value = value.map(|_| (middle as u32, end as u32));
        self.entries.push(Write {
            key: (start as u32, middle as u32),
            value,
        });
        Ok((end - middle) as u32)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.entries.clear();
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.entries.iter().map(|write| {
            (
                self.part(write.key),
                write.value.map(|value| self.part(value)),
            )
        })
    }

    fn part(&self, (start, end): (u32, u32)) -> &str {
        let octets = &self.text[start as usize..end as usize];
        // SAFETY: `push` wrote this part whole: a key of UTF-8 in two pieces, or what serde_json
        // wrote, which is UTF-8.
        unsafe { std::str::from_utf8_unchecked(octets) }
    }
}
