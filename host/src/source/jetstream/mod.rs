//! JetStream as a source.
//!
//! Owns everything that uses NATS to read events: settings and credentials
//! (`connect`, `context`), the calls of the JetStream API (`wire`), opening a
//! stream (`open`) with the proof that it is the right one (`proof`), what it
//! no longer has (`missing`, `left`), the protocol of a pull consumer (`pull`,
//! `message`, `backlog`), messages that the client cannot parse (`rescue`, `headers`), the
//! supervision of a reader (`reader`), a reader that deployments share (`shared`, `hub`, `ring`,
//! `audience`) and the examination of a stream's
//! settings (`inspect`). A reader never publishes and never acknowledges; what
//! handlers publish goes through `publish`.

mod appetite;
mod audience;
mod backlog;
mod clear_text;
mod connect;
mod context;
mod currency;
mod cursor;
mod headers;
mod hub;
mod inspect;
mod kind;
mod left;
mod link;
mod look;
mod message;
mod missing;
mod open;
mod other_stream;
mod permissions;
mod proof;
mod publish;
mod pull;
mod reader;
mod rescue;
mod ring;
mod session;
mod settings;
mod shared;
mod trusted;
mod wire;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::cloudevents::Recognition;
use crate::event::Event;
use crate::memory::read_ahead::ReadAhead;
use crate::position::Checkpoint;
use crate::source::Info;
use connect::Settings;
use reader::Supervised;

pub use publish::{
    BatchError, CONFIRMATION_MAX, Confirmed, Description, Outgoing, PublishError, Publisher, Terms,
    Unavailable,
};
pub use settings::JetStreamSettings;
pub use shared::Reader;

/// Reads a header block: the usable headers, and the fault that stops the client from parsing the
/// block, if any.
pub(crate) fn header_block(block: &[u8]) -> (Vec<(String, String)>, Option<String>) {
    let headers::Block { headers, fault } = headers::Block::read(block);
    (headers, fault)
}

/// How to reach a stream.
#[derive(Clone, Default)]
pub struct Options {
    /// Name of the source in the configuration.
    pub name: String,
    /// Name of the stream.
    pub stream: String,
    /// Servers, such as `nats://127.0.0.1:4222`; empty takes the context's, or that default.
    pub servers: Vec<String>,
    /// A context of the `nats` command line: its name, `selected` for the selected one, or the path
    /// of its file. Settings here override it.
    pub context: Option<String>,
    /// Credentials file.
    pub creds: Option<PathBuf>,
    /// File with an nkey seed.
    pub nkey: Option<PathBuf>,
    /// File with a JWT, used with `nkey`.
    pub jwt: Option<PathBuf>,
    /// User.
    pub user: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// File that `password` was read from: it is read again for each connection, as it may have
    /// been replaced.
    pub password_file: Option<PathBuf>,
    /// Token.
    pub token: Option<String>,
    /// File that `token` was read from: it is read again for each connection, as it may have been
    /// replaced.
    pub token_file: Option<PathBuf>,
    /// File with root certificates (PEM).
    pub tls_ca: Option<PathBuf>,
    /// File with the client's certificate (PEM).
    pub tls_cert: Option<PathBuf>,
    /// File with the client's key (PEM).
    pub tls_key: Option<PathBuf>,
    /// Refuse connections without TLS.
    pub tls_required: bool,
    /// Start TLS before the server's first line.
    pub tls_first: bool,
    /// Connect to no server that another one advertises.
    pub ignore_discovered_servers: bool,
    /// JetStream domain.
    pub domain: Option<String>,
    /// Prefix of the JetStream API, instead of a domain.
    pub api_prefix: Option<String>,
    /// Prefix of our inboxes, if permissions require one.
    pub inbox_prefix: Option<String>,
    /// Which messages are CloudEvents.
    pub cloudevents: Recognition,
    /// What to do if events are gone that were not applied.
    pub on_missing: super::OnMissing,
}

impl fmt::Debug for Options {
    /// Leaves out everything that may be secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            stream,
            context,
            domain,
            ..
        } = self;
        formatter
            .debug_struct("Options")
            .field("name", name)
            .field("stream", stream)
            .field("context", context)
            .field("domain", domain)
            .finish_non_exhaustive()
    }
}

/// A JetStream stream as a source. Cloning shares it.
#[derive(Clone, Debug)]
pub struct JetStream {
    settings: Arc<Settings>,
    inspection: Arc<inspect::Inspection>,
    looks: Arc<look::Looks>,
    hubs: Arc<hub::Hubs>,
}

