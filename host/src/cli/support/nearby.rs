//! The host that the configuration file next to the user describes: where it listens, and the token that it wants.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::client::Connection;
use crate::config::Config;

/// How a host with this configuration is reached from its own machine; none if it chooses its port when it starts.
pub fn connection(config: &Config) -> Option<Connection> {
    let serve = &config.serve;
    let mut address = serve.listen;
    if address.port() == 0 {
        return None;
    }
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let scheme = if serve.tls_cert.is_some() { "https" } else { "http" };
    // A token that cannot be read is missed when the host asks for it, and named then.
    Some(Connection { url: format!("{scheme}://{address}"), token: serve.bearer_token().ok().flatten() })
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
        assert_eq!(url("127.0.0.1:8080").as_deref(), Some("http://127.0.0.1:8080"));
        assert_eq!(url("0.0.0.0:8080").as_deref(), Some("http://127.0.0.1:8080"));
        assert_eq!(url("[::]:8080").as_deref(), Some("http://[::1]:8080"));
        assert_eq!(url("10.1.2.3:80").as_deref(), Some("http://10.1.2.3:80"));
        assert_eq!(url("127.0.0.1:0"), None);
    }
}
