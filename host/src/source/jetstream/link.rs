//! A connection to a server, and its state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Client, ClientError, ConnectErrorKind, Event, ServerError};
use tokio::sync::watch;

use super::connect::{Settings, delay};
use crate::source::SourceState;
use crate::{advice, descriptors};

/// Longest pause between two attempts to reach a server.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(4);
/// The same for a client that is no longer used: it ends only once it is connected again.
const UNUSED_DELAY: Duration = Duration::from_secs(60);
/// A client that fails to connect again for this long gives way to a new one. That one says in full
/// why it fails; one that was connected before only says that it did.
const AGAIN_MAX: Duration = Duration::from_secs(10);

/// Why a reader can't continue at the moment, though it will try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) state: SourceState,
    pub(super) message: String,
}

impl Trouble {
    /// The connection or the consumer is lost.
    pub(super) fn lost(message: impl Into<String>) -> Self {
        Self {
            state: SourceState::Reconnecting,
            message: message.into(),
        }
    }

    /// The server refuses us.
    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self {
            state: SourceState::Unauthorized,
            message: message.into(),
        }
    }
}

/// What the client last reported.
#[derive(Clone, Debug, Default)]
struct Report {
    /// The credentials were refused; the client would send the same ones again.
    refused: Option<String>,
    /// The last refused permission, and the number of refusals.
    denied: Option<String>,
    denials: u64,
    /// The number of refusals, including irrelevant ones.
    refusals: u64,
    /// A subscription was refused or ended, such as the one through which all answers come. The
    /// client would not subscribe again, even once that is permitted.
    is_deaf: bool,
    /// The last failure to connect.
    failure: Option<String>,
}

/// A connection. Cloning shares it; each clone sees every report.
#[derive(Clone, Debug)]
pub(super) struct Link {
    client: Client,
    report: watch::Receiver<Report>,
    /// Whether permissions that are needed only later were tested.
    is_tried: Arc<AtomicBool>,
    _in_use: Arc<()>,
}

impl Link {
    /// Connects, or returns why it could not.
    pub(super) async fn connect(settings: &Arc<Settings>) -> Result<Self, Trouble> {
        Self::connect_from(settings, None).await
    }

