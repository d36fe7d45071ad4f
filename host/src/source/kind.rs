//! The kinds of sources: what each has to do, and the table of all.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::embedded;
use super::jetstream;
use super::{
    Error, Had, Info, LookError, Lost, OnMissing, Outlet, Page, Request, StatusSender, Waiting,
    Wanted,
};
use crate::batch::Batch;
use crate::event::Event;
use crate::log::{self, Log, Opening};
use crate::memory::caches::{Caches, Share};
use crate::memory::read_ahead::ReadAhead;
use crate::position::Checkpoint;
use crate::room::Room;
use crate::settings::{Findings, Key, ReadError};
use crate::subject::SubjectSet;

/// What a kind of source does. [`Source`] says what each answer means.
pub(super) trait Kind: Clone {
    /// Its reader.
    type Reader;

    /// See [`Source::read_within`]; without a budget, a reader of no limited deployment.
    fn read(
        &self,
        request: Request,
        status: StatusSender,
        ahead: Option<&ReadAhead>,
    ) -> Self::Reader;

    /// See [`Source::place`].
    fn place(&self) -> String;

    /// See [`Source::stream`].
    fn stream(&self) -> String;

    /// See [`Source::on_missing`].
    fn on_missing(&self) -> OnMissing;

    /// See [`Source::time_behind`].
    async fn time_behind(&self, position: u64, subjects: &SubjectSet) -> Waiting;

    /// See [`Source::lost`].
    async fn lost(&self, had: &Had<'_>) -> Result<Option<Lost>, LookError>;

    /// See [`Source::hides_losses`].
    async fn hides_losses(&self) -> Result<bool, LookError>;

    /// See [`Source::contradiction`].
    async fn contradiction(&self, checkpoint: &Checkpoint) -> Result<Option<Error>, LookError>;

    /// See [`Source::check_readable`].
    async fn check_readable(&self) -> Result<(), Error>;

    /// See [`Source::event`].
    async fn event(&self, sequence: u64) -> Result<Result<Event, u64>, LookError>;

    /// See [`Source::page`].
    async fn page(&self, wanted: Wanted) -> Result<Page, LookError>;

    /// See [`Source::info`].
    async fn info(&self) -> Info;

    /// See [`Source::log`].
    fn log(&self) -> Option<Result<Log, log::Error>>;

    /// See [`Source::outlet`].
    fn outlet(&self) -> Outlet;

    /// See [`Source::takes_replies`].
    fn takes_replies(&self) -> bool;

    /// See [`Source::stores`].
    async fn stores(&self, subject: &str) -> bool;
}

/// What a reader of a kind does.
pub(super) trait Read {
    /// See [`Reader::next`].
    async fn next(&mut self) -> Result<Batch, Error>;
}

/// The settings of a kind of source, and how a host begins with it.
pub(super) trait KindSettings {
    /// See [`SourceSettings::check`].
    fn check(&self, findings: &mut Findings, name: &str);

    /// See [`SourceSettings::is_log`].
    fn is_log(&self) -> bool;

    /// See [`SourceSettings::without_host`].
    fn without_host(&self, name: &str) -> Option<Result<Source, UnusableSource>>;

