//! Access control: the exposure rule, tokens and their scopes, and refusals.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use axum::RequestExt as _;
use axum::extract::{ConnectInfo, MatchedPath, Query, RawPathParams, Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;

use super::origin::{Rules, is_loopback};
use super::problem::{Kind, Problem};
use super::routes::health;
use super::scopes::{self, APPENDS, Demand, Reach, STREAMS, WAIT};
use super::secrets::Admission;
use super::standing::{Basis, Standing};
use super::tokens::Tokens;
use super::{App, Error, standing, wait};
use crate::actor::{self, Actor};
use crate::config::{self, Anonymous};
use crate::log::NewEvent;

/// The query parameter in which a browser's `EventSource` sends its token, because it cannot send
/// headers.
const TOKEN_PARAMETER: &str = "access_token";
/// Shortest time between two log lines about refused requests.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Refuses settings that expose the host: any address but loopback needs TLS and a token, or
/// `insecure`.
pub fn check_exposure(config: &config::Serve) -> Result<(), Error> {
    check_address(config, config.listen)
}

/// The same for the address on which the host actually listens.
pub(super) fn check_address(config: &config::Serve, address: SocketAddr) -> Result<(), Error> {
    // One without the other is a mistake, and would silently mean no TLS.
    if config.tls_cert.is_some() != config.tls_key.is_some() {
        return Err(Error::Tls(
            "serve.tls_cert and serve.tls_key belong together; set both or neither".to_owned(),
        ));
    }
    if is_loopback(address.ip()) || config.insecure {
        return Ok(());
    }
    let missing = match (config.tls_cert.is_some(), config.has_tokens()) {
        (true, true) if config.anonymous != Some(Anonymous::Everything) => return Ok(()),
        (true, true) => "any need of a token (serve.anonymous)",
        (true, false) => "a token",
        (false, true) => "TLS",
        (false, false) => "TLS and a token",
    };
    Err(Error::Exposed { address, missing })
}

/// Why a request was refused, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    TokenMissing,
    TokenWrong,
    NotAllowed,
    Origin,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::TokenMissing => "token-missing",
            Self::TokenWrong => "token-wrong",
            Self::NotAllowed => "not-allowed",
            Self::Origin => "origin",
        }
    }
}

/// Logs refused requests: at most one line per second.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<(Option<Instant>, u64)>);

impl Refusals {
    /// How many refusals were not logged since the last line, if this one may be logged.
    fn may_log(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        let (logged, unlogged) = *state;
        if logged.is_some_and(|logged| now.duration_since(logged) < LOG_INTERVAL) {
            state.1 += 1;
            return None;
        }
        *state = (Some(now), 0);
        Some(unlogged)
    }
}

/// Lets a request through, or answers 401 or 403. Probes need no token: they reveal no secrets and
/// change nothing.
pub(super) async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response {
    if health::PROBES.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let peer = request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .map(|ConnectInfo(peer)| peer.ip());
    // Taken out in any case, so that no log further in has it.
    let parameter = take_parameter(&mut request);
    let given = bearer(request.headers()).map(str::to_owned).or(parameter);
    let admissions = app.secrets.admissions();
    let Admission { tokens, anonymous } = admissions.borrow().clone();
    // A token that is sent has to be right, even if none were needed.
    let verdict = match (&tokens, given) {
        (Some(tokens), Some(given)) => check_token(tokens, &given, &mut request).await,
        _ => check_anonymous(&app, anonymous, &request),
    };
    let answered = match verdict {
        Ok(basis) => {
            let holder = Holder {
                standing: Standing::new(admissions, basis),
                peer,
            };
            answer(holder, request, next).await
        }
        Err(refused) => Err(refused),
    };
    answered.unwrap_or_else(|(reason, problem)| {
        note_refusal(&app, peer, reason);
        problem.into_response()
    })
}

/// Answers a request. A read ends if its token is withdrawn meanwhile; what changes something is
/// completed, because a half-finished change helps no one.
async fn answer(
    holder: Holder,
    mut request: Request,
    next: Next,
) -> Result<Response, standing::Refused> {
    let (standing, peer) = (holder.standing.clone(), holder.peer);
    let name = standing.grant().map(|grant| grant.name.clone());
    // Streams end with their token, and what some routes require depends on the body.
    request.extensions_mut().insert(holder);
    // The actor goes with the request into the audit log.
    let answer = actor::scope(Some(Actor { name, peer }), next.run(request));
    if !standing.is_read() {
        return Ok(answer.await);
    }
    // Dropping a read that waits is what happens if its client leaves.
    tokio::select! {
        biased;
        answer = answer => Ok(answer),
        refused = standing.lapsed() => Err(refused),
    }
}

