//! Settings of a JetStream stream, and what is wrong with them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{JetStream, Options, clear_text};
use crate::cloudevents::Recognition;
use crate::settings::{Findings, ReadError, Secret, Setting, read_secret, settings};
use crate::source::kind::{Begun, HostParts, KindSettings, NotBegun, UnusableSource};
use crate::source::{OnMissing, Source};

settings! {
    /// A JetStream stream.
    #[derive(Clone, Debug, Default, Serialize, Deserialize)]
    #[serde(default)]
    pub struct JetStreamSettings {
        /// Name of the stream. For example `"ORDERS"`.
        pub stream: String,
        /// Servers; default: those of the context, or `nats://127.0.0.1:4222`. For example
        /// `["nats://10.0.0.1:4222", "nats://10.0.0.2:4222"]`.
        pub servers: Vec<String>,
        /// A context of the `nats` command line, by name; other settings here override it. For
        /// example `"production"`.
        pub context: Option<String>,
        /// Credentials file. For example `"/etc/foldstream/orders.creds"`.
        pub creds: Option<PathBuf>,
        /// File with an nkey seed. For example `"/etc/foldstream/orders.nk"`.
        pub nkey: Option<PathBuf>,
        /// File with a JWT, used with `nkey`. For example `"/etc/foldstream/orders.jwt"`.
        pub jwt: Option<PathBuf>,
        /// User. For example `"foldstream"`.
        pub user: Option<String>,
        /// Password. For example `"correct horse"`.
        pub password: Option<Secret>,
        /// File that contains the password. For example `"/run/secrets/nats-password"`.
        pub password_file: Option<PathBuf>,
        /// Token. For example `"f2b8c0a97d"`.
        pub token: Option<Secret>,
        /// File that contains the token. For example `"/run/secrets/nats-token"`.
        pub token_file: Option<PathBuf>,
        /// Root certificates (PEM). For example `"/etc/foldstream/nats-ca.crt"`.
        pub tls_ca: Option<PathBuf>,
        /// Client certificate (PEM). For example `"/etc/foldstream/nats.crt"`.
        pub tls_cert: Option<PathBuf>,
        /// Client key (PEM). For example `"/etc/foldstream/nats.key"`.
        pub tls_key: Option<PathBuf>,
        /// Refuse connections without TLS.
        pub tls_required: bool,
        /// Start TLS before the server's first line.
        pub tls_first: bool,
        /// Connect only to the servers named here or in the context, and to none that those
        /// advertise, as the members of a cluster advertise each other. For networks in which a
        /// server must not choose where this host connects to.
        pub ignore_discovered_servers: bool,
        /// JetStream domain. For example `"edge"`.
        pub domain: Option<String>,
        /// Prefix of the JetStream API, instead of a domain. For example `"$JS.edge.API"`.
        pub api_prefix: Option<String>,
        /// Prefix of inboxes, if permissions require one. For example `"_INBOX_foldstream"`.
        pub inbox_prefix: Option<String>,
        /// Which messages are CloudEvents: `auto` recognises them by headers, and JSON by its
        /// attributes; `headers` only by headers; `off` recognises none. For example `"headers"`.
        pub cloudevents: Recognition,
        /// What to do if events are gone that were not applied: `stop` stops the deployment until
        /// an operator accepts it, `count` counts them and continues, for a stream that loses
        /// events by design. For example `"stop"`.
        pub missing: OnMissing,
    }
}

impl JetStreamSettings {
    /// Options of the source; reads the files that contain secrets.
    pub fn options(&self, name: &str) -> Result<Options, ReadError> {
        let secret = |value: &Option<Secret>, file: &Option<PathBuf>, key: &str| match (value, file)
        {
            (None, Some(path)) => read_secret(&format!("sources.{name}.{key}"), path).map(Some),
            (value, _) => Ok(value.as_deref().map(str::to_owned)),
        };
        Ok(Options {
            name: name.to_owned(),
            stream: self.stream.clone(),
            servers: self.servers.clone(),
            context: self.context.clone(),
            creds: self.creds.clone(),
            nkey: self.nkey.clone(),
            jwt: self.jwt.clone(),
            user: self.user.clone(),
            password: secret(&self.password, &self.password_file, "password_file")?,
            password_file: self.password_file.clone(),
            token: secret(&self.token, &self.token_file, "token_file")?,
            token_file: self.token_file.clone(),
            tls_ca: self.tls_ca.clone(),
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
            tls_required: self.tls_required,
            tls_first: self.tls_first,
            ignore_discovered_servers: self.ignore_discovered_servers,
            domain: self.domain.clone(),
            api_prefix: self.api_prefix.clone(),
            inbox_prefix: self.inbox_prefix.clone(),
            cloudevents: self.cloudevents,
            on_missing: self.missing,
        })
    }

