//! What a start would stumble over: settings that make no sense, and files that do not hold what
//! they are named for. Everything that a start makes of the configuration before it opens the data
//! folder is made here, and thrown away.

use crate::config::{Config, Problem, Serve, Severity};
use crate::serve::{self, Validity};

/// A certificate that expires sooner causes a warning.
const CERTIFICATE_LEFT_MIN: jiff::SignedDuration = jiff::SignedDuration::from_hours(14 * 24);

/// Everything that keeps a host with this configuration from starting, or that is hardly intended.
/// What has an error in its settings is not made, as it would only fail once more.
pub fn problems(config: &Config) -> Vec<Problem> {
    let mut problems = config.problems();
    // Each on its own: one that is not fit would hide the other.
    for (keys, settings) in [
        ("serve.tls", without_tokens(&config.serve)),
        ("serve.token", without_tls(&config.serve)),
    ] {
        if !has_error_with(&problems, keys) {
            problems.extend(problem_of_server(&settings));
        }
    }
    for (name, source) in &config.sources {
        let key = format!("sources.{name}");
        if !has_error_with(&problems, &format!("{key}."))
            && let Some(Err(problem)) = source.without_host(name)
        {
            problems.push(error(&key, problem.to_string()));
        }
    }
    problems
}

fn has_error_with(problems: &[Problem], keys: &str) -> bool {
    problems
        .iter()
        .any(|problem| problem.severity == Severity::Error && problem.key.starts_with(keys))
}

fn error(key: &str, message: String) -> Problem {
    Problem {
        severity: Severity::Error,
        key: key.to_owned(),
        message,
    }
}

fn without_tokens(settings: &Serve) -> Serve {
    Serve {
        token: None,
        token_file: None,
        tokens_file: None,
        ..settings.clone()
    }
}

fn without_tls(settings: &Serve) -> Serve {
    Serve {
        tls_cert: None,
        tls_key: None,
        ..settings.clone()
    }
}

fn problem_of_server(settings: &Serve) -> Option<Problem> {
    match serve::check_secrets(settings) {
        Err(problem @ serve::Error::Tls(_)) => Some(error("serve.tls_cert", problem.to_string())),
        Err(problem @ serve::Error::TokensFile(_)) => {
            Some(error("serve.tokens_file", problem.to_string()))
        }
        Err(problem) => Some(error("serve.token_file", problem.to_string())),
        Ok(()) => problem_of_certificate(settings),
    }
}

fn problem_of_certificate(settings: &Serve) -> Option<Problem> {
    let cert = settings.tls_cert.as_ref()?;
    let Validity { begin, end } = serve::certificate_validity(cert).ok()?;
    let now = jiff::Timestamp::now();
    let left = end.duration_since(now);
    let key = "serve.tls_cert";
    let cert = cert.display();
    // An error, because every client would refuse it.
    if left.is_negative() {
        return Some(error(
            key,
            format!("the certificate in {cert} ended at {end}; renew it"),
        ));
    }
    if begin > now {
        return Some(error(
            key,
            format!("the certificate in {cert} begins at {begin}, which is not yet"),
        ));
    }
    let days = left.as_hours() / 24;
    let message = format!("the certificate in {cert} ends in {days} days, at {end}; renew it");
    (left < CERTIFICATE_LEFT_MIN).then(|| Problem {
        severity: Severity::Warning,
        key: key.to_owned(),
        message,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn certificate_and_key_have_to_be_what_they_are_named_for() {
        let tls = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tls");
        let private = tempfile::tempdir().expect("a temporary folder");
        let copied = |name: &str| {
            let copy = private.path().join(name);
            std::fs::copy(format!("{tls}/{name}"), &copy).expect("copies");
            std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600))
                .expect("changes");
            copy
        };
        let said = |cert: &str, key: &std::path::Path| -> Vec<String> {
            let serve = Serve {
                tls_cert: Some(cert.into()),
                tls_key: Some(key.to_owned()),
                ..Serve::default()
            };
            problems(&Config {
                serve,
                ..Config::default()
            })
            .iter()
            .map(ToString::to_string)
            .collect()
        };
        let key = copied("server.key");
        assert_eq!(said(&format!("{tls}/server.pem"), &key), [""; 0]);
        let empty = tempfile::NamedTempFile::new().expect("a temporary file");
        let [one] = &said(&empty.path().display().to_string(), &key)[..] else {
            panic!("one")
        };
        assert!(
            one.starts_with("serve.tls_cert: ") && one.contains("there is no certificate in it"),
            "{one}"
        );
        let [one] = &said(&format!("{tls}/server.pem"), &copied("client.key"))[..] else {
            panic!("one")
        };
        assert!(one.contains("certificate and key do not match"), "{one}");
        // Tokens that can't be used hide no certificate.
        let serve = Serve {
            tls_cert: Some(empty.path().to_owned()),
            tls_key: Some(key),
            tokens_file: Some(private.path().to_owned()),
            ..Serve::default()
        };
        let config = Config {
            serve,
            ..Config::default()
        };
        let keys: Vec<String> = problems(&config)
            .into_iter()
            .map(|problem| problem.key)
            .collect();
        assert_eq!(keys, ["serve.tokens_file", "serve.tls_cert"]);
    }
}
