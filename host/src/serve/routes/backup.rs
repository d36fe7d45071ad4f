//! A backup: the data folder of the running host, as of one moment.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::backup::{Error, MEDIA_TYPE};
use crate::serve::App;
use crate::serve::auth::Holder;
use crate::serve::extract::{NoParameters, Parameters};
use crate::serve::problem::Problem;

/// How long a client may read nothing before its backup ends: until then all files keep the frozen
/// pages.
const STALL_MAX: Duration = Duration::from_secs(60);
/// How long it may take to read why the host has ended its backup.
const LAST_MAX: Duration = Duration::from_secs(1);

/// The data folder of this host, as of one moment.
///
/// Catalogue, modules, states and embedded logs, row by row, for `foldstream backup`, which makes a
/// data folder of it. One at a time. It needs the scopes `operate` and `read`.
#[utoipa::path(get, path = "/v1/backup", tag = "host", responses(
    (status = 200, description = "Frames; the last one says whether all of them came", body = Vec<u8>,
        content_type = "application/vnd.foldstream.backup"),
    (status = 409, description = "Another backup is being taken, or deployments are being changed \
                                  all the time"),
))]
pub(super) async fn backup(
    State(app): State<App>,
    _: Parameters<NoParameters>,
    Extension(holder): Extension<Holder>,
) -> Result<Response, Problem> {
    let host = app.host.clone();
    // Begun before the answer: what can't begin gets a problem, and not a broken body.
    let backup = crate::serve::blocking(move || host.begin_backup()).await??;
    // One part waits while the connection writes another; files are read no faster than the client
    // reads.
    let (sender, receiver) = mpsc::channel(1);
    let (runtime, shutdown) = (Handle::current(), app.shutdown.clone());
    tokio::task::spawn_blocking(move || {
        let mut patience = STALL_MAX;
        let mut send = |octets: Vec<u8>| {
            // Asked for each part, so that a stop does not wait for the client.
            let ended = match holder.standing.check() {
                _ if shutdown.is_cancelled() => Some("it is stopping".to_owned()),
                Err((_, problem)) => Some(problem.detail().to_owned()),
                Ok(()) => None,
            };
            // Once: the last part, which follows, tells the client why.
            if let Some(reason) = ended.filter(|_| patience == STALL_MAX) {
                patience = LAST_MAX;
                return Err(Error::Host(reason));
            }
            let sent = runtime.block_on(tokio::time::timeout(
                patience,
                sender.send(Bytes::from(octets)),
            ));
            // A client that stalls, and one that has left.
            sent.map_err(|_| Error::Unwanted)?
                .map_err(|_| Error::Unwanted)
        };
        // Both the log and the client show how it ended.
        let _ = backup.send(&mut send);
    });
    let mut response = Response::new(Body::from_stream(
        ReceiverStream::new(receiver).map(Ok::<Bytes, Infallible>),
    ));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
