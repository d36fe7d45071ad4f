//! Protects a host without tokens from web pages and proxies, and lists the pages that may use it.

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::position::{GENERATION, MISSING, PARKED, POSITION, SKIPPED};
use super::problem::{Kind, Problem};
use crate::config;

/// Headers with which proxies mark a forwarded request, apart from those that begin with
/// [`PROXIED_PREFIX`].
const PROXIED: [&str; 3] = ["forwarded", "via", "x-real-ip"];
/// The same, for `X-Forwarded-For` and its many relatives.
const PROXIED_PREFIX: &str = "x-forwarded-";
/// How long a browser may cache which pages are allowed.
const PREFLIGHT_AGE: std::time::Duration = std::time::Duration::from_secs(600);

/// Who may use a host without a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    /// Whether only this machine can reach the address.
    pub(super) loopback: bool,
    /// Additional names of the host.
    pub(super) hosts: &'a [String],
    /// Pages that are allowed.
    pub(super) origins: &'a [String],
}

impl<'a> Rules<'a> {
    /// The rules of the settings for an address.
    pub(super) fn new(config: &'a config::Serve, address: IpAddr) -> Self {
        Self {
            loopback: is_loopback(address),
            hosts: &config.hosts,
            origins: &config.origins,
        }
    }

    /// Without a token, anyone who reaches the address may do everything. A page in a browser on
    /// the same machine must not: neither through a host name that it points here (`Host`), nor
    /// through a form, an image or a script (`Origin`, `Sec-Fetch-Site`). The same applies to a
    /// proxy that exposes the host by accident.
    pub(super) fn check(self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let hosts = headers
            .get_all(header::HOST)
            .into_iter()
            .map(|value| value.to_str().unwrap_or_default());
        // HTTP/2 has the name in the URI, and HTTP/1 in the header; all have to be right.
        let named: Vec<&str> = hosts
            .chain(uri.authority().map(Authority::as_str))
            .collect();
        if let Some(foreign) = named.iter().find(|name| !self.answers_for(name)) {
            let hint = if self.loopback {
                "use 127.0.0.1 or localhost, add the name to serve.hosts, or configure a token"
            } else {
                "use its IP address, add the name to serve.hosts, or configure a token"
            };
            return Err(forbidden(format!(
                "`{}` is not a name of this host; {hint}",
                clipped(foreign)
            )));
        }
        // A proxy makes all its clients look like this machine.
        let proxied = headers
            .keys()
            .map(HeaderName::as_str)
            .find(|name| PROXIED.contains(name) || name.starts_with(PROXIED_PREFIX));
        if let Some(name) = proxied {
            return Err(forbidden(format!(
                "the header {name} says that a proxy forwarded the request, and without a token \
                 all its clients could do everything; configure serve.tokens_file, and let the \
                 proxy or its clients send a token"
            )));
        }
        let origin = headers
            .get(header::ORIGIN)
            .map(|value| value.to_str().unwrap_or_default());
        // A page that an operator has listed may send whatever it likes.
        if origin.is_some_and(|origin| self.is_listed(origin)) {
            return Ok(());
        }
        let hint = "without a token this host accepts no requests from web pages of other origins; \
                    list allowed origins in serve.origins";
        let site = headers
            .get("sec-fetch-site")
            .map(|value| value.to_str().unwrap_or_default());
        // Browsers set this, and pages cannot: it also covers requests without an origin.
        if let Some(site @ ("cross-site" | "same-site")) = site {
            return Err(forbidden(format!("a {site} request is refused: {hint}")));
        }
        let Some(origin) = origin else { return Ok(()) };
        // `null`, as of a file or a sandboxed frame, has no authority and matches nothing.
        let authority = origin
            .split_once("://")
            .map_or("", |(_, authority)| authority);
        let is_same = named
            .iter()
            .any(|name| name.eq_ignore_ascii_case(authority));
        if is_same || (self.loopback && names_loopback(authority)) {
            // A page of the host itself, or of another server on this machine.
            return Ok(());
        }
        Err(forbidden(format!(
            "origin `{}` is refused: {hint}",
            clipped(origin)
        )))
    }

    /// Whether a name (`name:port`) belongs to this host, or is an IP address: a name can be made
    /// to point anywhere.
    fn answers_for(self, authority: &str) -> bool {
        let Ok(parsed) = authority.parse::<Authority>() else {
            return false;
        };
        let name = bare(&parsed);
        let is_ours = self
            .hosts
            .iter()
            .any(|host| host.eq_ignore_ascii_case(name));
        // An address cannot be made to point elsewhere, so it needs no list, except on loopback.
        is_ours || names_loopback(authority) || (!self.loopback && name.parse::<IpAddr>().is_ok())
    }

    fn is_listed(self, origin: &str) -> bool {
        self.origins
            .iter()
            .any(|listed| listed.eq_ignore_ascii_case(origin))
    }
}

fn forbidden(detail: String) -> Problem {
    Problem::new(Kind::Forbidden, detail)
}

/// The beginning of a text from an unknown source.
fn clipped(text: &str) -> String {
    text.chars().take(128).collect()
}

/// Whether only this machine can reach an address.
pub(super) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn bare(authority: &Authority) -> &str {
    authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']')
        .trim_end_matches('.')
}