    /// The same; tries the configured servers in their order, from this one on, if there is one.
    pub(super) async fn connect_from(
        settings: &Arc<Settings>,
        first: Option<usize>,
    ) -> Result<Self, Trouble> {
        // It reads files, which may block.
        let reading = Arc::clone(settings);
        let options = tokio::task::spawn_blocking(move || reading.connect_options())
            .await
            .map_err(|error| Trouble::refused(error.to_string()))?
            .map_err(|unusable| Trouble::refused(unusable.to_string()))?;
        let (sender, report) = watch::channel(Report::default());
        let in_use = Arc::new(());
        // Weak, so that the callback does not count as a user.
        let used = Arc::downgrade(&in_use);
        let options = options
            .event_callback(move |event| {
                note(&sender, &event);
                std::future::ready(())
            })
            .reconnect_delay_callback(move |attempt| match used.strong_count() {
                0 => UNUSED_DELAY,
                _ => delay(attempt, RECONNECT_DELAY_MAX),
            });
        let mut servers = settings.servers.clone();
        let options = match first {
            // The client would shuffle them.
            Some(first) => {
                let count = servers.len().max(1);
                servers.rotate_left(first % count);
                options.retain_servers_order()
            }
            None => options,
        };
        // Before the connection: without a descriptor the client's error would say less.
        descriptors::check_spare().map_err(|error| Trouble {
            state: SourceState::Connecting,
            message: format!(
                "cannot connect: {error}; {}",
                advice::of_file(&error).unwrap_or_default()
            ),
        })?;
        let client = options
            .connect(servers)
            .await
            .map_err(|error| match error.kind() {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                    // Some refusals come as another kind of error, and only their words show
                    // them.
                    Trouble::refused(format!("the server refuses the credentials: {error}"))
                }
                _ => {
                    let message = error.to_string();
                    let state = if names_authorization(&message) {
                        SourceState::Unauthorized
                    } else {
                        SourceState::Connecting
                    };
                    Trouble {
                        state,
                        message: format!("cannot connect: {message}"),
                    }
                }
            })?;
        Ok(Self {
            client,
            report,
            is_tried: Arc::default(),
            _in_use: in_use,
        })
    }

    /// The client of this connection.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Whether another one is a clone of it.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self._in_use, &other._in_use)
    }

    /// The number of this connection; consumers created under another number are gone.
    pub(super) fn generation(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// Whether it is up.
    pub(super) fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected && !self.is_gone()
    }

    /// Whether only another connection can help. Either the client has ended, and with it its
    /// callback: it never reconnects, even if the last state that it reported was connected, as
    /// some messages kill it (`rescue`). Or the server has refused one of its subscriptions.
    pub(super) fn is_gone(&self) -> bool {
        // The callback holds the sender, and ends with the client.
        self.report.has_changed().is_err() || self.report.borrow().is_deaf
    }

    /// Waits for the next report, or the end of the client. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        drop(self.report.changed().await);
    }

    /// Waits until it is up, and reports each failure meanwhile. Ends with an
    /// error if the client can't succeed and has to be recreated.
    pub(super) async fn up(&mut self, on_trouble: impl Fn(Trouble)) -> Result<(), Trouble> {
        // From now on, however often it fails in between.
        let until = Instant::now() + AGAIN_MAX;
        loop {
            if self.is_up() {
                return Ok(());
            }
            if self.is_gone() {
                return Err(Trouble::lost("the connection was lost"));
            }
            {
                // The lock of the report is not held across the wait below.
                let report = self.report.borrow_and_update();
                if let Some(message) = &report.refused {
                    return Err(Trouble::refused(format!(
                        "the server refuses the credentials: {message}"
                    )));
                }
                if let Some(message) = &report.failure {
                    on_trouble(Trouble::lost(format!("cannot connect: {message}")));
                }
            }
            if tokio::time::timeout_at(until.into(), self.changed())
                .await
                .is_err()
            {
                let failure = self.report.borrow().failure.clone();
                return Err(Trouble::lost(match failure {
                    Some(message) => format!("cannot connect: {message}"),
                    None => "the connection was lost".to_owned(),
                }));
            }
        }
    }

    /// The number of refused permissions.
    pub(super) fn denials(&self) -> u64 {
        self.report.borrow().denials
    }

    /// Runs a request to its end, and returns whether the server refused anything meanwhile.
    pub(super) async fn is_refused(&mut self, request: impl Future<Output = ()>) -> bool {
        // Before the request, so that a refusal that comes at once counts.
        let before = self.report.borrow().refusals;
        tokio::pin!(request);
        loop {
            // Both arms leave nothing behind when dropped.
            tokio::select! {
                biased;
                () = &mut request => return self.report.borrow().refusals > before,
                () = self.changed() => {}
            }
            let refused = self.report.borrow().refusals > before;
            // A refused request gets no answer, so there is nothing more to wait for.
            if refused || !self.is_up() {
                return refused;
            }
        }
    }

    /// Whether permissions that are needed only later were tested on this connection.
    pub(super) fn is_tried(&self) -> bool {
        self.is_tried.load(Ordering::Relaxed)
    }

    /// Records that they were tested.
    pub(super) fn set_tried(&self) {
        self.is_tried.store(true, Ordering::Relaxed);
    }

    /// The latest permission refused since there were `denials` of them.
    pub(super) fn denied_since(&self, denials: u64) -> Option<Trouble> {
        let report = self.report.borrow();
        let message = report
            .denied
            .as_ref()
            .filter(|_| report.denials > denials)?;
        Some(Trouble::refused(format!(
            "the server refuses a permission: {message}; grant it to this user"
        )))
    }

    /// Runs a call to its end, or until the server refuses a permission: it
    /// doesn't answer such a call, it only reports the refusal.
    pub(super) async fn permitted<T>(
        &mut self,
        call: impl Future<Output = T>,
    ) -> Result<T, Trouble> {
        // Both as of before the call.
        let denials = self.denials();
        let generation = self.generation();
        tokio::pin!(call);
        loop {
            // Both arms leave nothing behind when dropped.
            tokio::select! {
                biased;
                result = &mut call => return Ok(result),
                () = self.changed() => {
                    if let Some(trouble) = self.denied_since(denials) {
                        return Err(trouble);
                    }
                    // The answer would have come over the lost connection.
                    if !self.is_up() || self.generation() != generation {
                        return Err(Trouble::lost("the connection was lost"));
                    }
                }
            }
        }
    }
}

fn note(sender: &watch::Sender<Report>, event: &Event) {
    sender.send_modify(|report| match event {
        Event::Connected => {
            // The server has accepted the credentials.
            report.failure = None;
            report.refused = None;
        }
        Event::ServerError(ServerError::AuthorizationViolation) => {
            report.refused = Some(event.to_string());
        }
        // Deleting our own consumer is optional; the server would remove it on its own.
        Event::ServerError(ServerError::Other(message))
            if is_denial(message) && message.contains(".CONSUMER.DELETE.") =>
        {
            report.refusals += 1;
        }
        Event::ServerError(ServerError::Other(message)) if is_denial(message) => {
            report.denied = Some(message.clone());
            report.denials += 1;
            report.refusals += 1;
            report.is_deaf |= is_of_subscription(message);
        }
        Event::ServerError(ServerError::Other(message)) if names_authorization(message) => {
            report.refused = Some(message.clone());
        }
        Event::ServerError(ServerError::Other(message)) => report.failure = Some(message.clone()),
        Event::ClientError(ClientError::Other(message)) if names_authorization(message) => {
            report.refused = Some(message.clone());
        }
        Event::ClientError(ClientError::Other(message)) => report.failure = Some(message.clone()),
        // Waking the waiting tasks is enough: they check the connection itself.
        _ => {}
    });
}

fn is_denial(message: &str) -> bool {
    message
        .to_ascii_lowercase()
        .starts_with("permissions violation")
}

/// Whether a refused permission is one to subscribe: `Permissions Violation for Subscription to
/// "_INBOX.…"`. The server sends it for a new subscription, and for one that it ends because the
/// permission was taken away.
fn is_of_subscription(message: &str) -> bool {
    message.to_ascii_lowercase().contains("for subscription to")
}

/// Whether a message of the server or the client is about credentials, such as `Authorization
/// Violation`, `User Authentication Expired` or `failed signing nonce`.
fn names_authorization(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["authorization", "authentication", "signing nonce"]
        .iter()
        .any(|word| message.contains(word))
}
