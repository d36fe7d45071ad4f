//! Converts the configuration into options for the parts of the host.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::{Anonymous, Config, EmbeddedSource, JetStreamSource, Secret, Serve, Source};
use crate::memory::{self, Memory, Shares};
use crate::small_file::open_regular;
use crate::{batch, log, module, source, state};

/// Longest secret in a file, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// A file in the configuration can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot read {}: {error}; give a file that this user may read", path.display())]
pub struct ReadError {
    /// The key that names it.
    pub key: String,
    /// The file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub error: io::Error,
}

fn read_secret(key: &str, path: &Path) -> Result<String, ReadError> {
    read_opened_secret(key, path, File::open(path))
}

fn read_opened_secret(key: &str, path: &Path, file: io::Result<File>) -> Result<String, ReadError> {
    let failed = |error| ReadError {
        key: key.to_owned(),
        path: path.to_owned(),
        error,
    };
    let mut text = String::new();
    // The size in the metadata does not count, because pipes and devices have none.
    let read = file
        .map_err(failed)?
        .take(SECRET_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if read as u64 > SECRET_BYTES_MAX {
        return Err(failed(io::Error::other(format!(
            "it has more than {SECRET_BYTES_MAX} bytes, too many for a secret"
        ))));
    }
    let secret = text.trim_end_matches(['\n', '\r']);
    if secret.is_empty() {
        return Err(failed(io::Error::other("it is empty")));
    }
    Ok(secret.to_owned())
}

impl Serve {
    /// The token that clients must send, read from its file if it has one.
    pub fn bearer_token(&self) -> Result<Option<String>, ReadError> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(Some(str::to_owned(token))),
            // A running host reads it again, and must not wait for a pipe then.
            (None, Some(path)) => {
                read_opened_secret("serve.token_file", path, open_regular(path)).map(Some)
            }
            (None, None) => Ok(None),
        }
    }
}

impl Serve {
    /// Whether there are tokens that clients can send.
    pub fn has_tokens(&self) -> bool {
        self.token.is_some() || self.token_file.is_some() || self.tokens_file.is_some()
    }

    /// What a request without a token may do.
    pub fn anonymous(&self) -> Anonymous {
        match self.anonymous {
            Some(chosen) => chosen,
            None if self.has_tokens() => Anonymous::Nothing,
            // The operator has accepted the risk by `insecure`.
            None if self.insecure && !self.is_loopback() => Anonymous::Everything,
            None => Anonymous::Read,
        }
    }

    /// Whether a host makes a token of its own. Beyond loopback it does so only if the operator
    /// accepts that others may read what needs no token.
    pub fn makes_token(&self) -> bool {
        let is_wanted = !self.has_tokens() && self.anonymous() != Anonymous::Everything;
        is_wanted && (self.insecure || self.is_loopback())
    }

    /// Whether only this machine reaches the address.
    pub fn is_loopback(&self) -> bool {
        self.listen.ip().to_canonical().is_loopback()
    }
}

impl JetStreamSource {
    /// Options of the source; reads the files that contain secrets.
    pub fn options(&self, name: &str) -> Result<source::jetstream::Options, ReadError> {
        let secret = |value: &Option<Secret>, file: &Option<PathBuf>, key: &str| match (value, file)
        {
            (None, Some(path)) => read_secret(&format!("sources.{name}.{key}"), path).map(Some),
            (value, _) => Ok(value.as_deref().map(str::to_owned)),
        };
        Ok(source::jetstream::Options {
            name: name.to_owned(),
            stream: self.stream.clone(),
            servers: self.servers.clone(),
            context: self.context.clone(),
            creds: self.creds.clone(),
            nkey: self.nkey.clone(),
            jwt: self.jwt.clone(),
            user: self.user.clone(),
            password: secret(&self.password, &self.password_file, "password_file")?,
            password_file: self.password_file.clone(),
            token: secret(&self.token, &self.token_file, "token_file")?,
            token_file: self.token_file.clone(),
            tls_ca: self.tls_ca.clone(),
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
            tls_required: self.tls_required,
            tls_first: self.tls_first,
            ignore_discovered_servers: self.ignore_discovered_servers,
            domain: self.domain.clone(),
            api_prefix: self.api_prefix.clone(),
            inbox_prefix: self.inbox_prefix.clone(),
            cloudevents: self.cloudevents,
            on_missing: self.missing,
        })
    }
}