    /// See [`SourceSettings::begin`].
    fn begin(&self, name: &str, parts: HostParts<'_>) -> Result<Begun, NotBegun>;
}

/// What a host has for a source.
pub(crate) struct HostParts<'a> {
    /// The file of its log, if it has one.
    pub(crate) log_file: PathBuf,
    pub(crate) room: &'a Room,
    pub(crate) caches: &'a Caches,
}

/// A source of a host.
pub(crate) struct Begun {
    pub(crate) source: Source,
    /// Its log, which may still be opening, and the part of the caches that this takes.
    pub(crate) opening: Option<(Opening, Share)>,
}

/// Why settings of a source make none.
#[derive(Debug, thiserror::Error)]
pub enum UnusableSource {
    /// A file that they name can't be read.
    #[error(transparent)]
    File(#[from] ReadError),
    /// They contradict each other, or a file is not what it should be.
    #[error(transparent)]
    Setting(#[from] jetstream::SetupError),
}

/// Why a host can't begin with a source.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotBegun {
    #[error(transparent)]
    Unusable(#[from] UnusableSource),
    #[error(transparent)]
    Log(#[from] log::Error),
}

/// A kind of source, as configurations name it.
pub(crate) struct SourceKind {
    /// The value of `kind`.
    pub(crate) name: &'static str,
    /// The keys of such a source.
    pub(crate) keys: &'static [Key],
    /// What the template calls one.
    pub(crate) example: &'static str,
    /// The values that keys have by default.
    pub(crate) defaults: fn() -> Result<toml::Table, toml::ser::Error>,
}

/// Makes the enums of all kinds, and the macros that call the same method of each. The set is
/// closed, so that the compiler lists every place to visit.
macro_rules! kinds {
    ($d:tt $(
        $(#[$doc:meta])*
        $word:literal like $example:literal: $name:ident($source:ty, $reader:ty, $settings:ty);
    )+) => {
        /// The settings of a source.
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        pub enum SourceSettings {
            $($(#[$doc])* #[serde(rename = $word)] $name(Box<$settings>),)+
        }

        /// All kinds, in the order of the template of a configuration.
        pub(crate) const SOURCE_KINDS: &[SourceKind] = &[
            $(SourceKind {
                name: $word,
                keys: <$settings>::KEYS,
                example: $example,
                defaults: || toml::Table::try_from(<$settings>::default()),
            },)+
        ];

        /// Evaluates an expression for the settings of whatever kind.
        macro_rules! of_each_settings {
            ($d self:expr, $d settings:ident => $d value:expr) => {
                match $d self {
                    $(SourceSettings::$name($d settings) => $d value,)+
                }
            };
        }

        /// A configured source.
        #[derive(Clone, Debug)]
        pub enum Source {
            $($(#[$doc])* $name($source),)+
        }

        /// A supervised reader.
        #[derive(Debug)]
        pub enum Reader {
            $($(#[$doc])* $name(Box<$reader>),)+
        }

        /// Evaluates an expression for the source of whatever kind.
        macro_rules! of_each {
            ($d self:expr, $d source:ident => $d value:expr) => {
                match $d self {
                    $(Source::$name($d source) => $d value,)+
                }
            };
        }

        impl Source {
            /// Creates a reader; it connects in [`Reader::next`]. Must be called within a runtime.
            pub fn read(&self, request: Request, status: StatusSender) -> Reader {
                match self {
                    $(Self::$name(source) => {
                        Reader::$name(Box::new(Kind::read(source, request, status, None)))
                    })+
                }
            }

            /// The same within a budget: what a server may send unasked is bounded by the reader's
            /// part of it.
            pub(crate) fn read_within(
                &self,
                request: Request,
                status: StatusSender,
                ahead: &ReadAhead,
            ) -> Reader {
                match self {
                    $(Self::$name(source) => {
                        Reader::$name(Box::new(Kind::read(source, request, status, Some(ahead))))
                    })+
                }
            }
        }

        impl Reader {
            /// Returns ready events, up to the limits; waits if there are none. Batches follow each
            /// other in order: `through` never falls, and no matching event between two batches is
            /// left out. Cancel-safe: what a cancelled call read is returned by the next one. The
            /// first call returns as soon as the stream was reached and checked, even without
            /// events, so that its caller learns head and pending.
            pub async fn next(&mut self) -> Result<Batch, Error> {
                match self {
                    $(Self::$name(reader) => Read::next(&mut **reader).await,)+
                }
            }
        }
    };
}

// One row for each kind: its name in configurations, how the template calls one, its variant, its
// source, its reader and its settings.
kinds! { $
    /// A JetStream stream.
    "jetstream" like "orders":
    JetStream(jetstream::JetStream, jetstream::Reader, jetstream::JetStreamSettings);
    /// The log in our own data folder.
    "embedded" like "events":
    Embedded(embedded::Embedded, embedded::Reader, embedded::EmbeddedSettings);
}

impl SourceSettings {
    /// Adds what is wrong with them.
    pub(crate) fn check(&self, findings: &mut Findings, name: &str) {
        of_each_settings!(self, settings => KindSettings::check(&**settings, findings, name));
    }

    /// Whether it is a log of the host, and not a stream of a server.
    pub fn is_log(&self) -> bool {
        of_each_settings!(self, settings => KindSettings::is_log(&**settings))
    }

    /// The source as anybody can look at it; none if only a running host can.
    pub fn without_host(&self, name: &str) -> Option<Result<Source, UnusableSource>> {
        of_each_settings!(self, settings => KindSettings::without_host(&**settings, name))
    }

    /// The source of a host. Connections to servers are made later, and a log may still be opening.
    pub(crate) fn begin(&self, name: &str, parts: HostParts<'_>) -> Result<Begun, NotBegun> {
        of_each_settings!(self, settings => KindSettings::begin(&**settings, name, parts))
    }
}

impl Source {
    /// Its location, for messages: the servers, or the log itself.
    pub fn place(&self) -> String {
        of_each!(self, source => Kind::place(source))
    }

    /// Name of its stream.
    pub fn stream(&self) -> String {
        of_each!(self, source => Kind::stream(source))
    }

    /// What it does if events are gone that were not applied.
    pub fn on_missing(&self) -> OnMissing {
        of_each!(self, source => Kind::on_missing(source))
    }

    /// Whether an event that may match waits after a position.
    pub async fn time_behind(&self, position: u64, subjects: &SubjectSet) -> Waiting {
        of_each!(self, source => Kind::time_behind(source, position, subjects).await)
    }

    /// The sequences of a state's range that the stream no longer has; none if it has all. An error
    /// says why that is unknown at the moment.
    pub async fn lost(&self, had: &Had<'_>) -> Result<Option<Lost>, LookError> {
        of_each!(self, source => Kind::lost(source, had).await)
    }

    /// Whether the stream does not show what it has lost, as its sequences have gaps by design: only
    /// a count of its events does. An error says why that is unknown at the moment.
    pub async fn hides_losses(&self) -> Result<bool, LookError> {
        of_each!(self, source => Kind::hides_losses(source).await)
    }

    /// Why the stream is not the one to which a checkpoint belongs; none if it is, or as far as
    /// anybody can tell. A tail that was lost contradicts nothing. An error says why that is
    /// unknown at the moment.
    pub async fn contradiction(&self, checkpoint: &Checkpoint) -> Result<Option<Error>, LookError> {
        of_each!(self, source => Kind::contradiction(source, checkpoint).await)
    }

    /// Checks that the kind of stream can be read at all; an unreachable stream passes.
    pub async fn check_readable(&self) -> Result<(), Error> {
        of_each!(self, source => Kind::check_readable(source).await)
    }

    /// One event of the stream; if it does not exist, the last sequence. An error says why that is
    /// unknown at the moment.
    pub async fn event(&self, sequence: u64) -> Result<Result<Event, u64>, LookError> {
        of_each!(self, source => Kind::event(source, sequence).await)
    }

    /// A page of events, without a reader. An error says why it can't be read at the moment.
    pub async fn page(&self, wanted: Wanted) -> Result<Page, LookError> {
        of_each!(self, source => Kind::page(source, wanted).await)
    }

    /// The current state of the stream; an unreachable stream is a result, not an error.
    pub async fn info(&self) -> Info {
        of_each!(self, source => Kind::info(source).await)
    }

    /// The log of this host that has its events, or why that is not open; none if the events are
    /// on a server, where clients publish and read them.
    pub fn log(&self) -> Option<Result<Log, log::Error>> {
        of_each!(self, source => Kind::log(source))
    }

    /// The log, if it is open.
    pub fn open_log(&self) -> Option<Log> {
        self.log()?.ok()
    }

    /// What publishes to its stream. Connects when it is used.
    pub(crate) fn outlet(&self) -> Outlet {
        of_each!(self, source => Kind::outlet(source))
    }

    /// Whether replies may leave through it to the clients that sent its events.
    pub(crate) fn takes_replies(&self) -> bool {
        of_each!(self, source => Kind::takes_replies(source))
    }

    /// Whether its stream stores messages of a subject, as far as is known.
    pub(crate) async fn stores(&self, subject: &str) -> bool {
        of_each!(self, source => Kind::stores(source, subject).await)
    }

    /// Whether another source has the same stream. A log belongs to one source.
    pub(crate) fn has_stream_of(&self, other: &Self) -> bool {
        self.log().is_none() && other.log().is_none() && self.stream() == other.stream()
    }
}
