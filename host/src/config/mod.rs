//! Configuration: TOML, then environment, then flags; later ones override earlier ones.
//!
//! The structs here are the only description of the settings: reading,
//! suggestions, type errors and the printed template all derive from them and
//! from their comments.

mod check;
mod load;
mod options;
mod template;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lanes::Lanes;
use crate::settings::{settings, size};

pub use crate::settings::{Key, Problem, REDACTED, ReadError, Secret, Severity};
pub use crate::source::SourceSettings;
pub use check::QUERIES_MAX;
pub use load::{Error, FILE_DEFAULT, Mistake, Origins, Override, load};
pub use template::template;

settings! {
    /// All settings, with their defaults.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(default)]
    pub struct Config {
        /// Folder for catalogue, state, modules and embedded logs.
        pub data_dir: PathBuf,
        /// The HTTP server.
        pub serve: Serve,
        /// Sources by name. Without any, there is one embedded log named `events`.
        pub sources: BTreeMap<String, SourceSettings>,
        /// Limits of modules.
        pub modules: Modules,
        /// State and its durability.
        pub state: State,
        /// Batches and retries.
        pub pipeline: Pipeline,
        /// How generations take over from each other.
        pub rollout: Rollout,
        /// Limits of the whole host.
        pub limits: Limits,
        /// The host's own log.
        pub log: LogOutput,
    }

    /// The HTTP server.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(default)]
    pub struct Serve {
        /// Address to listen on; any but loopback needs TLS and a token, or `insecure`.
        pub listen: SocketAddr,
        /// Bearer token that clients must send, of 16 bytes or more; it may do everything. For
        /// example `"f2b8c0a97d5e4c1b"`.
        pub token: Option<Secret>,
        /// File that contains the token. For example `"/run/secrets/foldstream-token"`.
        pub token_file: Option<PathBuf>,
        /// File of tokens with names and scopes; `foldstream token new` creates its entries. For
        /// example `"/etc/foldstream/tokens.toml"`.
        pub tokens_file: Option<PathBuf>,
        /// Certificate chain (PEM). For example `"/etc/foldstream/tls.crt"`.
        pub tls_cert: Option<PathBuf>,
        /// Key of the certificate (PEM). For example `"/etc/foldstream/tls.key"`.
        pub tls_key: Option<PathBuf>,
        /// What a request without a token may do: `nothing`, `read` or `everything`. The default is
        /// `nothing` if a token is configured, and `read` if not: the host then makes a token for
        /// everything else, in the file `token` of the data folder, and commands of the same user
        /// find it on their own. For example `"nothing"`.
        pub anonymous: Option<Anonymous>,
        /// Listen on other addresses than loopback without TLS or token.
        pub insecure: bool,
        /// Host names, without ports, that a host without a token accepts in addition to IP
        /// addresses and localhost.
        pub hosts: Vec<String>,
        /// Origins of web pages that may use the host from a browser, such as
        /// `https://app.example`.
        pub origins: Vec<String>,
        /// Longest wait for `at-least`.
        #[serde(with = "humantime_serde")]
        pub wait_max: Duration,
        /// Longest request, except watches.
        #[serde(with = "humantime_serde")]
        pub request_timeout: Duration,
        /// Largest request body, except uploads of modules, in bytes.
        #[serde(with = "size")]
        pub body_bytes_max: usize,
        /// Maximum number of concurrent watches.
        pub watches_max: usize,
        /// Maximum number of concurrent queries, up to 1024; each deployment may have half of these
        /// places.
        pub queries_max: usize,
    }

    /// Limits of modules.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(default)]
    pub struct Modules {
        /// Largest upload, in bytes.
        #[serde(with = "size")]
        pub upload_bytes_max: usize,
        /// Longest check of an upload, before it is compiled.
        #[serde(with = "humantime_serde")]
        pub check_time_max: Duration,
        /// Longest compilation.
        #[serde(with = "humantime_serde")]
        pub compile_time_max: Duration,
        /// Address space of the child process that checks or compiles one module at a time, in
        /// bytes.
        #[serde(with = "size")]
        pub compile_memory_max: u64,
        /// Maximum size of the native code of one module, in bytes. It stays in memory while the
        /// module is in use. A module's code is also limited to 8 times its size plus 16 MiB.
        #[serde(with = "size")]
        pub code_bytes_max: u64,
        /// Memory of an instance unless its manifest asks for another amount, in bytes.
        #[serde(with = "size")]
        pub memory_bytes: u64,
        /// Maximum memory that a manifest may ask for, in bytes.
        #[serde(with = "size")]
        pub memory_bytes_max: u64,
        /// Longest call, unless the manifest asks for another limit.
        #[serde(with = "humantime_serde")]
        pub deadline: Duration,
        /// Longest call that a manifest may ask for.
        #[serde(with = "humantime_serde")]
        pub deadline_max: Duration,
        /// Concurrent instances: one per deployment or lane, and one per query and per candidate or
        /// previous generation.
        pub instances_max: u32,
        /// In how many lanes a projection with a key rule is folded, unless its deploy says so: each
        /// has an instance, a thread and its share of the keys. The result is that of 1. "auto" is one
        /// for each core, at most 4.
        pub lanes: Lanes,
        /// Time without events after which a deployment releases its instance and its memory; the
        /// next event gets a new one, within milliseconds. 0s keeps it.
        #[serde(with = "humantime_serde")]
        pub idle_after: Duration,
        /// Host calls in one call of a module.
        pub host_calls_max: u64,
        /// Bytes of log output in one call of a module.
        #[serde(with = "size")]
        pub log_bytes_max: usize,
    }

    /// State and its durability.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(default)]
    pub struct State {
        /// Age at which a memtable is committed; ten times that if its state is far behind its stream,
        /// or answers no reads.
        #[serde(with = "humantime_serde")]
        pub flush_interval: Duration,
        /// Size at which a memtable is committed, in bytes.
        #[serde(with = "size")]
        pub memtable_bytes: u64,
        /// All memtables together, in bytes; beyond it they commit earlier. 0 means an eighth of
        /// limits.memory_bytes, at most 512 MiB.
        #[serde(with = "size")]
        pub memtable_bytes_total: u64,
        /// All caches of state files and embedded logs together, in bytes. 0 means an eighth of
        /// limits.memory_bytes, at most 256 MiB.
        #[serde(with = "size")]
        pub cache_bytes_total: u64,
        /// Largest value, in bytes.
        #[serde(with = "size")]
        pub value_bytes_max: usize,
        /// Largest state of one deployment unless its manifest asks for less, in bytes.
        #[serde(with = "size")]
        pub state_bytes_max: u64,
        /// Largest state file of one generation on disk, in bytes; beyond it the generation applies
        /// no further events. 0 means no limit.
        #[serde(with = "size")]
        pub file_bytes_max: u64,
        /// Maximum number of messages of a handler that wait to be published; beyond it the handler
        /// handles no further events.
        pub outbox_entries_max: u64,
        /// Maximum total size of these messages, in bytes.
        #[serde(with = "size")]
        pub outbox_bytes_max: u64,
        /// Maximum number of keys with parked events; beyond it a deployment stops at the next event
        /// that fails.
        pub parked_keys_max: u64,
        /// Maximum number of parked events; beyond it a deployment stops at the next event that
        /// fails, and waits before an event that would have to wait behind its key.
        pub parked_events_max: u64,
        /// Maximum total size of these events, in bytes.
        #[serde(with = "size")]
        pub parked_bytes_max: u64,
        /// Maximum number of pending timers of a handler; a handler that sets one more stops.
        pub timers_pending_max: u64,
        /// Maximum number of timers in a row, each of which a handler sets for less than a second
        /// later when the one before it fires; longer rows count as a loop, and one of their timers
        /// fires a second.
        pub timers_in_a_row_max: u32,
    }

    /// Batches and retries.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(default)]
    pub struct Pipeline {
        /// Maximum number of events in a batch.
        pub batch_events: usize,
        /// Maximum size of a batch, in bytes.
        #[serde(with = "size")]
        pub batch_bytes: usize,
        /// Attempts of a failing batch before its deployment stops, unless the manifest says
        /// otherwise.
        pub attempts: u32,
        /// Pause before the second attempt.
        #[serde(with = "humantime_serde")]
        pub initial_backoff: Duration,
        /// Longest pause.
        #[serde(with = "humantime_serde")]
        pub max_backoff: Duration,
        /// How much of a minute a deployment may lose in calls that fail, in percent. Beyond that,
        /// and beyond 10 retries a minute, its circuit breaker opens: the next attempt waits for 30
        /// seconds, and twice as long each time until 10 minutes. 100 keeps it closed.
        pub retry_percent: u32,
        /// How long a stop may take.
        #[serde(with = "humantime_serde")]
        pub stop_budget: Duration,
    }

    /// How generations take over from each other.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(default)]
    pub struct Rollout {
        /// How long the previous generation follows the stream, so that a rollback is immediate.
        #[serde(with = "humantime_serde")]
        pub keep_previous: Duration,
        /// How many previous generations are kept.
        pub keep_previous_generations: usize,
        /// Concurrent rebuilds; others wait in order.
        pub rebuilds_max: usize,
        /// Longest time that a cut-over holds applying; beyond it, the cut-over is tried again
        /// later.
        #[serde(with = "humantime_serde")]
        pub hold_max: Duration,
        /// Maximum number of attempts at an event that fails while its generation answers no reads,
        /// such as a candidate, whatever its manifest asks for. Then the candidate fails, and the
        /// active generation keeps serving.
        pub attempts: u32,
        /// Longest pause between these attempts.
        #[serde(with = "humantime_serde")]
        pub max_backoff: Duration,
        /// Size at which a memtable is committed while its generation is built, in bytes.
        #[serde(with = "size")]
        pub memtable_bytes: u64,
        /// Copy a state after this many sequences, so that as-of reads are quick; 0 disables this.
        pub snapshot_events: u64,
        /// Copy a changed state after this time; 0s disables this.
        #[serde(with = "humantime_serde")]
        pub snapshot_interval: Duration,
        /// How many copies of each state are kept.
        pub snapshots_keep: usize,
        /// Past states kept at once for as-of reads.
        pub as_of_max: usize,
        /// Disk space for past states; beyond it, the least recently used one is removed, in bytes.
        #[serde(with = "size")]
        pub as_of_bytes_max: u64,
        /// How long an unused past state is kept.
        #[serde(with = "humantime_serde")]
        pub as_of_unused_max: Duration,
    }

    /// Limits of the whole host.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(default)]
    pub struct Limits {
        /// Maximum number of deployments.
        pub deployments: usize,
        /// Memory budget of the host, in bytes: memtables, caches, batches read ahead, instances,
        /// native code. 0 means three quarters of what the control group (container, systemd unit)
        /// may use, or half of the machine's memory.
        #[serde(with = "size")]
        pub memory_bytes: u64,
        /// Maximum disk space for the data folder, in bytes, as if its disk had this size: rebuilds,
        /// snapshots and past states stop at a twentieth of it, active generations and the embedded
        /// log at a sixty-fourth (at most 16 MiB). 0 means the size of the disk.
        #[serde(with = "size")]
        pub disk_bytes: u64,
    }

    /// The host's own log.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(default)]
    pub struct LogOutput {
        /// Filter, such as `info` or `foldstream=debug`.
        pub level: String,
        /// `text` or `json`.
        pub format: LogFormat,
    }
}

