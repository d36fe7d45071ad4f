//! Entry points for the fuzz targets of `tests/fuzz`: parsers of untrusted bytes that can otherwise
//! only be reached through a server, a module or a process. Nothing else may use them, and they may
//! change at any time.

use bytes::Bytes;

use crate::cloudevents::{Recognition, message};
use crate::event::Event;
pub use crate::module::DrawnManifest;
use crate::state::catalogue::ModuleInfo;
use crate::{module, source};

/// Reads a header block of NATS: the usable headers, and the fault that stops the client from
/// parsing the block, if any.
pub fn header_block(block: &[u8]) -> (Vec<(String, String)>, Option<String>) {
    source::jetstream::header_block(block)
}

/// Converts a message of a stream into an event.
pub fn message(
    subject: &str,
    headers: &[(&str, &str)],
    data: &[u8],
    recognition: Recognition,
    wants_headers: bool,
) -> Event {
    let headers = headers
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect();
    let data = Bytes::copy_from_slice(data);
    let message = message::Message {
        sequence: 1,
        time_ns: 1,
        subject: subject.into(),
        headers,
        data,
    };
    message::into_event(
        message,
        message::Reading {
            recognition,
            wants_headers,
        },
    )
}

/// Checks a manifest with the default limits of a host; returns what users see of it, or the error.
pub fn manifest(drawn: &DrawnManifest) -> Result<ModuleInfo, module::Error> {
    module::check_drawn(drawn)
}

/// Parses the answer of the process that checks uploads; returns its debug form, or none if it is
/// not an answer.
pub fn answer(bytes: Vec<u8>) -> Option<String> {
    module::read_answer(bytes)
}
