//! Replies: messages to the inbox that the event which caused them names. They leave over plain
//! NATS, because no stream stores them.

use std::time::Duration;

use crate::event::Event;

/// The header of an event that names the inbox of its requester. The server keeps the reply subject
/// of a published message to itself, and answers there.
const REPLY_TO: &str = "foldstream-reply-to";
/// The first token of inboxes.
const INBOXES: &str = "_INBOX.";
/// Nobody waits longer for a reply.
pub const REPLY_AGE_MAX: Duration = Duration::from_secs(30);

/// Whether a subject is the inbox of a requester.
pub fn is_reply(subject: &str) -> bool {
    subject.starts_with(INBOXES)
}

/// Whether a subject is the inbox that an event names.
pub fn answers(event: &Event, subject: &str) -> bool {
    event.header(REPLY_TO) == Some(subject)
}