/// Counts a refusal each time, and logs it now and then: an attack must not fill the log.
fn note_refusal(app: &App, peer: Option<IpAddr>, reason: Reason) {
    app.host.metrics().refused(reason.name());
    if let Some(unlogged) = app.refusals.may_log(Instant::now()) {
        let peer = peer.map(tracing::field::display);
        tracing::warn!(peer, reason = reason.name(), unlogged, "refused a request");
    }
}

/// Who sends a request.
#[derive(Clone)]
pub(super) struct Holder {
    pub(super) standing: Standing,
    peer: Option<IpAddr>,
}

impl Holder {
    /// Whether the sender may append an event. Without a token, it may do what the route does.
    pub(super) fn may_append(&self, app: &App, event: &NewEvent) -> Result<(), Problem> {
        let grant = self.standing.grant();
        let Some((grant, (demand, deployment, why))) = grant.zip(scopes::demand_of_event(event))
        else {
            return Ok(());
        };
        let names: Vec<String> = deployment.map(str::to_owned).into_iter().collect();
        grant.covers(demand, &names).map_err(|lack| {
            note_refusal(app, self.peer, Reason::NotAllowed);
            Problem::new(Kind::NotAllowed, format!("{why}: {lack}"))
        })
    }
}

/// What lets a request with a token in: that the token covers what the route requires.
async fn check_token(
    tokens: &Tokens,
    given: &str,
    request: &mut Request,
) -> Result<Basis, standing::Refused> {
    let grant = tokens.grant(given).map_err(standing::unknown)?;
    // Everyone with a token gets 404 for a path without a route.
    let Some(route) = request.extensions().get::<MatchedPath>().cloned() else {
        return Ok(Basis::Token(grant, Vec::new()));
    };
    let demand = scopes::demand(request.method().as_str(), route.as_str());
    // Only what concerns deployments needs their names.
    let names = match demand.reach {
        Reach::Path => name_in_path(request).await,
        Reach::Parameter => in_query(request.uri(), "name"),
        Reach::Nothing | Reach::Host => Vec::new(),
    };
    let demands = [Some((demand, names)), wait_demand(request, route.as_str())];
    let demands: Vec<_> = demands.into_iter().flatten().collect();
    standing::covers(&grant, &demands).map_err(standing::not_covered)?;
    Ok(Basis::Token(grant, demands))
}

/// Lets a request in without a token, or at a host that has none, if it may do what it asks for.
fn check_anonymous(
    app: &App,
    anonymous: Anonymous,
    request: &Request,
) -> Result<Basis, standing::Refused> {
    // A browser sends no token on its own, so a page cannot use one: only here is its origin asked
    // for. A host that wants a token says that first.
    if anonymous != Anonymous::Nothing {
        let rules = Rules::new(&app.config, app.address.ip());
        rules
            .check(request.uri(), request.headers())
            .map_err(|problem| (Reason::Origin, problem))?;
    }
    let route = request.extensions().get::<MatchedPath>();
    let demand = route.map(|route| scopes::demand(request.method().as_str(), route.as_str()));
    standing::check_anonymous(anonymous, demand)?;
    Ok(Basis::Anonymous(demand))
}

/// Whether a request has a valid token of this host.
pub(super) fn is_known(tokens: &Tokens, headers: &HeaderMap) -> bool {
    bearer(headers).is_some_and(|token| tokens.grant(token).is_ok())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, given) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    // The scheme has any case (RFC 9110, 11.1).
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| given.trim())
        .filter(|given| !given.is_empty())
}

