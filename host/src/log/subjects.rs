//! The last sequence of each subject, for appends that expect one.
//!
//! A tree access per event would cost more than the rest of an append, so new
//! sequences gather in memory and go into the tree in sorted runs, a few with
//! each commit. Entries that are not in the tree when the process ends are read
//! again from the log: `indexed_through` says from where.

use std::collections::BTreeMap;

use redb::{ReadableTable, Table};

use super::file::Failure;
use crate::subject::Pattern;

/// Subjects that gather before a run begins: each takes about 100 bytes of memory, and a run of
/// this length meets most leaves of a large tree more than once.
const GATHER_SUBJECTS_MAX: usize = 65_536;
/// Events after which a run begins in any case: at most this many are read again when the log is
/// opened, in under a second.
const GATHER_EVENTS_MAX: u64 = 262_144;
/// Entries that go into the tree with each commit, in addition to four for each of its events.
const DRAIN_MIN: usize = 64;
/// Most subjects that a pattern may cover: reading them takes some 30 ms, and appends wait
/// meanwhile.
pub(super) const COVERED_MAX: usize = 100_000;

/// A pattern covers more than [`COVERED_MAX`] subjects.
#[derive(Debug)]
pub(super) struct TooMany;

/// Entries that are not in the tree yet.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    gathering: BTreeMap<Box<str>, u64>,
    /// The run that is going into the tree, and the last sequence that the tree knows when it is
    /// complete.
    draining: BTreeMap<Box<str>, u64>,
    draining_through: u64,
    indexed_through: u64,
}

impl Subjects {
    /// The tree is complete up to this sequence.
    pub(super) fn new(indexed_through: u64) -> Self {
        Self {
            indexed_through,
            ..Self::default()
        }
    }

    /// Remembers the last event under a subject.
    pub(super) fn insert(&mut self, subject: &str, sequence: u64) {
        match self.gathering.get_mut(subject) {
            Some(last) => *last = sequence,
            None => {
                self.gathering.insert(subject.into(), sequence);
            }
        }
    }

    /// The last sequence under a pattern among the events from `first` on, 0 without any.
    pub(super) fn last<T>(
        &self,
        pattern: &Pattern,
        first: u64,
        tree: &T,
    ) -> Result<Result<u64, TooMany>, Failure>
    where
        T: ReadableTable<&'static str, u64>,
    {
        let prefix = literal_prefix(pattern.as_str());
        let mut last = 0;
        // Without a wildcard one look at each of the three places is enough.
        if prefix.len() == pattern.as_str().len() {
            last = tree.get(prefix)?.map_or(0, |value| value.value());
            for memory in [&self.gathering, &self.draining] {
                last = last.max(memory.get(prefix).copied().unwrap_or(0));
            }
            // Its last event may have been removed by retention since it was indexed.
            return Ok(Ok(if last < first { 0 } else { last }));
        }
        let mut covered = 0;
        for entry in tree.range(prefix..)? {
            // The range ends where the prefix does.
            let (subject, sequence) = entry?;
            if !subject.value().starts_with(prefix) {
                break;
            }
            covered += 1;
            if covered > COVERED_MAX {
                return Ok(Err(TooMany));
            }
            if sequence.value() > last && pattern.matches(subject.value()) {
                last = sequence.value();
            }
        }
        for memory in [&self.gathering, &self.draining] {
            let from = memory.range::<str, _>((
                std::ops::Bound::Included(prefix),
                std::ops::Bound::Unbounded,
            ));
            for (subject, sequence) in from.take_while(|(subject, _)| subject.starts_with(prefix)) {
                // The tree may have an older sequence of the same subject.
                if *sequence > last && pattern.matches(subject) {
                    last = *sequence;
                }
            }
        }
        Ok(Ok(if last < first { 0 } else { last }))
    }

    /// Whether the next commit has entries for the tree.
    pub(super) fn is_due(&self, last_sequence: u64) -> bool {
        !self.draining.is_empty()
            || self.gathering.len() >= GATHER_SUBJECTS_MAX
            || last_sequence - self.indexed_through >= GATHER_EVENTS_MAX
    }

    /// Puts some entries into the tree, after an append of this many events; returns how far the
    /// tree is then complete, if that changed.
    pub(super) fn drain(
        &mut self,
        tree: &mut Table<'_, &'static str, u64>,
        events: usize,
        last_sequence: u64,
    ) -> Result<Option<u64>, Failure> {
        // The run before is complete: what has gathered since is the next one.
        if self.draining.is_empty() {
            self.draining = std::mem::take(&mut self.gathering);
            self.draining_through = last_sequence;
        }
        // In order, so that neighbours share the pages that a commit writes.
        for _ in 0..DRAIN_MIN + 4 * events {
            let Some((subject, sequence)) = self.draining.pop_first() else {
                break;
            };
            tree.insert(&*subject, sequence)?;
        }
        if self.draining.is_empty() {
            self.indexed_through = self.draining_through;
            return Ok(Some(self.indexed_through));
        }
        Ok(None)
    }

    /// Forgets a subject whose last event may have been removed, if it has no event from `first`
    /// on.
    pub(super) fn forget(
        &mut self,
        subject: &str,
        first: u64,
        tree: &mut Table<'_, &'static str, u64>,
    ) -> Result<(), Failure> {
        // A later event keeps it.
        for memory in [&mut self.gathering, &mut self.draining] {
            if memory.get(subject).is_some_and(|last| *last < first) {
                memory.remove(subject);
            }
        }
        let stored = tree.get(subject)?.map(|value| value.value());
        if stored.is_some_and(|last| last < first) {
            tree.remove(subject)?;
        }
        Ok(())
    }
}

/// The literal prefix of the subjects that a pattern matches: the tokens before its first wildcard.
fn literal_prefix(pattern: &str) -> &str {
    let mut length = 0;
    for token in pattern.split_inclusive('.') {
        // The dot belongs to the prefix: `a.*` must not cover `ab`.
        if matches!(token.trim_end_matches('.'), "*" | ">") {
            break;
        }
        length += token.len();
    }
    &pattern[..length]
}

#[cfg(test)]
mod tests {
    use super::literal_prefix;

    #[test]
    fn literal_prefix_ends_before_the_first_wildcard() {
        for (pattern, prefix) in [
            ("a.b", "a.b"),
            ("a.b.>", "a.b."),
            ("a.*.c", "a."),
            (">", ""),
            ("*", ""),
            ("a>b.c", "a>b.c"),
        ] {
            assert_eq!(literal_prefix(pattern), prefix);
        }
    }
}
