//! Converts the configuration into options for the parts of the host.

use std::path::PathBuf;

use super::{Anonymous, Config, ReadError, Serve};
use crate::memory::{self, Memory, Shares};
use crate::settings::read_opened_secret;
use crate::small_file::open_regular;
use crate::{batch, module, state};

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
            timers_in_a_row_max: self.state.timers_in_a_row_max,
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
