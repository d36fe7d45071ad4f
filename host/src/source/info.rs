//! A source and its stream, as they are when somebody asks.

use super::SourceState;

/// A source and its stream. What is not known because it could not be reached is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// Its name in the configuration.
    pub name: String,
    /// `embedded` or `jetstream`.
    pub kind: &'static str,
    /// Name of the stream.
    pub stream: String,
    /// Whether it can be reached.
    pub reachable: bool,
    /// Why not, by name; none if it could.
    pub state: Option<SourceState>,
    /// Why not.
    pub message: Option<String>,
    /// Why it can't be read although it can be reached: a refused permission, or a kind of stream
    /// that loses events; none if it can be read.
    pub obstacle: Option<String>,
    /// First sequence that is still there; 0 when the stream is empty.
    pub first_sequence: Option<u64>,
    /// Whether it still has its first event, as far as known.
    pub is_complete: Option<bool>,
    /// Last sequence.
    pub last_sequence: Option<u64>,
    /// Number of events.
    pub events: Option<u64>,
    /// Bytes stored.
    pub bytes: Option<u64>,
    /// How its first events are interpreted: as CloudEvents of some form, or as plain events.
    pub first_events: Option<String>,
    /// What the settings of the stream may lose or slow down.
    pub warnings: Vec<String>,
}

impl Info {
    /// A message saying that it could not be reached, if so.
    pub fn unreachable(&self) -> Option<String> {
        let message = self.message.as_deref().unwrap_or("it does not answer");
        (!self.reachable).then(|| {
            format!(
                "source {} (stream {}) can't be read: {message}; its events will be applied as \
                 soon as it can",
                self.name, self.stream
            )
        })
    }
}