/// Whether an authority (`name:port`) can only mean this machine.
fn names_loopback(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else {
        return false;
    };
    let name = bare(&authority);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(is_loopback)
}

/// Tells browsers which pages are allowed; none if no page is.
pub(super) fn cors(config: &config::Serve) -> Option<CorsLayer> {
    let origins: Vec<HeaderValue> = config
        .origins
        .iter()
        .filter_map(|origin| origin.parse().ok())
        .collect();
    if origins.is_empty() {
        return None;
    }
    let asked = [
        // Only what our routes use: a browser refuses the rest for us.
        "authorization",
        "content-type",
        "if-none-match",
        "last-event-id",
    ]
    .map(HeaderName::from_static);
    // The headers that a page may read of an answer.
    let exposed = [
        "etag",
        "retry-after",
        GENERATION,
        MISSING,
        PARKED,
        POSITION,
        SKIPPED,
    ]
    .map(HeaderName::from_static);
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
        .allow_headers(asked)
        .expose_headers(exposed)
        .max_age(PREFLIGHT_AGE);
    Some(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: Rules<'static> = Rules {
        loopback: true,
        hosts: &[],
        origins: &[],
    };
    const OPEN: Rules<'static> = Rules {
        loopback: false,
        hosts: &[],
        origins: &[],
    };

    fn admits(rules: Rules<'_>, uri: &str, headers: &[(&str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a name");
            map.append(name, value.parse().expect("a value"));
        }
        rules.check(&uri.parse().expect("an address"), &map).is_ok()
    }

    #[test]
    fn rebound_host_name_is_refused_on_loopback() {
        for host in [
            "127.0.0.1:7575",
            "localhost:7575",
            "LOCALHOST",
            "[::1]:7575",
            "localhost.",
        ] {
            assert!(admits(LOOPBACK, "/", &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:7575",
            "10.0.0.1",
            "",
        ] {
            assert!(!admits(LOOPBACK, "/", &[("host", host)]), "{host}");
        }
        assert!(!admits(
            LOOPBACK,
            "http://evil.example/",
            &[("host", "localhost")]
        ));
        assert!(!admits(
            LOOPBACK,
            "/",
            &[("host", "localhost"), ("host", "evil.example")]
        ));
        assert!(admits(LOOPBACK, "/", &[]), "no browser leaves the host out");
        let hosts = ["box.internal".to_owned()];
        assert!(admits(
            Rules {
                hosts: &hosts,
                ..LOOPBACK
            },
            "/",
            &[("host", "Box.internal:80")]
        ));
    }

    #[test]
    fn beyond_loopback_only_addresses_and_listed_names_are_answered_for() {
        for host in ["10.0.0.1:7575", "[fe80::1]:7575", "localhost"] {
            assert!(admits(OPEN, "/", &[("host", host)]), "{host}");
        }
        assert!(!admits(OPEN, "/", &[("host", "node-7:7575")]));
        let hosts = ["node-7".to_owned()];
        let listed = Rules {
            hosts: &hosts,
            ..OPEN
        };
        assert!(admits(listed, "/", &[("host", "node-7:7575")]));
        assert!(admits(
            listed,
            "/",
            &[("host", "node-7:7575"), ("origin", "http://node-7:7575")]
        ));
        assert!(!admits(
            listed,
            "/",
            &[("host", "node-7:7575"), ("origin", "https://evil.example")]
        ));
    }

    #[test]
    fn foreign_pages_are_refused_unless_they_are_listed() {
        let local = ("host", "localhost:7575");
        assert!(admits(
            LOOPBACK,
            "/",
            &[local, ("origin", "http://localhost:3000")]
        ));
        for foreign in ["https://evil.example", "null", ""] {
            assert!(
                !admits(LOOPBACK, "/", &[local, ("origin", foreign)]),
                "{foreign}"
            );
        }
        for site in ["cross-site", "same-site"] {
            assert!(
                !admits(LOOPBACK, "/", &[local, ("sec-fetch-site", site)]),
                "{site}"
            );
        }
        for site in ["same-origin", "none"] {
            assert!(
                admits(LOOPBACK, "/", &[local, ("sec-fetch-site", site)]),
                "{site}"
            );
        }
        let origins = ["https://app.example".to_owned()];
        let listed = Rules {
            origins: &origins,
            ..LOOPBACK
        };
        assert!(admits(
            listed,
            "/",
            &[
                local,
                ("origin", "https://app.example"),
                ("sec-fetch-site", "cross-site")
            ]
        ));
        assert!(!admits(
            listed,
            "/",
            &[
                local,
                ("origin", "https://app.example.evil"),
                ("sec-fetch-site", "cross-site")
            ]
        ));
        assert!(!admits(
            listed,
            "/",
            &[local, ("sec-fetch-site", "cross-site")]
        ));
    }

    #[test]
    fn what_a_proxy_passes_on_is_refused() {
        for name in PROXIED
            .into_iter()
            .chain(["x-forwarded-for", "x-forwarded-prefix"])
        {
            assert!(
                !admits(
                    LOOPBACK,
                    "/",
                    &[("host", "127.0.0.1:7575"), (name, "203.0.113.9")]
                ),
                "{name}"
            );
        }
    }
}
