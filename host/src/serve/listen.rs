//! The listening side: TLS or plain, limits of connections and headers, and the
//! graceful end.

use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{future, io};

use axum::Router;
use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use axum_server::{Handle, Server};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::config;

/// Most connections at once; fewer where the process may open fewer than twice as many files.
const CONNECTIONS_MAX: usize = 4_096;
/// Request line and headers together, in bytes, up to twice of it as the buffer grows: keys in addresses may need
/// 3 KiB, tokens 1 KiB.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most headers of a request.
const HEADERS_MAX: usize = 64;
/// How long a client may take over the head of its first request, and over the TLS handshake.
const FIRST_HEAD_TIME_MAX: Duration = Duration::from_secs(15);
/// The same for later requests, and so how long a connection may be idle. Longer than clients keep theirs, mostly: who
/// closes an idle connection just as the other side uses it makes a request fail.
const IDLE_TIME_MAX: Duration = Duration::from_secs(100);
/// How long requests may go on once the host is to stop, if that is not longer than the whole stop may take.
pub(super) const GRACE_MAX: Duration = Duration::from_secs(5);

/// Serves a router until `shutdown`, and then for `grace` what runs.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<RustlsConfig>,
    grace: Duration,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let handle = Handle::<SocketAddr>::new();
    let stop = {
        let handle = handle.clone();
        async move {
            shutdown.cancelled().await;
            handle.graceful_shutdown(Some(grace));
            // The server below ends on its own now; this side must not end before it.
            future::pending::<()>().await;
        }
    };
    let mut server = axum_server::from_tcp(listener)?
        .handle(handle)
        .http1_only()
        .first_request_timeout(FIRST_HEAD_TIME_MAX)
        .accept_error_handler(|address, error| tracing::debug!(?address, %error, "a connection was not accepted"));
    limit_heads(&mut server);
    let gate = Gate { places: Arc::new(Semaphore::new(connections_max())) };
    let app = router.into_make_service();
    match tls {
        None => tokio::select! {
            ended = server.acceptor(gate).serve(app) => ended?,
            () = stop => {}
        },
        Some(tls) => {
            let acceptor = RustlsAcceptor::new(tls).handshake_timeout(FIRST_HEAD_TIME_MAX).acceptor(gate);
            tokio::select! {
                ended = server.acceptor(acceptor).serve(app) => ended?,
                () = stop => {}
            }
        }
    }
    Ok(())
}

fn limit_heads<A>(server: &mut Server<SocketAddr, A>) {
    server
        .http_builder()
        .http1()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .header_read_timeout(IDLE_TIME_MAX);
}

fn connections_max() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    files.map_or(CONNECTIONS_MAX, |files| CONNECTIONS_MAX.min(usize::try_from(files / 2).unwrap_or(usize::MAX)).max(1))
}

/// The TLS settings, where there is a certificate.
pub(super) fn tls(config: &config::Serve) -> Result<Option<RustlsConfig>, Error> {
    let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) else { return Ok(None) };
    let unreadable = |name: &str, file: &std::path::Path, error: &dyn std::fmt::Display| {
        Error::Tls(format!("{name} {}: {error}; it must be a PEM file", file.display()))
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable("serve.tls_cert", cert, &error))?;
    if chain.is_empty() {
        return Err(unreadable("serve.tls_cert", cert, &"there is no certificate in it"));
    }
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("serve.tls_key", key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut settings = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key_der))
        .map_err(|error| Error::Tls(format!("certificate and key do not fit: {error}")))?;
    settings.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(RustlsConfig::from_config(Arc::new(settings))))
}

/// Lets in as many connections as there are places; one more is closed at once.
#[derive(Clone)]
struct Gate {
    places: Arc<Semaphore>,
}

impl<S> Accept<TcpStream, S> for Gate {
    type Stream = Seated;
    type Service = S;
    type Future = future::Ready<io::Result<(Seated, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        future::ready(self.admit(stream).map(|stream| (stream, service)))
    }
}

impl Gate {
    fn admit(&self, stream: TcpStream) -> io::Result<Seated> {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "there are too many connections"));
        };
        // Answers are small and wanted at once.
        stream.set_nodelay(true)?;
        Ok(Seated { stream, _place: place })
    }
}

/// A connection that holds its place.
struct Seated {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Seated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Seated {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
