//! The scope that each route requires. A route that is not in the table requires every scope.

use crate::effects;
use crate::log::NewEvent;
use crate::scope::Scope;
use crate::timers;

/// Which deployments a request concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// None: any token will do.
    Nothing,
    /// The one in the path.
    Path,
    /// The one in the query parameter `name`.
    Parameter,
    Host,
}

/// What a route requires of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    /// The scope, or every scope.
    pub(super) scope: Option<Scope>,
    /// Another one, if one is not enough.
    pub(super) also: Option<Scope>,
    pub(super) reach: Reach,
}

use Reach::{Host, Nothing, Parameter, Path};
use Scope::{Append, Deploy, Operate, Read};

/// What a look at one deployment requires.
pub(super) const READ: Demand = Demand {
    scope: Some(Read),
    also: None,
    reach: Path,
};
/// What the append of an event that the host itself acts on requires as well.
const OPERATE: Demand = Demand {
    scope: Some(Operate),
    also: None,
    reach: Path,
};
/// How the host's own subjects begin.
const OWN_SUBJECTS: &str = "_fs.";
/// The route of appends and pages of events.
pub(super) const APPENDS: &str = "/v1/events";
/// The parameter with which an append waits.
pub(super) const WAIT: &str = "wait";
/// The route of backups.
const BACKUP: &str = "/v1/backup";

/// Method, route, scope, reach.
const ROUTES: &[(&str, &str, Scope, Reach)] = &[
    ("GET", "/v1/deployments", Read, Host),
    ("POST", "/v1/deployments", Deploy, Parameter),
    ("GET", "/v1/deployments/{name}", Read, Path),
    ("DELETE", "/v1/deployments/{name}", Deploy, Path),
    ("POST", "/v1/deployments/{name}/pause", Operate, Path),
    ("POST", "/v1/deployments/{name}/resume", Operate, Path),
    ("GET", "/v1/deployments/{name}/skips", Read, Path),
    (
        "DELETE",
        "/v1/deployments/{name}/skips/{sequence}",
        Operate,
        Path,
    ),
    ("GET", "/v1/deployments/{name}/outbox", Read, Path),
    ("POST", "/v1/deployments/{name}/outbox/drop", Operate, Path),
    ("POST", "/v1/deployments/{name}/outbox/retry", Operate, Path),
    ("POST", "/v1/deployments/{name}/outbox/send", Operate, Path),
    ("GET", "/v1/deployments/{name}/parked", Read, Path),
    ("GET", "/v1/deployments/{name}/parked/events", Read, Path),
    ("POST", "/v1/deployments/{name}/parked/retry", Operate, Path),
    ("POST", "/v1/deployments/{name}/parked/drop", Operate, Path),
    (
        "POST",
        "/v1/deployments/{name}/parked/export",
        Operate,
        Path,
    ),
    ("GET", "/v1/deployments/{name}/timers", Read, Path),
    ("POST", "/v1/deployments/{name}/timers/fire", Operate, Path),
    ("POST", "/v1/deployments/{name}/timers/drop", Operate, Path),
    ("GET", "/v1/deployments/{name}/sagas", Read, Path),
    ("GET", "/v1/deployments/{name}/schemas", Read, Path),
    ("GET", "/v1/deployments/{name}/generations", Read, Path),
    ("POST", "/v1/deployments/{name}/promote", Operate, Path),
    ("POST", "/v1/deployments/{name}/rollback", Operate, Path),
    ("POST", "/v1/deployments/{name}/abort", Operate, Path),
    ("POST", "/v1/deployments/{name}/rebuild", Operate, Path),
    ("POST", "/v1/deployments/{name}/rebuild-part", Operate, Path),
    ("POST", "/v1/deployments/{name}/verification", Operate, Path),
    ("GET", "/v1/deployments/{name}/verification", Read, Path),
    ("POST", "/v1/deployments/{name}/throttle", Operate, Path),
    ("POST", "/v1/deployments/{name}/prune", Operate, Path),
    ("GET", "/v1/rebuilds", Read, Host),
    ("GET", "/v1/deployments/{name}/entries", Read, Path),
    ("GET", "/v1/deployments/{name}/entries/{*key}", Read, Path),
    ("GET", "/v1/deployments/{name}/queries/{query}", Read, Path),
    ("POST", "/v1/deployments/{name}/queries/{query}", Read, Path),
    ("GET", "/v1/deployments/{name}/changes", Read, Path),
    ("GET", "/v1/events", Read, Host),
    ("POST", APPENDS, Append, Nothing),
    ("GET", "/v1/events/tail", Read, Host),
    ("GET", "/v1/audit", Read, Host),
    ("GET", "/v1/sources", Read, Host),
    ("GET", BACKUP, Operate, Host),
    ("GET", "/v1/host", Read, Nothing),
    ("GET", "/metrics", Read, Host),
    ("GET", "/openapi.json", Read, Nothing),
];