/// Why settings of a source make none.
#[derive(Debug, thiserror::Error)]
pub enum UnusableSource {
    /// A file that they name can't be read.
    #[error(transparent)]
    File(#[from] ReadError),
    /// They contradict each other, or a file is not what it should be.
    #[error(transparent)]
    Setting(#[from] source::jetstream::SetupError),
}

impl Source {
    /// Whether it is a log of the host, and not a stream of a server.
    pub fn is_log(&self) -> bool {
        match self {
            Self::Embedded(_) => true,
            Self::Jetstream(_) => false,
        }
    }

    /// The source as anybody can look at it; none if only a running host can.
    pub fn without_host(&self, name: &str) -> Option<Result<source::Source, UnusableSource>> {
        match self {
            Self::Embedded(_) => None,
            Self::Jetstream(settings) => Some(settings.source(name)),
        }
    }
}

impl JetStreamSource {
    /// The source; reads the files that the settings name, and does not connect yet.
    pub fn source(&self, name: &str) -> Result<source::Source, UnusableSource> {
        let made = source::jetstream::JetStream::new(self.options(name)?)?;
        Ok(source::Source::JetStream(made))
    }
}

impl EmbeddedSource {
    /// Options of the log, with a cache of this many bytes.
    pub fn options(&self, name: &str, cache_bytes: u64) -> log::Options {
        let defaults = log::Options::default();
        log::Options {
            name: name.to_owned(),
            max_age: self.max_age,
            max_bytes: self.max_bytes,
            duplicate_window: self.duplicate_window.unwrap_or(defaults.duplicate_window),
            cache_bytes: usize::try_from(cache_bytes).unwrap_or(usize::MAX),
            ..defaults
        }
    }
}

impl Config {
    /// How the memory is divided.
    pub fn shares(&self) -> Shares {
        let set = |bytes: u64| (bytes > 0).then_some(bytes);
        // 0 means "not set" in the file.
        let total = set(self.limits.memory_bytes).unwrap_or_else(memory::default_total);
        Shares::of(
            total,
            set(self.state.memtable_bytes_total),
            set(self.state.cache_bytes_total),
        )
    }

    /// Options of the engine: `cache_dir` contains compiled code, `compiler` is the program that
    /// compiles.
    pub fn module_options(
        &self,
        cache_dir: PathBuf,
        compiler: PathBuf,
        memory: &Memory,
    ) -> module::Options {
        let modules = &self.modules;
        // Do not promise what no instance can ever get.
        let memory_bytes_max = modules.memory_bytes_max.min(memory.most_of_one());
        module::Options {
            upload_bytes_max: modules.upload_bytes_max,
            check_time_max: modules.check_time_max,
            compile_time_max: modules.compile_time_max,
            code_bytes_max: modules.code_bytes_max,
            compile_memory_max: modules.compile_memory_max,
            memory_bytes: modules.memory_bytes.min(memory_bytes_max),
            memory_bytes_max,
            deadline: modules.deadline,
            deadline_max: modules.deadline_max,
            instances_max: modules.instances_max,
            host_calls_max: modules.host_calls_max,
            log_bytes_max: modules.log_bytes_max,
            value_bytes_max: self.state.value_bytes_max,
            memory: memory.clone(),
            ..module::Options::new(cache_dir, compiler)
        }
    }

    /// Options of a state file, with a cache of this many bytes.
    pub fn state_options(&self, cache_bytes: u64, memory: &Memory) -> state::Options {
        state::Options {
            cache_bytes: usize::try_from(cache_bytes).unwrap_or(usize::MAX),
            value_bytes_max: self.state.value_bytes_max,
            state_bytes_max: self.state.state_bytes_max,
            file_bytes_max: match self.state.file_bytes_max {
                0 => u64::MAX,
                bytes => bytes,
            },
            outbox_entries_max: self.state.outbox_entries_max,
            outbox_bytes_max: self.state.outbox_bytes_max,
            timers_pending_max: self.state.timers_pending_max,
            memory: memory.clone(),
        }
    }

    /// Largest size of a batch: several batches that are read ahead must fit into their share of
    /// the memory.
    pub fn batch_limits(&self) -> batch::Limits {
        // An eighth, so that several batches of several deployments fit.
        let most = usize::try_from(self.shares().read_ahead / 8).unwrap_or(usize::MAX);
        batch::Limits {
            events: self.pipeline.batch_events,
            bytes: self.pipeline.batch_bytes.min(most),
        }
    }
}
