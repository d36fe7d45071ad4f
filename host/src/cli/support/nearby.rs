//! Finds the local host through its configuration file: its address, and the token that it
//! requires.

use std::net::SocketAddr;

use super::client::Connection;
use crate::access;
use crate::config::Config;

/// The address at which the host of this configuration can be reached from its own machine; none if
/// it picks its port at start.
pub(crate) fn connection(config: &Config) -> Option<Connection> {
    let serve = &config.serve;
    if serve.listen.port() == 0 {
        return None;
    }
    let address = SocketAddr::new(access::reachable(serve.listen.ip()), serve.listen.port());
    let scheme = if serve.tls_cert.is_some() {
        "https"
    } else {
        "http"
    };
    // If the token cannot be read, the host will ask for it, and the error will say so then.
    let configured = serve.bearer_token().ok().flatten();
    let url = format!("{scheme}://{address}");
    // The token of the host that runs there before the one of the folder, which may be another
    // host's.
    let token = configured
        .or_else(|| running(&url))
        .or_else(|| access::token_of(config));
    Some(Connection { url, token })
}

/// The token that this user's host at an address of this machine made for itself.
pub(crate) fn running(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    access::find(url.host_str()?, url.port_or_known_default()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_listen_at_becomes_one_to_ask() {
        let url = |listen: &str| {
            let mut config = Config::default();
            config.serve.listen = listen.parse().expect("an address");
            connection(&config).map(|connection| connection.url)
        };
        assert_eq!(
            url("127.0.0.1:8080").as_deref(),
            Some("http://127.0.0.1:8080")
        );
        assert_eq!(
            url("0.0.0.0:8080").as_deref(),
            Some("http://127.0.0.1:8080")
        );
        assert_eq!(url("[::]:8080").as_deref(), Some("http://[::1]:8080"));
        assert_eq!(url("10.1.2.3:80").as_deref(), Some("http://10.1.2.3:80"));
        assert_eq!(url("127.0.0.1:0"), None);
    }
}
