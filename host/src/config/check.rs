//! Checks a configuration: limits that contradict each other, missing files, addresses that expose
//! the host. Every finding names its key and says what to do.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use super::{Anonymous, Config, Serve, SourceSettings};
use crate::settings::{Findings, Problem, Setting};

/// Shortest token that causes no warning, in bytes.
const TOKEN_BYTES_MIN: usize = 16;
/// Largest batch: the most entries that a guest can write back in one call of the contract.
const BATCH_EVENTS_MAX: usize = 65_536;
/// Most concurrent queries that a configuration may allow: each takes a thread, and the host has
/// this many for them.
pub const QUERIES_MAX: usize = 1_024;
/// Instances that should remain for queries and candidates when the host has as many deployments as
/// allowed.
const INSTANCES_FOR_QUERIES: usize = 64;
/// An older memtable makes the replay after a crash noticeably long.
const FLUSH_INTERVAL_USUAL_MAX: Duration = Duration::from_secs(60);
/// Longest name of a source, in bytes.
const NAME_BYTES_MAX: usize = 63;

impl Config {
    /// All findings, errors and warnings.
    pub fn problems(&self) -> Vec<Problem> {
        let mut findings = Findings::default();
        check_data_dir(&mut findings, &self.data_dir);
        check_serve(&mut findings, &self.serve);
        self.check_modules(&mut findings);
        self.check_state(&mut findings);
        self.check_pipeline(&mut findings);
        for (name, source) in &self.sources {
            check_source(&mut findings, name, source);
        }
        findings.positive("rollout.attempts", self.rollout.attempts);
        findings.positive("limits.deployments", self.limits.deployments);
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.level) {
            findings.error(
                "log.level",
                format!(
                    "`{}` is not a filter ({error}); write `info`, `debug` or `foldstream=debug`",
                    self.log.level
                ),
            );
        }
        findings.into_problems()
    }

    fn check_modules(&self, findings: &mut Findings) {
        let modules = &self.modules;
        findings.positive("modules.upload_bytes_max", modules.upload_bytes_max);
        findings.positive("modules.check_time_max", modules.check_time_max);
        findings.positive("modules.code_bytes_max", modules.code_bytes_max);
        findings.positive("modules.compile_time_max", modules.compile_time_max);
        findings.positive("modules.compile_memory_max", modules.compile_memory_max);
        findings.positive("modules.memory_bytes", modules.memory_bytes);
        findings.positive("modules.deadline", modules.deadline);
        findings.positive("modules.instances_max", modules.instances_max);
        findings.positive("modules.host_calls_max", modules.host_calls_max);
        // One instance for each deployment, and some for what comes in addition.
        let wanted = self
            .limits
            .deployments
            .saturating_add(INSTANCES_FOR_QUERIES);
        if modules.instances_max > 0 && (modules.instances_max as usize) < wanted {
            findings.warning(
                "modules.instances_max",
                format!(
                    "leaves fewer than {INSTANCES_FOR_QUERIES} instances for queries and rebuilds in \
                     addition to limits.deployments; raise it to {wanted}, or lower the other"
                ),
            );
        }
        findings.ordered(
            ("modules.memory_bytes", modules.memory_bytes),
            ("modules.memory_bytes_max", modules.memory_bytes_max),
        );
        findings.ordered(
            ("modules.deadline", modules.deadline),
            ("modules.deadline_max", modules.deadline_max),
        );
    }

    fn check_state(&self, findings: &mut Findings) {
        let state = &self.state;
        findings.positive("state.flush_interval", state.flush_interval);
        findings.positive("state.memtable_bytes", state.memtable_bytes);
        findings.positive("state.value_bytes_max", state.value_bytes_max);
        findings.positive("state.state_bytes_max", state.state_bytes_max);
        findings.positive("state.outbox_entries_max", state.outbox_entries_max);
        findings.positive("state.outbox_bytes_max", state.outbox_bytes_max);
        findings.positive("state.parked_keys_max", state.parked_keys_max);
        findings.positive("state.parked_events_max", state.parked_events_max);
        findings.positive("state.parked_bytes_max", state.parked_bytes_max);
        findings.positive("state.timers_pending_max", state.timers_pending_max);
        findings.positive("state.timers_in_a_row_max", state.timers_in_a_row_max);
        if state.memtable_bytes_total > 0 {
            findings.ordered(
                ("state.memtable_bytes", state.memtable_bytes),
                ("state.memtable_bytes_total", state.memtable_bytes_total),
            );
        }
        let total = self.limits.memory_bytes;
        let set = state
            .memtable_bytes_total
            .saturating_add(state.cache_bytes_total);
        // The other shares of the memory come out of the rest.
        if total > 0 && set > total / 2 {
            findings.warning(
                "limits.memory_bytes",
                "leaves less than half for modules after state.memtable_bytes_total and \
                 state.cache_bytes_total; raise it, or lower the others",
            );
        }
        findings.ordered(
            ("state.value_bytes_max", state.value_bytes_max as u64),
            ("state.state_bytes_max", state.state_bytes_max),
        );
        if state.flush_interval > FLUSH_INTERVAL_USUAL_MAX {
            findings.warning(
                "state.flush_interval",
                "is longer than a minute: after a crash the events of that time are applied again \
                 before reads are answered; 1s is usual",
            );
        }
    }

    fn check_pipeline(&self, findings: &mut Findings) {
        let pipeline = &self.pipeline;
        findings.positive("pipeline.batch_events", pipeline.batch_events);
        findings.positive("pipeline.batch_bytes", pipeline.batch_bytes);
        findings.positive("pipeline.attempts", pipeline.attempts);
        findings.positive("pipeline.initial_backoff", pipeline.initial_backoff);
        if pipeline.retry_percent > 100 {
            findings.error(
                "pipeline.retry_percent",
                "is more than 100; 20 is usual".to_owned(),
            );
        }
        findings.positive("pipeline.stop_budget", pipeline.stop_budget);
        if pipeline.batch_events > BATCH_EVENTS_MAX {
            findings.error(
                "pipeline.batch_events",
                format!("is more than {BATCH_EVENTS_MAX}; 2048 is usual"),
            );
        }
        findings.ordered(
            ("pipeline.initial_backoff", pipeline.initial_backoff),
            ("pipeline.max_backoff", pipeline.max_backoff),
        );
        if !pipeline.stop_budget.is_zero() && pipeline.stop_budget < self.modules.deadline {
            findings.warning(
                "pipeline.stop_budget",
                "is shorter than modules.deadline: a stop may cut off a running batch, which is \
                 then applied again",
            );
        }
    }
}