/// Why a source can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file or setting cannot be used.
    #[error("source {source_name}: {message}")]
    Setting {
        /// Name of the source.
        source_name: String,
        /// What is wrong, and what to do next.
        message: String,
    },
}

/// A setting, or a file that it names, can't be used: what is wrong, and what to do next.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unusable(String);

impl From<String> for Unusable {
    fn from(message: String) -> Self {
        Self(message)
    }
}

impl JetStream {
    /// Checks the settings and reads their files; does not connect yet.
    pub fn new(options: Options) -> Result<Self, SetupError> {
        let source_name = options.name.clone();
        let settings = Settings::new(options).and_then(|settings| {
            // To find wrong files at the start, and not at the first connection.
            settings.connect_options()?;
            Ok(settings)
        });
        match settings {
            Ok(settings) => Ok(Self {
                settings: Arc::new(settings),
                inspection: Arc::default(),
                looks: Arc::default(),
                hubs: Arc::default(),
            }),
            Err(unusable) => Err(SetupError::Setting {
                source_name,
                message: unusable.to_string(),
            }),
        }
    }

    /// Name of the stream.
    pub fn stream(&self) -> &str {
        &self.settings.stream
    }

    /// Addresses of the servers, without what may be secret in them.
    pub fn servers(&self) -> String {
        let shown: Vec<String> = self
            .settings
            .servers
            .iter()
            .map(|server| format!("{}:{}", server.host(), server.port()))
            .collect();
        shown.join(", ")
    }

    /// Creates a reader. It has a connection of its own until it has caught up; then readers of the
    /// same subjects share one.
    pub fn read(&self, request: super::Request, status: super::StatusSender) -> Reader {
        self.shared(self.supervised(request, status))
    }

    /// The same within a budget; see [`super::Source::read_within`].
    pub(super) fn read_within(
        &self,
        request: super::Request,
        status: super::StatusSender,
        ahead: &ReadAhead,
    ) -> Reader {
        self.shared(self.supervised(request, status).within(ahead))
    }

    fn supervised(&self, request: super::Request, status: super::StatusSender) -> Supervised {
        Supervised::new(Arc::clone(&self.settings), request, status)
    }

    fn shared(&self, alone: Supervised) -> Reader {
        Reader::new(alone, Arc::clone(&self.hubs))
    }

    /// What it does if events are gone that were not applied.
    pub fn on_missing(&self) -> super::OnMissing {
        self.settings.on_missing
    }

    /// What the stream no longer has in a range; see [`super::Source::lost`].
    pub(crate) async fn lost(
        &self,
        had: &super::Had<'_>,
    ) -> Result<Option<super::Lost>, super::LookError> {
        // Large, and rarely needed.
        Box::pin(self.inspection.lost(&self.settings, had)).await
    }

    /// Whether nothing but counts shows what it has lost; see [`super::Source::hides_losses`].
    pub(crate) async fn hides_losses(&self) -> Result<bool, super::LookError> {
        Box::pin(self.inspection.hides_losses(&self.settings)).await
    }

    /// Why it is not the stream to which a checkpoint belongs; see
    /// [`super::Source::contradiction`].
    pub(crate) async fn contradiction(
        &self,
        checkpoint: &Checkpoint,
    ) -> Result<Option<super::Error>, super::LookError> {
        // Large, and rarely needed.
        Box::pin(self.inspection.contradiction(&self.settings, checkpoint)).await
    }

    /// Checks that the kind of stream can be read at all; an unreachable stream passes.
    pub async fn check_readable(&self) -> Result<(), super::Error> {
        self.inspection.check_readable(&self.settings).await
    }

    /// Time of the next event after a position with a matching subject, in nanoseconds since the
    /// Unix epoch, if available.
    pub async fn time_behind(&self, position: u64, subject: &str) -> super::Waiting {
        self.inspection
            .time_behind(&self.settings, position, subject)
            .await
    }

    /// One event, from the leader of the stream; if it does not exist, the last sequence. An error
    /// says why that is unknown at the moment.
    pub async fn event(&self, sequence: u64) -> Result<Result<Event, u64>, super::LookError> {
        Box::pin(self.looks.event(&self.settings, sequence)).await
    }

    /// A page of events. An error says why it can't be read at the moment.
    pub async fn page(&self, wanted: &super::Wanted) -> Result<super::Page, super::LookError> {
        Box::pin(self.looks.page(&self.settings, wanted)).await
    }

    /// The current state of the stream, with warnings about settings that lose data or slow down
    /// replay.
    pub async fn info(&self) -> Info {
        self.inspection.examine(&self.settings).await
    }
}