/// What a request without a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anonymous {
    /// Nothing, probes aside.
    Nothing,
    /// What takes the scope `read`.
    Read,
    /// Whatever a token with every scope may do.
    Everything,
}

/// Format of our own log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("foldstream-data"),
            serve: Serve::default(),
            sources: BTreeMap::new(),
            modules: Modules::default(),
            state: State::default(),
            pipeline: Pipeline::default(),
            rollout: Rollout::default(),
            limits: Limits::default(),
            log: LogOutput::default(),
        }
    }
}

impl Default for Serve {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7575)),
            token: None,
            token_file: None,
            tokens_file: None,
            tls_cert: None,
            tls_key: None,
            anonymous: None,
            insecure: false,
            hosts: Vec::new(),
            origins: Vec::new(),
            wait_max: Duration::from_secs(30),
            request_timeout: Duration::from_secs(60),
            body_bytes_max: 16 << 20,
            watches_max: 1_000,
            queries_max: 64,
        }
    }
}

impl Default for Modules {
    fn default() -> Self {
        Self {
            upload_bytes_max: 64 << 20,
            check_time_max: Duration::from_secs(30),
            compile_time_max: Duration::from_secs(120),
            compile_memory_max: 2 << 30,
            code_bytes_max: 128 << 20,
            memory_bytes: 64 << 20,
            memory_bytes_max: 256 << 20,
            deadline: Duration::from_secs(5),
            deadline_max: Duration::from_secs(60),
            instances_max: 2_000,
            lanes: Lanes::Count(1),
            idle_after: Duration::from_secs(60),
            host_calls_max: 1_000_000,
            log_bytes_max: 64 << 10,
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            flush_interval: Duration::from_secs(1),
            memtable_bytes: 64 << 20,
            memtable_bytes_total: 0,
            cache_bytes_total: 0,
            value_bytes_max: 1 << 20,
            state_bytes_max: 4 << 30,
            file_bytes_max: 0,
            outbox_entries_max: 100_000,
            outbox_bytes_max: 256 << 20,
            parked_keys_max: 10_000,
            parked_events_max: 100_000,
            parked_bytes_max: 256 << 20,
            timers_pending_max: 10_000_000,
            timers_in_a_row_max: 1_000,
        }
    }
}

impl Default for Pipeline {
    fn default() -> Self {
        Self {
            batch_events: 2_048,
            batch_bytes: 4 << 20,
            attempts: 10,
            initial_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(30),
            retry_percent: 20,
            stop_budget: Duration::from_secs(10),
        }
    }
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            keep_previous: Duration::from_secs(3_600),
            keep_previous_generations: 1,
            rebuilds_max: 2,
            hold_max: Duration::from_millis(250),
            attempts: 5,
            max_backoff: Duration::from_secs(5),
            memtable_bytes: 256 << 20,
            snapshot_events: 0,
            snapshot_interval: Duration::ZERO,
            snapshots_keep: 4,
            as_of_max: 8,
            as_of_bytes_max: 4 << 30,
            as_of_unused_max: Duration::from_secs(600),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deployments: 1_000,
            memory_bytes: 0,
            disk_bytes: 0,
        }
    }
}

impl Default for LogOutput {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}
