//! A host with an embedded log, and what it returns of the appended events.

use foldstream::api;
use foldstream::cloudevents::{Data, Envelope};
use foldstream_tests::fuzz::plain_http::{Connection, Response};
use foldstream_tests::host::Host;
use serde_json::value::RawValue;
use tokio::runtime::Runtime;

/// Headers of a request.
pub type Headers = Vec<(String, Vec<u8>)>;

/// A host and a connection to it.
pub struct Log {
    connection: Connection,
    host: Host,
    _runtime: Runtime,
}

/// Headers from texts.
pub fn headers(pairs: &[(&str, &str)]) -> Headers {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
        .collect()
}

impl Log {
    /// A new one.
    pub fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let host = runtime.block_on(Host::start());
        Self {
            connection: Connection::new(host.url()),
            host,
            _runtime: runtime,
        }
    }

    /// What becomes of a request to append: the answer if it was taken, or why it was not.
    pub fn append(
        &mut self,
        query: &str,
        headers: &Headers,
        body: &[u8],
    ) -> Result<api::Appended, Response> {
        let response = self.connection.send(
            "POST",
            format!("/v1/events{query}").as_bytes(),
            headers,
            body,
        );
        let Some(response) = response else {
            assert!(
                !self.host.has_ended(),
                "the host ended: {}",
                self.host.output()
            );
            // Nothing but a malformed head is closed without words.
            return Err(Response::default());
        };
        if response.status == 200 {
            let appended: api::Appended =
                serde_json::from_slice(&response.body).expect("an answer of its form");
            let last = appended
                .sequences
                .iter()
                .all(|sequence| *sequence <= appended.last_sequence);
            assert!(
                last && appended.duplicates <= appended.sequences.len() as u64,
                "{appended:?}"
            );
            return Ok(appended);
        }
        assert_problem(&response);
        Err(response)
    }

    fn get(&mut self, after: u64, limit: usize, headers: &Headers) -> Response {
        let target = format!("/v1/events?after={after}&limit={limit}");
        let response = self
            .connection
            .send("GET", target.as_bytes(), headers, b"")
            .expect("it answers");
        assert_eq!(response.status, 200, "{}", response.text());
        response
    }

    /// The event at a sequence.
    pub fn event(&mut self, sequence: u64) -> api::StoredEvent {
        let response = self.get(sequence - 1, 1, &Vec::new());
        let page: api::EventPage =
            serde_json::from_slice(&response.body).expect("a page of its form");
        let event = page
            .events
            .into_iter()
            .next()
            .expect("what was appended is there");
        assert_eq!(event.sequence, sequence);
        event
    }

    /// The same as a CloudEvent, which is valid.
    pub fn exported(&mut self, sequence: u64) -> String {
        let accept = headers(&[("accept", "application/cloudevents-batch+json")]);
        let response = self.get(sequence - 1, 1, &accept);
        let batch: Vec<&RawValue> =
            serde_json::from_slice(&response.body).expect("a batch is a list");
        let text = batch
            .first()
            .expect("what was appended is there")
            .get()
            .to_owned();
        let envelope = Envelope::parse(text.as_bytes());
        let envelope = envelope
            .unwrap_or_else(|error| panic!("an export that is no CloudEvent: {error}: {text}"));
        assert!(
            !matches!(envelope.data, Data::Bytes(ref bytes) if bytes.is_empty()),
            "{text}"
        );
        text
    }

    /// An event that was exported can be appended, and is the same then.
    pub fn comes_back(&mut self, sequence: u64) {
        let (before, text) = (self.event(sequence), self.exported(sequence));
        let headers = headers(&[("content-type", "application/cloudevents+json")]);
        let appended = self.append("", &headers, text.as_bytes());
        let appended = appended.unwrap_or_else(|refused| panic!("{}: {text}", refused.text()));
        let after = self.event(appended.sequences[0]);
        // Characters that attributes must not contain are percent-encoded in exports.
        if text.contains("%EF") {
            return;
        }
        assert_eq!(
            (&after.subject, &after.kind, &after.data),
            (&before.subject, &before.kind, &before.data),
            "{text}"
        );
    }

    /// The host lives.
    pub fn assert_lives(&mut self) {
        let response = self
            .connection
            .send("GET", b"/livez", &Vec::new(), b"")
            .expect("it answers");
        assert_eq!(response.status, 200);
        let output = self.host.output();
        assert!(!output.contains("panicked"), "{output}");
    }
}

/// A refusal blames the client, with a reason of bounded length.
pub fn assert_problem(response: &Response) {
    let status = response.status;
    // What is no HTTP is refused before it is a request.
    if status == 400 && response.body.is_empty() || status == 431 {
        return;
    }
    assert!(
        (400..500).contains(&status) || matches!(status, 503 | 504),
        "{status}: {}",
        response.text()
    );
    assert_eq!(
        response.header("content-type"),
        Some("application/problem+json"),
        "{status}: {}",
        response.text()
    );
    let problem: api::Problem =
        serde_json::from_slice(&response.body).expect("a problem of its form");
    assert_eq!(problem.status, status);
    assert!(
        !problem.title.is_empty() && !problem.detail.is_empty() && problem.detail.len() < 8_192,
        "{problem:?}"
    );
}
