//! The routes, by what they are about: what each takes, asks the host for, and answers.

mod audit;
mod backup;
mod deployments;
mod events;
mod generations;
pub(super) mod health;
mod outbox;
mod pages;
mod parked;
mod reads;
mod sagas;
mod schemas;
mod timers;
mod watch;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;

/// All routes, with their descriptions.
pub(super) fn all() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(deployments::list, deployments::deploy))
        .routes(routes!(deployments::show, deployments::delete))
        .routes(routes!(deployments::pause))
        .routes(routes!(deployments::resume))
        .routes(routes!(deployments::skips))
        .routes(routes!(deployments::withdraw_skip))
        .routes(routes!(outbox::list))
        .routes(routes!(outbox::drop))
        .routes(routes!(outbox::retry))
        .routes(routes!(outbox::send))
        .routes(routes!(parked::list))
        .routes(routes!(parked::events))
        .routes(routes!(parked::retry))
        .routes(routes!(parked::drop_events))
        .routes(routes!(parked::export))
        .routes(routes!(timers::list))
        .routes(routes!(timers::fire))
        .routes(routes!(timers::drop_timer))
        .routes(routes!(sagas::list))
        .routes(routes!(schemas::show))
        .routes(routes!(generations::list))
        .routes(routes!(generations::promote))
        .routes(routes!(generations::rollback))
        .routes(routes!(generations::abort))
        .routes(routes!(generations::rebuild))
        .routes(routes!(generations::rebuild_part))
        .routes(routes!(generations::verify, generations::verification))
        .routes(routes!(generations::throttle))
        .routes(routes!(generations::prune))
        .routes(routes!(generations::rebuilds))
        .routes(routes!(reads::scan))
        .routes(routes!(reads::entry))
        .routes(routes!(reads::query, reads::query_with_body))
        .routes(routes!(watch::changes))
        .routes(routes!(events::read, events::append))
        .routes(routes!(events::tail))
        .routes(routes!(audit::read))
        .routes(routes!(backup::backup))
        .routes(routes!(health::sources))
        .routes(routes!(health::host))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(health::startupz))
        .routes(routes!(health::metrics))
        .routes(routes!(health::openapi))
}