fn check_data_dir(findings: &mut Findings, folder: &Path) {
    let empty = folder.as_os_str().is_empty();
    if empty {
        findings.error("data_dir", "is empty; give a folder");
        return;
    }
    match std::fs::metadata(folder) {
        Ok(metadata) if !metadata.is_dir() => {
            findings.error(
                "data_dir",
                format!("{} is not a folder; give another one", folder.display()),
            );
        }
        Ok(metadata) if metadata.permissions().readonly() => {
            findings.error(
                "data_dir",
                format!(
                    "{} is not writable; change its permissions",
                    folder.display()
                ),
            );
        }
        Ok(_) if is_read_only(folder) => refuse_read_only(findings, folder),
        Ok(metadata) if metadata.permissions().mode() & 0o007 != 0 => {
            let (path, mode) = (folder.display(), metadata.permissions().mode() & 0o777);
            findings.warning(
                "data_dir",
                format!(
                    "{path} is open to every user of this machine (mode {mode:03o}); chmod o= \
                         {path}"
                ),
            );
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // It will be made.
            if is_read_only(folder) {
                refuse_read_only(findings, folder);
            }
        }
        Err(error) => findings.error(
            "data_dir",
            format!("cannot use {}: {error}", folder.display()),
        ),
    }
}

/// Whether a folder, or the nearest one above it that exists, is on a file system that cannot be
/// written. Permissions are not looked at: the host may run as another user than this check.
fn is_read_only(folder: &Path) -> bool {
    use rustix::fs::{Access, access};

    let mut all = folder.ancestors().map(|folder| {
        // A relative path begins in the current folder.
        if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        }
    });
    let nearest = all.find(|folder| folder.exists());
    nearest.is_some_and(|folder| access(folder, Access::WRITE_OK) == Err(rustix::io::Errno::ROFS))
}

fn refuse_read_only(findings: &mut Findings, folder: &Path) {
    findings.error(
        "data_dir",
        format!(
            "the file system of {} is read-only, and a host writes; mount it so that it can be \
             written, or give another folder",
            folder.display()
        ),
    );
}

