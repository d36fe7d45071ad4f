//! How safe publishing to a stream is, and from which event on a handler publishes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How safe publishing to a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Promise {
    /// Each message is stored exactly once: with the messages, the target stores how far the
    /// handler has come.
    Exact,
    /// Each message is stored exactly once as long as one host publishes: after a crash or a lost
    /// confirmation, the host first reads what the stream has stored.
    ReadBack,
    /// Each message is stored at least once, and once if its confirmation, or the end of a crash,
    /// comes within the window in which the stream recognises ids.
    Window,
    /// The stream lacks messages that it had confirmed: it has lost its end, or somebody has removed
    /// them. They are not sent again. It says so until an operator accepts it.
    Lost,
}

impl Promise {
    /// All of them, for metrics.
    pub const ALL: [Self; 4] = [Self::Exact, Self::ReadBack, Self::Window, Self::Lost];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::ReadBack => "read-back",
            Self::Window => "window",
            Self::Lost => "lost",
        }
    }
}

/// From which event on a new handler publishes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EffectsFrom {
    /// The first event that is appended after the deploy.
    #[default]
    Now,
    /// The first event of the stream.
    Beginning,
    /// This sequence.
    Sequence(u64),
}

/// A text that names no first event.
#[derive(Debug, thiserror::Error)]
#[error("effects-from `{0}` is refused; give `now`, `beginning` or a sequence")]
pub struct InvalidEffectsFrom(String);

impl std::str::FromStr for EffectsFrom {
    type Err = InvalidEffectsFrom;

    fn from_str(text: &str) -> Result<Self, InvalidEffectsFrom> {
        match text {
            "now" => Ok(Self::Now),
            "beginning" => Ok(Self::Beginning),
            other => match other.parse() {
                Ok(sequence) => Ok(Self::Sequence(sequence)),
                Err(_) => Err(InvalidEffectsFrom(other.to_owned())),
            },
        }
    }
}
