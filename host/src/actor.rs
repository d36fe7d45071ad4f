//! The token and the address behind a request, for the audit log.
//!
//! It is task-local, so that code that changes deployments need not pass it on.

use std::net::IpAddr;

tokio::task_local! {
    static ACTOR: Actor;
}

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Actor {
    /// Name of the token; none if the host has no tokens.
    pub name: Option<String>,
    /// The address of the other side of the connection, which may be a proxy.
    pub peer: Option<IpAddr>,
}

/// The actor of this task or thread; none for actions of the host itself.
pub(crate) fn current() -> Option<Actor> {
    // An error means that no actor was set.
    ACTOR.try_with(Clone::clone).ok()
}

/// Runs a future for an actor.
pub(crate) async fn scope<T>(actor: Option<Actor>, work: impl Future<Output = T>) -> T {
    match actor {
        Some(actor) => ACTOR.scope(actor, work).await,
        None => work.await,
    }
}

/// The same for blocking work.
pub(crate) fn sync_scope<T>(actor: Option<Actor>, work: impl FnOnce() -> T) -> T {
    match actor {
        Some(actor) => ACTOR.sync_scope(actor, work),
        None => work(),
    }
}

/// Runs blocking work off the runtime's threads, for the same actor.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    // A thread has no task, so the actor is passed on by hand.
    let actor = current();
    match tokio::task::spawn_blocking(move || sync_scope(actor, work)).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            // As if the work had run here: its caller sees the same panic.
            Ok(panic) => std::panic::resume_unwind(panic),
            // The task was cancelled, which happens only when the runtime ends, and with it this
            // one.
            Err(_) => std::future::pending().await,
        },
    }
}
