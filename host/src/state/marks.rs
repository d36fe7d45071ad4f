//! Marks: places in the streams of targets, up to which it is known what of a handler is stored.

use serde::{Deserialize, Serialize};

/// A place in the stream of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredMark", into = "StoredMark")]
pub struct Mark {
    /// A sequence.
    pub sequence: u64,
    /// When the stream was created, in nanoseconds since the Unix epoch; none in a mark of an
    /// earlier release, or of an embedded log.
    pub created_ns: Option<u64>,
    /// The highest sequence that the stream has confirmed, if the place itself lies before it: the
    /// stream may have lost its end.
    pub confirmed: u64,
    /// It has, and nobody has accepted that yet.
    pub has_lost: bool,
    /// Whether the stream has messages under the subjects to which they were sent; an account may map
    /// them. None before one was looked at.
    pub keeps_subjects: Option<bool>,
    /// The longest time that a message has waited for its confirmation, in whole seconds, whichever
    /// stream the target was then.
    pub longest_wait_s: u64,
}

/// The form of a mark in the file. Earlier releases stored the sequence alone, or without what is
/// optional here; they read it still.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredMark {
    Sequence(u64),
    Of {
        sequence: u64,
        /// 0 if that is not known.
        created: u64,
        #[serde(default, skip_serializing_if = "is_zero")]
        confirmed: u64,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        lost: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keeps_subjects: Option<bool>,
        #[serde(default, skip_serializing_if = "is_zero")]
        longest_wait: u64,
    },
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl From<StoredMark> for Mark {
    fn from(stored: StoredMark) -> Self {
        match stored {
            StoredMark::Sequence(sequence) => Self::at(sequence, None),
            StoredMark::Of {
                sequence,
                created,
                confirmed,
                lost,
                keeps_subjects,
                longest_wait,
            } => Self {
                sequence,
                created_ns: Some(created).filter(|created| *created > 0),
                confirmed,
                has_lost: lost,
                keeps_subjects,
                longest_wait_s: longest_wait,
            },
        }
    }
}

impl From<Mark> for StoredMark {
    fn from(mark: Mark) -> Self {
        let Mark {
            sequence,
            created_ns,
            confirmed,
            has_lost,
            keeps_subjects,
            longest_wait_s,
        } = mark;
        let is_plain =
            confirmed == 0 && !has_lost && keeps_subjects.is_none() && longest_wait_s == 0;
        if created_ns.is_none() && is_plain {
            return Self::Sequence(sequence);
        }
        Self::Of {
            sequence,
            created: created_ns.unwrap_or(0),
            confirmed,
            lost: has_lost,
            keeps_subjects,
            longest_wait: longest_wait_s,
        }
    }
}

impl Mark {
    /// A place in a stream.
    pub fn at(sequence: u64, created_ns: Option<u64>) -> Self {
        Self {
            sequence,
            created_ns,
            ..Self::default()
        }
    }

    /// Up to where nothing is in doubt in a stream with this creation time. In one with another,
    /// everything is: it may be another stream of the same name.
    pub fn within(self, created_ns: Option<u64>) -> u64 {
        if self.is_within(created_ns) {
            self.sequence
        } else {
            0
        }
    }

    /// Whether it may be a place in a stream with this creation time.
    pub fn is_within(self, created_ns: Option<u64>) -> bool {
        let is_other = |(ours, theirs)| ours != theirs;
        !self.created_ns.zip(created_ns).is_some_and(is_other)
    }

    /// The highest sequence that the stream has confirmed.
    pub fn highest(self) -> u64 {
        self.sequence.max(self.confirmed)
    }

    /// The same place, with what the one before knew of the stream, and of how long messages waited.
    pub(super) fn following(mut self, before: Option<Self>) -> Self {
        let waited = before.map_or(0, |before| before.longest_wait_s);
        self.longest_wait_s = self.longest_wait_s.max(waited);
        // Also of a stream that was made again: what it had is gone.
        self.has_lost |= before.is_some_and(|before| before.has_lost);
        let Some(before) = before.filter(|before| before.is_within(self.created_ns)) else {
            return self;
        };
        let confirmed = before.sequence.max(before.confirmed).max(self.confirmed);
        Self {
            confirmed: if confirmed > self.sequence {
                confirmed
            } else {
                0
            },
            // Once mapped, some messages have other subjects, whatever comes later.
            keeps_subjects: match (before.keeps_subjects, self.keeps_subjects) {
                (Some(false), _) => Some(false),
                (before, own) => own.or(before),
            },
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_of_an_earlier_release_is_read_and_one_of_another_stream_leaves_all_in_doubt() {
        let read = |json: &str| serde_json::from_str::<Mark>(json).expect("it is a mark");
        let (old, new) = (read("7"), read(r#"{"sequence":7,"created":5}"#));
        let lost = Mark {
            confirmed: 9,
            has_lost: true,
            ..Mark::at(7, None)
        };
        let mapped = Mark {
            keeps_subjects: Some(false),
            ..Mark::at(7, None)
        };
        let same = Mark {
            keeps_subjects: Some(true),
            ..mapped
        };
        let slow = Mark {
            longest_wait_s: 9,
            ..Mark::at(7, None)
        };
        for (before, next, wanted) in [
            (mapped, new, Some(false)),
            (mapped, same, Some(false)),
            (same, mapped, Some(false)),
            (same, new, Some(true)),
        ] {
            assert_eq!(next.following(Some(before)).keeps_subjects, wanted);
        }
        assert_eq!([lost, new].map(Mark::highest), [9, 7]);
        assert_eq!(
            Mark::at(8, Some(5)).following(Some(Mark { ..lost })),
            Mark {
                sequence: 8,
                created_ns: Some(5),
                ..lost
            }
        );
        assert_eq!(Mark::at(9, None).following(Some(new)), Mark::at(9, None));
        let other = Mark::at(1, Some(6));
        assert_eq!(other.following(Some(new)), other, "another stream");
        let lost_of_former = Mark {
            has_lost: true,
            ..new
        };
        assert!(other.following(Some(lost_of_former)).has_lost);
        assert_eq!([old, new].map(|mark| mark.within(Some(5))), [7, 7]);
        assert_eq!([old, new].map(|mark| mark.within(Some(6))), [7, 0]);
        assert_eq!(new.within(None), 7, "the server does not say");
        for next in [new, other, Mark::at(8, None)] {
            assert_eq!(next.following(Some(slow)).longest_wait_s, 9, "{next:?}");
        }
        for mark in [old, new, lost, mapped, same, slow] {
            let json = serde_json::to_string(&mark).expect("plain data");
            assert_eq!(read(&json), mark, "{json}");
        }
    }
}
