//! A host in this process, for `serve`, `dev` and `demo`.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::client::{Client, Connection};
use super::exit::{Exit, Failure, message_of};
use super::log_writer::{self, LogWriter};
use super::output::Output;
use crate::access;
use crate::cli::BLOCKING_THREADS_MAX;
use crate::config::{Config, LogFormat};
use crate::host::{self, Host};
use crate::precedence;
use crate::serve;

/// How much longer than the host's own budget a stop may take before we give up: running requests
/// have 5 s to end.
const STOP_GRACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Server {
    pub url: String,
    config: Arc<Config>,
    entrance: serve::Entrance,
    deployments: usize,
    task: JoinHandle<Result<(), serve::Error>>,
    shutdown: CancellationToken,
    _serving: Threads,
    /// The token that the host made for itself, if none is configured.
    made_token: Option<PathBuf>,
    /// Tells commands of this user of that token.
    _note: Option<access::Note>,
}

impl Server {
    /// Binds, answers probes, starts the host, and then answers everything.
    pub(crate) async fn start(mut config: Config) -> anyhow::Result<Self> {
        // Before anything listens: without a token nobody may be let in.
        let made_token = access::complete(&mut config)?;
        let listener = bind(config.serve.listen)?;
        let address = listener
            .local_addr()
            .context("cannot get the address of the listener")?;
        let scheme = if config.serve.tls_cert.is_some() {
            "https"
        } else {
            "http"
        };
        let config = Arc::new(config);
        let shutdown = CancellationToken::new();
        let entrance = serve::Entrance::new(&listener, Arc::clone(&config), shutdown.clone())?;
        // Known from the moment at which it answers, so that commands need no token of the user's.
        let note = made_token
            .as_ref()
            .and_then(|file| access::announce(address, file));
        // From here on it answers probes, however long opening the files takes.
        let threads = Threads::new()?;
        let serving = threads.spawn(entrance.clone().serve(listener));
        let host = Host::start(Arc::clone(&config)).await.map_err(|error| {
            // Probes were answered already; they must end with a host that does not start.
            shutdown.cancel();
            let is_in_use = error.is_in_use();
            let mut error = anyhow::Error::from(error);
            // Texts of errors name files within the folder.
            if matches!(
                error.downcast_ref(),
                Some(host::Error::State(_) | host::Error::Log(_))
            ) {
                error = error.context(format!("data folder {}", config.data_dir.display()));
            }
            // A restart is useless while the other host runs.
            if is_in_use {
                Failure::new(Exit::Refused, message_of(&error)).into()
            } else {
                error
            }
        })?;
        entrance.open(host.clone());
        let deployments = host.deployments().len();
        // Waits for both ends: see `run`.
        let task = tokio::spawn(run(serving, host, shutdown.clone()));
        Ok(Self {
            url: format!("{scheme}://{address}"),
            config,
            entrance,
            deployments,
            task,
            shutdown,
            _serving: threads,
            made_token,
            _note: note,
        })
    }

    /// The file of the token that the host made for itself, if none is configured.
    pub(crate) fn made_token(&self) -> Option<&Path> {
        self.made_token.as_deref()
    }

    /// How many deployments it had at its start.
    pub(crate) fn deployments(&self) -> usize {
        self.deployments
    }

    /// Reloads tokens and certificate at each SIGHUP, and those parts of the configuration that can
    /// change while it runs. A configuration that can't be read changes nothing.
    pub(crate) fn reload_on(
        &self,
        mut hangups: Hangups,
        reread: impl Fn() -> anyhow::Result<Config> + Send + 'static,
    ) {
        let (entrance, shutdown) = (self.entrance.clone(), self.shutdown.clone());
        let (level, makes_token) = (self.config.log.level.clone(), self.made_token.is_some());
        tokio::spawn(async move {
            let mut level = level;
            // SIGHUP may come any number of times; the end of the host ends the wait.
            while shutdown
                .run_until_cancelled(hangups.0.recv())
                .await
                .flatten()
                .is_some()
            {
                tracing::info!("SIGHUP: reloading the configuration, tokens and certificate");
                let complete = |mut config| {
                    // A host whose tokens were configured is not opened by a file that lacks them.
                    makes_token
                        .then(|| access::complete(&mut config))
                        .transpose()?;
                    Ok(config)
                };
                let config = match reread().and_then(complete) {
                    Ok(config) => config,
                    Err(error) => {
                        let error = super::exit::message_of(&error);
                        tracing::error!(
                            error,
                            "cannot reload the configuration; the old one stays in use"
                        );
                        continue;
                    }
                };
                // Only if it changed: setting it again would undo nothing, but log a change.
                if config.log.level != level {
                    level.clone_from(&config.log.level);
                    set_level(&level);
                }
                let entrance = entrance.clone();
                // Reads files, so not on a thread of the runtime.
                let reload = move || entrance.reload(&config.serve);
                if let Err(error) = tokio::task::spawn_blocking(reload).await {
                    tracing::error!(%error, "reloading tokens and certificate failed");
                }
            }
        });
    }

