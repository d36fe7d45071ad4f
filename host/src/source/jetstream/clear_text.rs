//! Whether a password or token of a source would cross the network in clear text.

use std::net::IpAddr;

use super::settings::JetStreamSettings;
use crate::settings::Findings;

/// Warns about that. Credentials and nkeys sign a challenge of the server, and are never sent
/// themselves.
pub(super) fn check(findings: &mut Findings, name: &str, source: &JetStreamSettings) {
    let has_tls = source.tls_required
        || source.tls_first
        || source.tls_ca.is_some()
        || source.tls_cert.is_some();
    let has_secret = [source.password.is_some(), source.password_file.is_some()].contains(&true)
        || source.token.is_some()
        || source.token_file.is_some();
    for server in source.servers.iter().filter(|_| !has_tls) {
        let (scheme, rest) = server.split_once("://").unwrap_or(("nats", server));
        // The last `@`, because a password may have one.
        let (user, address) = rest
            .rsplit_once('@')
            .map_or((None, rest), |(user, address)| (Some(user), address));
        if scheme == "nats" && (has_secret || user.is_some()) && !is_here(address) {
            findings.warning(
                format!("sources.{name}.tls_required"),
                format!(
                    "the password or token is sent to {address} in clear text if the server or \
                     somebody in between offers no TLS; set tls_required = true, or sign in with \
                     creds or nkey"
                ),
            );
            // One warning for each source; the others would say the same.
            return;
        }
    }
}

/// Whether an address can only mean this machine.
fn is_here(address: &str) -> bool {
    // An IPv6 address has colons itself, so it is written in brackets.
    let host = match address.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => address.split(':').next().unwrap_or_default(),
    };
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned(settings: JetStreamSettings, server: &str) -> bool {
        let mut findings = Findings::default();
        check(
            &mut findings,
            "a",
            &JetStreamSettings {
                servers: vec![server.to_owned()],
                ..settings
            },
        );
        findings.concerns("sources.a.tls_required")
    }

    #[test]
    fn secrets_in_clear_text_are_warned_of() {
        let secret = || JetStreamSettings {
            token_file: Some("t".into()),
            ..JetStreamSettings::default()
        };
        for server in [
            "nats://10.0.0.1:4222",
            "nats.example",
            "nats://127.0.0.1.evil.example:4222",
            "nats://[fe80::1]",
        ] {
            assert!(warned(secret(), server), "{server}");
        }
        for server in [
            "tls://10.0.0.1:4222",
            "nats://127.0.0.1:4222",
            "localhost",
            "nats://[::1]:4222",
        ] {
            assert!(!warned(secret(), server), "{server}");
        }
        assert!(warned(
            JetStreamSettings::default(),
            "nats://user:password@10.0.0.1"
        ));
        assert!(!warned(JetStreamSettings::default(), "nats://10.0.0.1"));
        assert!(!warned(
            JetStreamSettings {
                creds: Some("c".into()),
                ..JetStreamSettings::default()
            },
            "nats://10.0.0.1"
        ));
        assert!(!warned(
            JetStreamSettings {
                tls_required: true,
                ..secret()
            },
            "nats://10.0.0.1"
        ));
    }
}
