//! What a stream removes by itself, and what is published to it meanwhile.

use std::time::Duration;

use async_nats::jetstream::stream;
use foldstream_tests::nats;

/// The name of the stream.
pub const STREAM: &str = "LEAKY";

/// The subjects of the witnesses, of nobody, and of the bystander.
const SUBJECTS: [&str; 3] = ["mine.>", "theirs.>", "calm.>"];

/// What a stream removes by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Removal {
    /// Nothing.
    #[default]
    Nothing,
    /// All but the last messages.
    Few(i64),
    /// All but the last message of each subject.
    OnePerSubject,
    /// What a message tells it to.
    RollUps,
    /// What is older than this.
    Old(Duration),
}

impl Removal {
    fn draw(random: &mut fastrand::Rng) -> Self {
        match random.u8(..8) {
            0..2 => Self::Few(random.i64(1..100)),
            2..5 => Self::OnePerSubject,
            5 => Self::RollUps,
            _ => Self::Old(Duration::from_millis(random.u64(200..3_000))),
        }
    }

    /// Those of a stream from its creation on: readers of one that removes nothing get only what
    /// they want, until its settings are edited.
    pub fn draw_first(random: &mut fastrand::Rng) -> Self {
        if random.bool() {
            Self::Nothing
        } else {
            Self::draw(random)
        }
    }

    /// Those that take the place of these, if they are edited.
    pub fn draw_next(self, random: &mut fastrand::Rng) -> Option<Self> {
        match random.u8(..6) {
            0..5 if self == Self::Nothing => Some(Self::draw(random)),
            0 => Some(Self::Nothing),
            1..=3 => Some(Self::draw(random)),
            _ => None,
        }
    }

    /// Whether events may go before a reader that has everything else gets them. Of other streams,
    /// a reader gets only what it wants.
    pub fn is_at_once(self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Few(_) | Self::OnePerSubject | Self::RollUps => true,
            Self::Old(age) => age < Duration::from_secs(2),
        }
    }

    pub fn config(self) -> stream::Config {
        let config = stream::Config {
            subjects: SUBJECTS.map(str::to_owned).to_vec(),
            discard: stream::DiscardPolicy::Old,
            // No longer than the shortest age: the server demands it.
            duplicate_window: Duration::from_millis(100),
            ..nats::stream_config(STREAM, SUBJECTS[0])
        };
        match self {
            Self::Nothing => config,
            Self::Few(max_messages) => stream::Config {
                max_messages,
                ..config
            },
            Self::OnePerSubject => stream::Config {
                max_messages_per_subject: 1,
                ..config
            },
            Self::RollUps => stream::Config {
                allow_rollup: true,
                ..config
            },
            Self::Old(max_age) => stream::Config { max_age, ..config },
        }
    }
}

/// What a turn publishes.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Groups of messages, each sent in one write.
    pub groups: usize,
    /// Messages in each of them.
    pub size: usize,
    /// One in this many is for others; 0 for none.
    pub theirs: usize,
    /// The subjects of each side.
    pub subjects: usize,
    /// Time between two groups.
    pub pause: Duration,
}

impl Traffic {
    /// `in_pairs` lets messages of one subject follow each other at once, and few at a time.
    pub fn draw(random: &mut fastrand::Rng, in_pairs: bool) -> Self {
        let is_burst = random.u8(..4) < if in_pairs { 1 } else { 2 };
        Self {
            groups: if is_burst { 1 } else { random.usize(20..80) },
            size: if is_burst {
                random.usize(50..1_500)
            } else {
                random.usize(if in_pairs { 2..5 } else { 1..4 })
            },
            theirs: [0, 2, 3, 50][random.usize(..4)],
            subjects: if in_pairs {
                1
            } else {
                [1, 4, 50][random.usize(..3)]
            },
            pause: Duration::from_millis(random.u64(1..25)),
        }
    }
}
