//! The key of an event, according to a module's key rule.

use serde_json::Value;

use super::KeyRule;
use crate::event::Event;

impl KeyRule {
    /// Passes the key of an event on without a copy, unless it is inside the data.
    pub(crate) fn with_key<T>(&self, event: &Event, take: impl FnOnce(Option<&str>) -> T) -> T {
        match self {
            Self::None => take(None),
            Self::Subject => take(Some(&event.subject)),
            Self::SubjectToken(number) => {
                let mut tokens = event.subject.split('.');
                take(tokens.nth((*number as usize).saturating_sub(1)))
            }
            Self::Header(name) => take(event.header(name)),
            Self::DataPointer(_) => take(self.key_of(event).as_deref()),
        }
    }

    /// The key of an event; none if it has none.
    pub fn key_of(&self, event: &Event) -> Option<String> {
        match self {
            Self::None => None,
            Self::Subject => Some(event.subject.to_string()),
            Self::SubjectToken(number) => event
                .subject
                .split('.')
                .nth((*number as usize).saturating_sub(1))
                .map(str::to_owned),
            Self::Header(name) => event.header(name).map(str::to_owned),
            Self::DataPointer(pointer) => {
                let data: Value = serde_json::from_slice(event.data.as_bytes()).ok()?;
                match data.pointer(pointer)? {
                    Value::String(text) => Some(text.clone()),
                    Value::Null => None,
                    other => Some(other.to_string()),
                }
            }
        }
    }
}
