//! Tokens and certificate of a running server, and how they are reloaded: on SIGHUP, and when their
//! files change.
//!
//! If new ones can't be used, the old tokens and certificate stay in use, and the log says why.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum_server::tls_rustls::RustlsConfig;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::certificate::{self, Validity};
use super::tokens::Tokens;
use super::{Error, auth};
use crate::config::{self, Anonymous};

/// How often to check whether a file changed. Watching folders would miss files that are replaced
/// through links, as orchestrators do.
const LOOK: Duration = Duration::from_secs(2);

/// Who is let in.
#[derive(Clone)]
pub(super) struct Admission {
    /// The tokens that count; none if none is configured.
    pub(super) tokens: Option<Arc<Tokens>>,
    /// What a request without a token may do.
    pub(super) anonymous: Anonymous,
}

/// Tokens and certificate. Cloning shares them.
#[derive(Clone)]
pub(super) struct Secrets(Arc<Shared>);

/// No task holds two of its locks at a time.
struct Shared {
    address: std::net::SocketAddr,
    /// The settings they are loaded from.
    config: Mutex<config::Serve>,
    /// Requests that are being answered hear of each change.
    admission: watch::Sender<Admission>,
    tls: Option<RustlsConfig>,
    validity: Mutex<Option<Validity>>,
    /// The state of the files when they were last read.
    seen: Mutex<Vec<FileStamp>>,
}

/// Metadata that shows whether a file changed.
type FileStamp = (PathBuf, Option<(u64, u64, i64, i64)>);

impl fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(config::REDACTED)
    }
}

impl Admission {
    /// A server that nobody gave a token, such as one within a test, lets everyone do everything
    /// unless its settings say otherwise.
    fn new(config: &config::Serve) -> Result<Self, Error> {
        let tokens = Tokens::configured(config)?.map(Arc::new);
        let usual = if tokens.is_some() {
            Anonymous::Nothing
        } else {
            Anonymous::Everything
        };
        Ok(Self {
            tokens,
            anonymous: config.anonymous.unwrap_or(usual),
        })
    }
}

impl Secrets {
    /// Loads them for the first time.
    pub(super) fn new(
        config: &config::Serve,
        address: std::net::SocketAddr,
    ) -> Result<Self, Error> {
        // The metadata is taken before the files are read, so that a change in between is noticed.
        let seen = look(config);
        let admission = Admission::new(config)?;
        let certificate = certificate::read(config)?;
        Ok(Self(Arc::new(Shared {
            address,
            config: Mutex::new(config.clone()),
            admission: watch::Sender::new(admission),
            validity: Mutex::new(certificate.as_ref().map(|certificate| certificate.validity)),
            tls: certificate.map(|certificate| RustlsConfig::from_config(certificate.settings)),
            seen: Mutex::new(seen),
        })))
    }

    /// Who is let in now.
    pub(super) fn admission(&self) -> Admission {
        self.0.admission.borrow().clone()
    }

    /// Who is let in, now and after each reload.
    pub(super) fn admissions(&self) -> watch::Receiver<Admission> {
        self.0.admission.subscribe()
    }

    /// The TLS settings, which follow the certificate.
    pub(super) fn tls(&self) -> Option<RustlsConfig> {
        self.0.tls.clone()
    }

    /// When the certificate is valid.
    pub(super) fn validity(&self) -> Option<Validity> {
        *self.0.validity.lock()
    }

    /// Reloads everything from the files that the settings name. Blocking.
    pub(super) fn reload(&self, config: &config::Serve) {
        // As in `new`: a change while they are read is seen at the next look.
        let seen = look(config);
        // One after the other: a certificate that can't be read keeps no token from being
        // withdrawn.
        if let Err(error) = self.take_tokens(config) {
            tracing::error!(%error, "cannot reload the tokens; the old ones stay in use");
        }
        if let Err(error) = self.take_certificate(config) {
            tracing::error!(%error, "cannot reload the certificate; the old one stays in use");
        }
        // Also after an error, or each look would try the same files again.
        *self.0.config.lock() = config.clone();
        *self.0.seen.lock() = seen;
    }

    fn take_tokens(&self, config: &config::Serve) -> Result<(), Error> {
        // The new settings may lack what the address requires.
        auth::check_address(config, self.0.address)?;
        let admission = Admission::new(config)?;
        // A mistake in a file must not open the host.
        if admission.tokens.is_none() && self.0.admission.borrow().tokens.is_some() {
            let detail = "the settings no longer have one, which would let everyone in; restart \
                          the host if you want that";
            return Err(Error::Token(detail.to_owned()));
        }
        let count = admission.tokens.as_ref().map_or(0, |tokens| tokens.count());
        // Not `send`: also if no request is being answered.
        self.0.admission.send_replace(admission);
        tracing::info!(count, "tokens reloaded");
        Ok(())
    }

    fn take_certificate(&self, config: &config::Serve) -> Result<(), Error> {
        let (Some(tls), Some(new)) = (&self.0.tls, certificate::read(config)?) else {
            return match (&self.0.tls, config.tls_cert.is_some()) {
                (None, false) => Ok(()),
                _ => Err(Error::Tls(
                    "restart the host to enable or disable TLS".to_owned(),
                )),
            };
        };
        let Validity { begin, end } = new.validity;
        // Clients would refuse it, while they still accept the old one.
        if end < jiff::Timestamp::now() {
            return Err(Error::Tls(format!(
                "the new certificate expired at {end}; renew it"
            )));
        }
        tls.reload_from_config(new.settings);
        *self.0.validity.lock() = Some(new.validity);
        tracing::info!(%begin, %end, "certificate reloaded");
        Ok(())
    }

    /// Reloads whenever a file changes, until the shutdown.
    pub(super) async fn follow(self, shutdown: CancellationToken) {
        while shutdown
            .run_until_cancelled(tokio::time::sleep(LOOK))
            .await
            .is_some()
        {
            // Files are read on a blocking thread.
            let secrets = self.clone();
            let work = move || {
                let config = secrets.0.config.lock().clone();
                let changed = *secrets.0.seen.lock() != look(&config);
                if changed {
                    secrets.reload(&config);
                }
            };
            if let Err(error) = tokio::task::spawn_blocking(work).await {
                tracing::error!(%error, "checking tokens and certificate for changes failed");
            }
        }
    }
}

/// The current state of the files in the settings.
fn look(config: &config::Serve) -> Vec<FileStamp> {
    let files = [
        &config.token_file,
        &config.tokens_file,
        &config.tls_cert,
        &config.tls_key,
    ];
    let stamp = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok();
        let seen =
            metadata.map(|found| (found.ino(), found.len(), found.mtime(), found.mtime_nsec()));
        (path.clone(), seen)
    };
    files.into_iter().flatten().map(stamp).collect()
}
