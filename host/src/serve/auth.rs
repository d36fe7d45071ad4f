//! Who may come in: the exposure rule, the bearer token, and the guard against
//! web pages that drive a host on the loopback address of their reader.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::problem::{Kind, Problem};
use super::{App, Error, health};
use crate::config;

/// Longest token, in bytes; it travels in one header.
const TOKEN_BYTES_MAX: usize = 1_024;

/// Refuses settings that would let strangers in: any address but loopback needs TLS and a token, or `insecure`.
pub fn check_exposure(config: &config::Serve) -> Result<(), Error> {
    check_address(config, config.listen)
}

/// The same for the address that is really listened on.
pub(super) fn check_address(config: &config::Serve, address: SocketAddr) -> Result<(), Error> {
    if config.tls_cert.is_some() != config.tls_key.is_some() {
        return Err(Error::Tls("serve.tls_cert and serve.tls_key go together; set both or neither".to_owned()));
    }
    if is_loopback(address.ip()) || config.insecure {
        return Ok(());
    }
    let missing = match (config.tls_cert.is_some(), config.token.is_some() || config.token_file.is_some()) {
        (true, true) => return Ok(()),
        (true, false) => "a token",
        (false, true) => "TLS",
        (false, false) => "TLS and a token",
    };
    Err(Error::Exposed { address, missing })
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// The bearer token. Only a keyed digest of it stays in memory, and comparing takes the same time for any guess.
#[derive(Clone)]
pub(super) struct Token {
    expected: Hmac<Sha256>,
    key: [u8; 32],
}

impl Token {
    /// The configured token, from the configuration or from its file.
    pub(super) fn configured(config: &config::Serve) -> Result<Option<Self>, Error> {
        let text = config.bearer_token().map_err(|error| Error::Token(error.to_string()))?;
        text.map(|text| Self::new(text.trim())).transpose()
    }

    fn new(token: &str) -> Result<Self, Error> {
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let detail = format!("the token must have 1 to {TOKEN_BYTES_MAX} visible ASCII characters without spaces");
            return Err(Error::Token(detail));
        }
        let key: [u8; 32] = rand::random();
        let mut expected = Hmac::new_from_slice(&key).expect("HMAC takes keys of any length");
        expected.update(token.as_bytes());
        Ok(Self { expected, key })
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
            return false;
        };
        let Some((scheme, given)) = value.split_once(' ') else { return false };
        let mut mac: Hmac<Sha256> = Hmac::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(given.trim().as_bytes());
        scheme.eq_ignore_ascii_case("bearer") && self.expected.clone().verify(&mac.finalize().into_bytes()).is_ok()
    }
}

