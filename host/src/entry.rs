//! Entry points for the fuzz targets of `tests/fuzz`: parsers of untrusted bytes that can otherwise
//! only be reached through a server, a module or a process. Nothing else may use them, and they may
//! change at any time.

use bytes::Bytes;

pub use crate::cloudevents::message::Reading;
use crate::cloudevents::message::{self, Message};
use crate::event::{Event, Payload};
use crate::generate::{self, Formats, Inexpressible, Target};
pub use crate::module::DrawnManifest;
use crate::schemas::compare::reasons;
use crate::schemas::{self, Checks, Direction, Schema};
use crate::state::catalogue::ModuleInfo;
use crate::{module, source};

/// Reads a header block of NATS: the usable headers, and the fault that stops the client from
/// parsing the block, if any.
pub fn header_block(block: &[u8]) -> (Vec<(String, String)>, Option<String>) {
    source::jetstream::header_block(block)
}

/// Converts a message of a stream into an event.
pub fn message(subject: &str, headers: &[(&str, &str)], data: &[u8], reading: Reading) -> Event {
    let headers = headers
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect();
    let data = Bytes::copy_from_slice(data);
    let message = Message {
        sequence: 1,
        time_ns: 1,
        subject: subject.into(),
        headers,
        data,
    };
    message::into_event(message, reading)
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

/// What became of the schemas of a module.
#[derive(Debug, PartialEq, Eq)]
pub struct ReadSchemas {
    /// The section, written again.
    pub section: Vec<u8>,
    /// Why a schema may refuse what itself accepts.
    pub against_itself: Vec<String>,
    /// Why the data does not fit; none if it does, or has no schema.
    pub violation: Option<String>,
    /// The types of each language, or why there are none.
    pub types: Vec<Result<String, String>>,
}

/// Does with a section of schemas all that is ever done with one, and holds the data of an event
/// against it.
pub fn schemas(section: &[u8], event: &str, data: &str) -> Result<ReadSchemas, String> {
    let refused = |error: schemas::Error| error.to_string();
    let carried = schemas::parse(section).map_err(refused)?;
    schemas::check(&carried).map_err(refused)?;
    let mut against_itself = Vec::new();
    for carried in &carried {
        let schema = Schema::check(&carried.schema).map_err(|error| error.to_string())?;
        let reasons = reasons(&schema, &schema).into_iter();
        against_itself.extend(reasons.map(|reason| format!("{reason:?}")));
    }
    let checks = Checks::new(&carried).map_err(refused)?;
    let violation = checks.violation(Direction::Reads, event, &Payload::from(data));
    let package = "events".to_owned();
    let targets = [
        Target::Rust,
        Target::TypeScript,
        Target::Python,
        Target::Go { package },
    ];
    let types = targets.iter().map(|target| {
        let made = generate::generate(&carried, target, Inexpressible::AnyJson, Formats::Typed);
        made.map(|made| made.code)
            .map_err(|error| error.to_string())
    });
    Ok(ReadSchemas {
        section: schemas::to_bytes(&carried),
        against_itself,
        violation: violation.map(|violation| violation.message),
        types: types.collect(),
    })
}