/// Routes of event streams, which a browser can request only without headers of its own.
pub(super) const STREAMS: [&str; 2] = ["/v1/deployments/{name}/changes", "/v1/events/tail"];

/// What an appended event requires as well, of which deployment, and why. An event with one of the
/// host's own subjects fires or drops timers, as an operator does. One with the id of a handler's
/// message would be taken for it if the handler's state is restored.
pub(super) fn demand_of_event(event: &NewEvent) -> Option<(Demand, Option<&str>, String)> {
    let subject = event.subject.as_str();
    let everywhere = Demand {
        reach: Host,
        ..OPERATE
    };
    if subject.starts_with(OWN_SUBJECTS) {
        let deployment = timers::deployment(subject);
        let demand = if deployment.is_some() {
            OPERATE
        } else {
            everywhere
        };
        let why = format!("subject {subject} is one of the host's own");
        return Some((demand, deployment, why));
    }
    let headers = event.headers.iter();
    let own = headers
        .filter(|(name, _)| name.eq_ignore_ascii_case("ce-id"))
        .map(|(_, id)| id)
        .chain(&event.id)
        .find(|id| effects::is_id(id))?;
    let why = format!("id {own} is that of a message of a handler");
    Some((everywhere, None, why))
}

/// What a route requires of a token.
pub(super) fn demand(method: &str, route: &str) -> Demand {
    let method = if method == "HEAD" { "GET" } else { method };
    let found = ROUTES
        .iter()
        .find(|(known, path, _, _)| *known == method && *path == route);
    match found {
        Some((_, _, scope, reach)) => {
            // It shows everything that can be read, and is more work than a reader may ask for.
            Demand {
                scope: Some(*scope),
                also: (route == BACKUP).then_some(Read),
                reach: *reach,
            }
        }
        None => Demand {
            scope: None,
            also: None,
            reach: Host,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::routes::health::PROBES;
    use super::*;

    #[test]
    fn every_route_of_the_description_has_a_scope_and_no_other() {
        let document = serde_json::to_value(super::super::document()).expect("plain data");
        let mut described = Vec::new();
        for (path, item) in document["paths"].as_object().expect("paths") {
            for method in item.as_object().expect("operations").keys() {
                if !PROBES.contains(&path.as_str()) && method != "parameters" {
                    described.push((method.to_uppercase(), path.clone()));
                }
            }
        }
        let mut known: Vec<(String, String)> = ROUTES
            .iter()
            .map(|(method, path, _, _)| ((*method).to_owned(), path.replace("{*", "{")))
            .collect();
        known.sort();
        described.sort();
        assert_eq!(known, described);
    }

    #[test]
    fn a_route_without_a_scope_asks_for_all() {
        assert_eq!(
            demand("PUT", "/v1/deployments"),
            Demand {
                scope: None,
                also: None,
                reach: Host
            }
        );
        assert_eq!(demand("HEAD", "/v1/host"), demand("GET", "/v1/host"));
    }
}