/// Lets a request through, or answers 401 or 403. Probes are open: they tell no secrets and change nothing.
pub(super) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    if health::PROBES.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let verdict = match &app.token {
        Some(token) if token.admits(request.headers()) => Ok(()),
        Some(_) => Err(Problem::new(
            Kind::Unauthorized,
            "send the host's token as `Authorization: Bearer <token>` (FOLDSTREAM_TOKEN or --token on the command line)",
        )),
        None => check_origin(is_loopback(app.address.ip()), request.uri(), request.headers()),
    };
    match verdict {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Without a token, whoever reaches the address may do everything, so a page in
/// a browser on the same machine must not reach it: neither by sending a form
/// (`Origin`) nor by a host name that it lets point here (`Host`).
fn check_origin(loopback: bool, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let host = headers.get(header::HOST).map(|value| value.to_str().unwrap_or_default());
    if loopback {
        let named = host.into_iter().chain(uri.authority().map(Authority::as_str));
        if let Some(foreign) = named.into_iter().find(|name| !names_loopback(name)) {
            let hint = "ask for it as 127.0.0.1 or localhost, or configure serve.token";
            return Err(Problem::new(Kind::Forbidden, format!("this host does not answer for `{foreign}`; {hint}")));
        }
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let authority = origin.split_once("://").map_or("", |(_, authority)| authority);
    let same = host.is_some_and(|host| host.eq_ignore_ascii_case(authority));
    if same || (loopback && names_loopback(authority)) {
        return Ok(());
    }
    let hint = "without serve.token this host takes no requests from web pages of other origins";
    Err(Problem::new(Kind::Forbidden, format!("origin `{origin}` is refused: {hint}")))
}

/// Whether an authority (`name:port`) can only mean this machine.
fn names_loopback(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(listen: &str) -> config::Serve {
        config::Serve { listen: listen.parse().expect("an address"), ..config::Serve::default() }
    }

    #[test]
    fn loopback_needs_nothing() {
        for listen in ["127.0.0.1:7575", "127.9.9.9:0", "[::1]:7575", "[::ffff:127.0.0.1]:7575"] {
            check_exposure(&serve(listen)).expect(listen);
        }
    }

    #[test]
    fn any_other_address_needs_tls_and_a_token_or_insecure() {
        for listen in ["0.0.0.0:7575", "[::]:7575", "192.168.1.5:7575"] {
            let bare = serve(listen);
            let text = check_exposure(&bare).expect_err(listen).to_string();
            assert!(text.contains("TLS and a token") && text.contains("insecure"), "{text}");
            let token = config::Serve { token: Some("x".to_owned()), ..bare.clone() };
            assert!(check_exposure(&token).is_err());
            let tls = config::Serve { tls_cert: Some("c".into()), tls_key: Some("k".into()), ..bare.clone() };
            assert!(check_exposure(&tls).is_err());
            check_exposure(&config::Serve { token_file: Some("t".into()), ..tls }).expect("both");
            check_exposure(&config::Serve { insecure: true, ..bare }).expect("insecure");
        }
    }

    #[test]
    fn certificate_without_key_is_refused() {
        let half = config::Serve { tls_cert: Some("c".into()), ..serve("127.0.0.1:0") };
        assert!(check_exposure(&half).is_err());
    }

    fn with(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().expect("a value"))).collect()
    }

    #[test]
    fn token_admits_itself_only() {
        let token = Token::new("s3cret").expect("sound");
        let admits = |value: &str| token.admits(&with(&[(header::AUTHORIZATION, value)]));
        assert!(admits("Bearer s3cret"));
        assert!(admits("bearer s3cret"));
        for wrong in ["s3cret", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3cret2", "Basic s3cret"] {
            assert!(!admits(wrong), "{wrong}");
        }
        assert!(!token.admits(&HeaderMap::new()));
    }

    #[test]
    fn unusable_tokens_are_refused() {
        for token in ["", "a b", "ä", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
            assert!(Token::new(token).is_err(), "{token}");
        }
    }

    fn origin_of(loopback: bool, uri: &str, headers: &[(header::HeaderName, &str)]) -> bool {
        check_origin(loopback, &uri.parse().expect("an address"), &with(headers)).is_ok()
    }

    #[test]
    fn rebound_host_name_is_refused_on_loopback() {
        for host in ["127.0.0.1:7575", "localhost:7575", "LOCALHOST", "[::1]:7575", "localhost."] {
            assert!(origin_of(true, "/", &[(header::HOST, host)]), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:7575", "10.0.0.1", ""] {
            assert!(!origin_of(true, "/", &[(header::HOST, host)]), "{host}");
        }
        assert!(!origin_of(true, "http://evil.example/", &[(header::HOST, "localhost")]));
        assert!(origin_of(true, "/", &[]), "no browser leaves the host out");
    }

    #[test]
    fn foreign_origin_is_refused_without_a_token() {
        let local = (header::HOST, "localhost:7575");
        assert!(origin_of(true, "/", &[local.clone(), (header::ORIGIN, "http://localhost:3000")]));
        assert!(!origin_of(true, "/", &[local.clone(), (header::ORIGIN, "https://evil.example")]));
        assert!(!origin_of(true, "/", &[local, (header::ORIGIN, "null")]));
        let open = (header::HOST, "node-7:7575");
        assert!(origin_of(false, "/", std::slice::from_ref(&open)));
        assert!(origin_of(false, "/", &[open.clone(), (header::ORIGIN, "http://node-7:7575")]));
        assert!(!origin_of(false, "/", &[open, (header::ORIGIN, "https://evil.example")]));
    }
}