    /// The source; reads the files that the settings name, and does not connect yet.
    fn source(&self, name: &str) -> Result<Source, UnusableSource> {
        Ok(Source::JetStream(JetStream::new(self.options(name)?)?))
    }
}

impl KindSettings for JetStreamSettings {
    fn check(&self, findings: &mut Findings, name: &str) {
        check_stream(findings, name, self);
        check_credentials(findings, name, self);
        clear_text::check(findings, name, self);
    }

    fn is_log(&self) -> bool {
        false
    }

    fn without_host(&self, name: &str) -> Option<Result<Source, UnusableSource>> {
        Some(self.source(name))
    }

    fn begin(&self, name: &str, _: HostParts<'_>) -> Result<Begun, NotBegun> {
        Ok(Begun {
            source: self.source(name)?,
            opening: None,
        })
    }
}

fn check_stream(findings: &mut Findings, name: &str, source: &JetStreamSettings) {
    let key = |key: &str| format!("sources.{name}.{key}");
    if source.stream.is_empty() {
        findings.error(
            key("stream"),
            "is missing; give the name of the stream, as `nats stream ls` shows it",
        );
    } else if source
        .stream
        .contains(|c: char| c.is_whitespace() || ".*>/\\".contains(c))
    {
        findings.error(
            key("stream"),
            format!(
                "`{}` is not the name of a stream; subjects belong in modules",
                source.stream
            ),
        );
    }
    for server in &source.servers {
        let scheme = server.split_once("://").map(|(scheme, _)| scheme);
        // Without a scheme it is `nats`.
        if !matches!(scheme, None | Some("nats" | "tls")) || server.trim().is_empty() {
            findings.error(
                key("servers"),
                format!("`{server}` is not a server; write nats://HOST:PORT or tls://HOST:PORT"),
            );
        }
    }
    findings.together(
        Setting::of(&key("tls_cert"), &source.tls_cert),
        Setting::of(&key("tls_key"), &source.tls_key),
    );
    findings.either(
        Setting::of(&key("domain"), &source.domain),
        Setting::of(&key("api_prefix"), &source.api_prefix),
    );
    let files = [
        ("tls_ca", &source.tls_ca),
        ("tls_cert", &source.tls_cert),
        ("tls_key", &source.tls_key),
    ];
    for (file, path) in files {
        findings.file(&key(file), path.as_deref());
    }
}

/// Exactly one way to sign in, and all of it.
fn check_credentials(findings: &mut Findings, name: &str, source: &JetStreamSettings) {
    let key = |key: &str| format!("sources.{name}.{key}");
    let password = source.password.is_some() || source.password_file.is_some();
    let token = source.token.is_some() || source.token_file.is_some();
    findings.either(
        Setting::of(&key("password"), &source.password),
        Setting::of(&key("password_file"), &source.password_file),
    );
    findings.either(
        Setting::of(&key("token"), &source.token),
        Setting::of(&key("token_file"), &source.token_file),
    );
    // A context may have the other half; whether it has is seen when it is read.
    if source.context.is_none() {
        findings.together(
            Setting::of(&key("user"), &source.user),
            Setting {
                key: &key("password"),
                is_set: password,
            },
        );
    }
    // A user's JWT is signed for its nkey, which has to prove that it is the user.
    if source.jwt.is_some() && source.nkey.is_none() {
        findings.error(key("jwt"), format!("needs {} as well", key("nkey")));
    }
    let ways = [
        ("creds", source.creds.is_some()),
        ("nkey", source.nkey.is_some()),
        ("user", source.user.is_some()),
        ("token", token),
    ];
    let chosen: Vec<&str> = ways
        .iter()
        .filter(|(_, set)| *set)
        .map(|(way, _)| *way)
        .collect();
    if let [one, another, ..] = chosen[..] {
        findings.error(
            key(one),
            format!("contradicts {}; choose one way to sign in", key(another)),
        );
    }
    let files = [
        ("creds", &source.creds),
        ("nkey", &source.nkey),
        ("jwt", &source.jwt),
        ("password_file", &source.password_file),
        ("token_file", &source.token_file),
    ];
    for (file, path) in files {
        findings.file(&key(file), path.as_deref());
    }
}