/// Takes the token out of the query of a stream, so that nothing after this sees it. On other
/// routes it is an unknown parameter like any other.
fn take_parameter(request: &mut Request) -> Option<String> {
    let is_stream = request
        .extensions()
        .get::<MatchedPath>()
        .is_some_and(|route| STREAMS.contains(&route.as_str()));
    let query = request.uri().query().filter(|_| is_stream)?;
    let is_token = |pair: &&str| pair.split('=').next() == Some(TOKEN_PARAMETER);
    let token = query
        .split('&')
        .find(is_token)?
        .split_once('=')
        .map(|(_, token)| token.to_owned());
    // All of them: a second one would reach the log.
    let rest: Vec<&str> = query.split('&').filter(|pair| !is_token(pair)).collect();
    let path = request.uri().path();
    let path = if rest.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", rest.join("&"))
    };
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = path.parse().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    // Tokens from `token new` need no escaping; others are decoded like any parameter.
    let probe: Uri = format!("/?t={}", token?).parse().ok()?;
    Query::<Vec<(String, String)>>::try_from_uri(&probe)
        .ok()?
        .0
        .pop()
        .map(|(_, token)| token)
}

/// The deployment in the path, decoded as the route decodes it.
async fn name_in_path(request: &mut Request) -> Vec<String> {
    let Ok(parameters) = request.extract_parts::<RawPathParams>().await else {
        return Vec::new();
    };
    parameters
        .iter()
        .filter(|(key, _)| *key == "name")
        .map(|(_, value)| value.to_owned())
        .collect()
}

/// What an append that waits requires as well: it says where the deployments are that it names, as a
/// read does.
fn wait_demand(request: &Request, route: &str) -> Option<(Demand, Vec<String>)> {
    let waits = match (request.method().as_str(), route) {
        ("POST", APPENDS) => in_query(request.uri(), WAIT),
        _ => Vec::new(),
    };
    let names: Vec<String> = waits.iter().flat_map(|names| wait::names(names)).collect();
    (!waits.is_empty()).then_some((scopes::READ, names))
}

/// The values of a parameter.
fn in_query(uri: &Uri, parameter: &str) -> Vec<String> {
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map(|Query(pairs)| pairs)
        .unwrap_or_default();
    pairs
        .into_iter()
        .filter(|(key, _)| key == parameter)
        .map(|(_, value)| value)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(listen: &str) -> config::Serve {
        config::Serve {
            listen: listen.parse().expect("an address"),
            ..config::Serve::default()
        }
    }

    #[test]
    fn loopback_needs_nothing() {
        for listen in [
            "127.0.0.1:7575",
            "127.9.9.9:0",
            "[::1]:7575",
            "[::ffff:127.0.0.1]:7575",
        ] {
            check_exposure(&serve(listen)).expect(listen);
        }
    }

    #[test]
    fn any_other_address_needs_tls_and_a_token_or_insecure() {
        for listen in ["0.0.0.0:7575", "[::]:7575", "192.168.1.5:7575"] {
            let bare = serve(listen);
            let text = check_exposure(&bare).expect_err(listen).to_string();
            assert!(
                text.contains("TLS and a token") && text.contains("insecure"),
                "{text}"
            );
            let token = config::Serve {
                token: Some("x".into()),
                ..bare.clone()
            };
            assert!(check_exposure(&token).is_err());
            let tls = config::Serve {
                tls_cert: Some("c".into()),
                tls_key: Some("k".into()),
                ..bare.clone()
            };
            assert!(check_exposure(&tls).is_err());
            check_exposure(&config::Serve {
                token_file: Some("t".into()),
                ..tls.clone()
            })
            .expect("both");
            check_exposure(&config::Serve {
                tokens_file: Some("t".into()),
                ..tls
            })
            .expect("both");
            check_exposure(&config::Serve {
                insecure: true,
                ..bare
            })
            .expect("insecure");
        }
    }

    #[test]
    fn certificate_without_key_is_refused() {
        let half = config::Serve {
            tls_cert: Some("c".into()),
            ..serve("127.0.0.1:0")
        };
        assert!(check_exposure(&half).is_err());
    }

    #[test]
    fn a_bearer_token_is_read_from_its_header_alone() {
        let read = |value: &str| {
            let headers: HeaderMap = [(header::AUTHORIZATION, value.parse().expect("a value"))]
                .into_iter()
                .collect();
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(read("Bearer s3cret").as_deref(), Some("s3cret"));
        assert_eq!(read("bearer  s3cret").as_deref(), Some("s3cret"));
        for other in ["s3cret", "Bearer", "Bearer ", "Basic s3cret"] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn refusals_are_reported_once_a_second_with_the_number_of_the_others() {
        let (refusals, begin) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.may_log(begin), Some(0));
        for _ in 0..5 {
            assert_eq!(refusals.may_log(begin), None);
        }
        assert_eq!(refusals.may_log(begin + LOG_INTERVAL), Some(5));
    }
}