fn check_serve(findings: &mut Findings, serve: &Serve) {
    findings.positive("serve.request_timeout", serve.request_timeout);
    findings.positive("serve.body_bytes_max", serve.body_bytes_max);
    findings.positive("serve.watches_max", serve.watches_max);
    findings.positive("serve.queries_max", serve.queries_max);
    if serve.queries_max > QUERIES_MAX {
        findings.error(
            "serve.queries_max",
            format!("is more than {QUERIES_MAX}; each takes a thread, and 64 is usual"),
        );
    }
    // Equal would leave no time for the answer.
    if serve.wait_max >= serve.request_timeout && !serve.request_timeout.is_zero() {
        findings.error(
            "serve.wait_max",
            "is not less than serve.request_timeout, which would end the wait first; lower it, or \
             raise the other",
        );
    }
    findings.either(
        Setting::of("serve.token", &serve.token),
        Setting::of("serve.token_file", &serve.token_file),
    );
    findings.together(
        Setting::of("serve.tls_cert", &serve.tls_cert),
        Setting::of("serve.tls_key", &serve.tls_key),
    );
    findings.file("serve.token_file", serve.token_file.as_deref());
    findings.file("serve.tokens_file", serve.tokens_file.as_deref());
    findings.file("serve.tls_cert", serve.tls_cert.as_deref());
    findings.file("serve.tls_key", serve.tls_key.as_deref());
    match serve.token.as_deref() {
        Some(token) if token.trim().is_empty() => {
            findings.error("serve.token", "is empty; remove it or set one");
        }
        Some(token) if !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            findings.error(
                "serve.token",
                "has characters that an HTTP header cannot carry; use printable ASCII without \
                 spaces",
            );
        }
        Some(token) if token.len() < TOKEN_BYTES_MIN => {
            findings.error(
                "serve.token",
                format!(
                    "has fewer than {TOKEN_BYTES_MIN} characters and may be guessed; create one \
                     with `openssl rand -hex 32`"
                ),
            );
        }
        _ => {}
    }
    check_names(findings, serve);
    check_exposure(findings, serve);
}

/// Names that are compared with headers of requests must be written in the form of those headers.
fn check_names(findings: &mut Findings, serve: &Serve) {
    for host in &serve.hosts {
        let is_name = !host.is_empty()
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        if !is_name {
            findings.error(
                "serve.hosts",
                format!("`{host}` is not a host name; write it without scheme and port"),
            );
        }
    }
    for origin in &serve.origins {
        let (scheme, rest) = origin.split_once("://").unwrap_or_default();
        let is_origin = matches!(scheme, "http" | "https")
            && !rest.is_empty()
            && rest
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
        if !is_origin {
            findings.error(
                "serve.origins",
                format!(
                    "`{origin}` is not an origin; write only scheme, host and an optional \
                         port, such as https://app.example"
                ),
            );
        }
    }
}

/// Loopback is the default; any other address needs TLS and a token, or `insecure`.
fn check_exposure(findings: &mut Findings, serve: &Serve) {
    let has_token = serve.has_tokens();
    let has_tls = serve.tls_cert.is_some() && serve.tls_key.is_some();
    // Only this machine reaches it, so neither TLS nor a token is required.
    if serve.is_loopback() {
        if serve.insecure {
            findings.warning(
                "serve.insecure",
                "has no effect with a loopback address; remove it",
            );
        }
        return;
    }
    let address = serve.listen;
    // Also with a token: `everything` means that none is needed.
    if !serve.insecure && serve.anonymous == Some(Anonymous::Everything) {
        let message = format!(
            "everyone who reaches {address} could deploy code; set \"read\" or \"nothing\", or \
             listen on 127.0.0.1"
        );
        findings.error("serve.anonymous", message);
        return;
    }
    if serve.anonymous == Some(Anonymous::Read) {
        findings.warning(
            "serve.anonymous",
            format!("everyone who reaches {address} may read everything"),
        );
    }
    let missing = match (has_tls, has_token) {
        (true, true) => return,
        (false, true) => "TLS (serve.tls_cert and serve.tls_key)",
        (true, false) => "a token (serve.tokens_file)",
        (false, false) => "TLS (serve.tls_cert and serve.tls_key) and a token (serve.tokens_file)",
    };
    if serve.insecure {
        findings.warning(
            "serve.insecure",
            format!("{address} can be reached from outside without {missing}"),
        );
        return;
    }
    findings.error(
        "serve.listen",
        format!(
            "{address} can be reached from outside and needs {missing}; set it, listen on \
                 127.0.0.1, or accept the risk with --insecure"
        ),
    );
}

fn check_source(findings: &mut Findings, name: &str, source: &SourceSettings) {
    let sound = name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_');
    if !sound {
        findings.error(
            format!("sources.{name}"),
            format!(
                "a source's name has 1 to {NAME_BYTES_MAX} lower-case letters, digits, hyphens and \
                 underscores, a letter first"
            ),
        );
    }
    source.check(findings, name);
}