    /// The configuration with which it started.
    pub(crate) fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// A client of it.
    pub(crate) fn client(&self, output: Output) -> anyhow::Result<Client> {
        let token = self.config.serve.bearer_token()?;
        // As for a command: a host that trusts its own certificate only can be reached from here.
        let ca = self.config.serve.tls_cert.as_deref();
        Ok(Client::new(
            &Connection {
                url: self.url.clone(),
                token,
            },
            ca,
            output,
        )?)
    }

    /// Waits until the host ends on its own, which happens only if it fails.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<()> {
        (&mut self.task)
            .await
            .context("the server ended in a panic; please report it")?
            .map_err(Into::into)
    }

    /// Stops it gracefully: finishes batches and flushes state.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        let budget = self.config.pipeline.stop_budget + STOP_GRACE;
        tokio::time::timeout(budget, self.ended()).await.unwrap_or_else(|_| {
            let message = format!(
                "the host did not stop within {} s; what was not flushed is applied again at the \
                 next start",
                budget.as_secs()
            );
            Err(Failure::new(Exit::TimedOut, message).into())
        })
    }
}

/// The threads that answer requests. They do nothing else, so that the system's scheduler, which is
/// fair, lets them run at once even if reading and folding a stream takes all cores.
#[derive(Debug)]
struct Threads(Option<Runtime>);

impl Threads {
    fn new() -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("serve")
            .on_thread_start(precedence::answer_first)
            .build()
            .context("cannot start the threads that answer requests")?;
        Ok(Self(Some(runtime)))
    }

    fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0
            .as_ref()
            .expect("they end with their owner only")
            .spawn(task)
    }
}

impl Drop for Threads {
    /// A runtime must not be dropped within another, as that waits for its threads.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Serves until the end, and then lets the host finish its work. Both begin to stop at once:
/// requests and batches do not wait for each other.
async fn run(
    serving: JoinHandle<Result<(), serve::Error>>,
    host: Host,
    shutdown: CancellationToken,
) -> Result<(), serve::Error> {
    let stop = async {
        shutdown.cancelled().await;
        host.stop().await;
    };
    let serving = async {
        let result = serving.await;
        // If the server fails, the host stops too.
        shutdown.cancel();
        result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    };
    let (result, ()) = tokio::join!(serving, stop);
    result
}

/// Makes everything that this process writes from now on readable by this user only. Not for `dev`,
/// whose builds write into a crate.
pub(crate) fn keep_files_private() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    bound.map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "is another host running there? stop it, or choose another with --listen"
            }
            std::io::ErrorKind::PermissionDenied => "choose a port above 1023 with --listen",
            _ => "choose another with --listen",
        };
        Failure::new(
            Exit::Failed,
            format!("cannot listen on {address}: {error}; {hint}"),
        )
        .into()
    })
}

/// The configured address if it is free, otherwise any free port: for users who only want to try
/// something.
pub(crate) fn free_address(wanted: SocketAddr) -> SocketAddr {
    match TcpListener::bind(wanted) {
        // The listener is closed at once; another program may take the port before the host does.
        Ok(_) => wanted,
        Err(_) => SocketAddr::new(wanted.ip(), 0),
    }
}

/// Replaces the filter of our own log.
static SET_FILTER: OnceLock<Box<dyn Fn(EnvFilter) -> bool + Send + Sync>> = OnceLock::new();

/// Changes the level of our own log while it runs.
fn set_level(level: &str) {
    match EnvFilter::try_new(quieted(level)) {
        Ok(filter) => {
            if SET_FILTER.get().is_some_and(|set| set(filter)) {
                tracing::info!(level, "log level changed");
            }
        }
        Err(error) => {
            tracing::error!(%error, "log.level is not a valid filter; the old one stays in use");
        }
    }
}

/// SIGHUP, which no longer ends the process.
#[derive(Debug)]
pub(crate) struct Hangups(Signal);

impl Hangups {
    /// Catches SIGHUP. Call it before anything else, because an earlier SIGHUP ends the process.
    pub(crate) fn catch() -> anyhow::Result<Self> {
        // A limit on the size of files (`ulimit -f`, `LimitFSIZE=`) ends a process that has no
        // handler of its signal. With one, the write fails as on a full disk. The handler stays
        // when this is dropped.
        drop(signal(SignalKind::from_raw(libc::SIGXFSZ)).context("cannot handle SIGXFSZ")?);
        Ok(Self(
            signal(SignalKind::hangup()).context("cannot handle SIGHUP")?,
        ))
    }
}

/// When dropped, writes the lines that still wait: the end of the process would lose them.
#[derive(Debug)]
#[must_use]
pub(crate) struct LogEnd;

impl Drop for LogEnd {
    fn drop(&mut self) {
        log_writer::running().into_iter().for_each(LogWriter::flush);
    }
}

/// Sends our own log to standard error. Keep the returned value for as long as anything is logged.
pub(crate) fn start_log(config: &Config, output: Output) -> anyhow::Result<LogEnd> {
    let level = if output.verbose {
        "debug"
    } else {
        &config.log.level
    };
    let filter = EnvFilter::try_new(quieted(level)).context("log.level is not a valid filter")?;
    let writer = log_writer::run().context("cannot start the thread that writes the log")?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer.clone());
    // Each format has its own type of handle.
    let started = match config.log.format {
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = SET_FILTER.set(Box::new(move |filter: EnvFilter| {
                handle.reload(filter).is_ok()
            }));
            builder.try_init()
        }
        LogFormat::Text => {
            let builder = builder
                .with_ansi(output.paints())
                .with_target(false)
                .with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = SET_FILTER.set(Box::new(move |filter: EnvFilter| {
                handle.reload(filter).is_ok()
            }));
            builder.try_init()
        }
    };
    started
        .map(|()| LogEnd)
        .map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))
}

/// A filter that hides the client library's messages about each attempt to connect, unless the user
/// asks for them: the host itself reports a lost source, once and by name.
fn quieted(level: &str) -> String {
    let is_plain = level
        .split(',')
        .any(|directive| directive.trim().eq_ignore_ascii_case("info"));
    if is_plain && !level.contains("async_nats") {
        format!("{level},async_nats=warn")
    } else {
        level.to_owned()
    }
}

/// Resolves at the first SIGINT or SIGTERM; a second one ends the process at once.
pub(crate) async fn stop_signal() -> anyhow::Result<()> {
    Stops::catch()?.first().await;
    Ok(())
}

/// SIGINT and SIGTERM, which end nothing by themselves from now on.
#[derive(Debug)]
pub(crate) struct Stops {
    interrupt: Signal,
    terminate: Signal,
}

impl Stops {
    /// Catches them. To be made before anything that takes its time: the first process of a
    /// container never gets one that it does not catch.
    pub(crate) fn catch() -> anyhow::Result<Self> {
        let interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
        let terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
        Ok(Self {
            interrupt,
            terminate,
        })
    }

    /// Does something unless a signal comes first; nothing if one does.
    pub(crate) async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        // A signal drops the work where it waits, so callers pass only what may end there.
        tokio::select! {
            done = work => Some(done),
            () = self.next() => None,
        }
    }

    /// Resolves at the first of them; from then on a second one ends the process at once.
    pub(crate) async fn first(mut self) {
        self.next().await;
        tokio::spawn(async move {
            // A user who signals twice does not want to wait. Everything durable stays durable.
            let code = tokio::select! {
                _ = self.interrupt.recv() => 130,
                _ = self.terminate.recv() => 143,
            };
            // `exit` drops nothing: the lines that wait are written here.
            drop(LogEnd);
            #[expect(clippy::disallowed_methods, reason = "a second signal asks for this")]
            std::process::exit(code);
        });
    }

    async fn next(&mut self) {
        // Both signals ask for the same.
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_library_is_quiet_unless_more_is_asked_for() {
        assert_eq!(quieted("info"), "info,async_nats=warn");
        assert_eq!(
            quieted("info,foldstream=debug"),
            "info,foldstream=debug,async_nats=warn"
        );
        for asked in ["debug", "trace", "info,async_nats=info", "foldstream=debug"] {
            assert_eq!(quieted(asked), asked);
        }
    }
}
