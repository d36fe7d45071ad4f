//! Connection settings: the operator's settings, checked and completed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::context::{self, Context};
use super::{Options, Unusable};
use crate::cloudevents::Recognition;
use crate::small_file::{read_regular, read_regular_text};

const DEFAULT_SERVER: &str = "nats://127.0.0.1:4222";
const SERVERS_MAX: usize = 64;
/// A credentials file, key or token is small; anything larger is the wrong file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// A dead peer is noticed after two unanswered pings.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Messages that a subscription may hold. It must exceed what a reader lets the
/// server send unasked (`pull`), because the client drops what doesn't fit.
pub(super) const SUBSCRIPTION_CAPACITY: usize = 32_768;

/// The credentials.
enum Auth {
    None,
    Creds(PathBuf),
    Nkey(PathBuf),
    Jwt { jwt: Secret, nkey: PathBuf },
    Password { user: String, password: Secret },
    Token(Secret),
}

/// A secret in the settings or in a file.
enum Secret {
    Inline(String),
    File(PathBuf),
    /// What a file held at the start.
    Read {
        first: String,
        path: PathBuf,
    },
}

impl Secret {
    fn of(value: &Option<String>, file: &Option<PathBuf>) -> Option<Self> {
        match (value.clone(), file.clone()) {
            (Some(first), Some(path)) => Some(Self::Read { first, path }),
            (value, file) => value.map(Self::Inline).or(file.map(Self::File)),
        }
    }

    /// The secret as it is now; `setting` names its file.
    fn text(&self, setting: &str) -> Result<String, String> {
        match self {
            Self::Inline(text) => Ok(text.clone()),
            // A pipe gives its text once.
            Self::Read { first, path } if path.exists() && !path.is_file() => Ok(first.clone()),
            Self::Read { path, .. } | Self::File(path) => {
                read(setting, path).map(|text| text.trim_end_matches(['\n', '\r']).to_owned())
            }
        }
    }
}

#[derive(Default)]
struct Tls {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    required: bool,
    first: bool,
}

/// Checked settings.
pub(super) struct Settings {
    /// Name of the source.
    pub(super) name: String,
    /// Name of the stream.
    pub(super) stream: String,
    /// Addresses to connect to; never empty.
    pub(super) servers: Vec<ServerAddr>,
    /// Prefix of each subject of the JetStream API.
    pub(super) api_prefix: String,
    /// What to do if events are gone that were not applied.
    pub(super) on_missing: crate::source::OnMissing,
    auth: Auth,
    tls: Tls,
    inbox_prefix: Option<String>,
    /// Whether servers that a server advertises are left alone.
    ignore_discovered_servers: bool,
    /// Which messages are CloudEvents.
    pub(super) recognition: Recognition,
}

impl fmt::Debug for Settings {
    /// Leaves out everything that may be secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            stream,
            api_prefix,
            ..
        } = self;
        formatter
            .debug_struct("Settings")
            .field("name", name)
            .field("stream", stream)
            .field("api_prefix", api_prefix)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Checks the settings, and completes them from the context.
    pub(super) fn new(mut options: Options) -> Result<Self, Unusable> {
        // Characters that no stream may have in its name (ADR-6), and that would change an API
        // subject.
        if options.stream.is_empty()
            || options
                .stream
                .contains(['.', '*', '>', '/', '\\', ' ', '\t', '\r', '\n'])
        {
            return Err(format!(
                "`{}` is not the name of a stream; set `stream` to one that `nats stream ls` shows",
                options.stream
            )
            .into());
        }
        let context = match &options.context {
            Some(name) => context::load(name)?,
            None => Context::default(),
        };
        let servers = servers(&options.servers, &context.url)?;
        complete_login(&mut options, &context);
        // Own settings first, then the context, then what is in the address: the first that has any
        // counts.
        let auth = match Auth::of_options(&options)? {
            Auth::None => Auth::of_context(&context)?,
            auth => auth,
        };
        // The first server's credentials are used for all of them.
        let auth = match auth {
            Auth::None => Auth::of_url(&servers[0])?,
            auth => auth,
        };
        Ok(Self {
            servers,
            auth,
            tls: Tls::new(&options, &context)?,
            api_prefix: api_prefix(&options, &context)?,
            inbox_prefix: inbox_prefix(&options, &context)?,
            ignore_discovered_servers: options.ignore_discovered_servers,
            recognition: options.cloudevents,
            on_missing: options.on_missing,
            name: options.name,
            stream: options.stream,
        })
    }

    /// Options of a connection, from the current files: credentials may be replaced while we run.
    pub(super) fn connect_options(&self) -> Result<ConnectOptions, Unusable> {
        // The provider is a setting of the whole process; another component may have set it.
        drop(rustls::crypto::ring::default_provider().install_default());
        let options = ConnectOptions::new()
            .name(format!("foldstream {}", self.name))
            .ping_interval(PING_INTERVAL)
            .max_reconnects(None)
            .subscription_capacity(SUBSCRIPTION_CAPACITY);
        let options = self.auth.apply(options)?;
        let options = self.tls.apply(options)?;
        let options = if self.ignore_discovered_servers {
            options.ignore_discovered_servers()
        } else {
            options
        };
        Ok(match &self.inbox_prefix {
            Some(prefix) => options.custom_inbox_prefix(prefix),
            None => options,
        })
    }
}

/// The pause before the next attempt: it doubles up to `longest`, and half of
/// it is random, so that many hosts don't reconnect in step.
pub(super) fn delay(attempt: usize, longest: Duration) -> Duration {
    // At most 2^16 times 50 ms; `longest` ends it before.
    let doubled = Duration::from_millis(50).saturating_mul(1 << attempt.min(16));
    doubled
        .min(longest)
        .mul_f64(fastrand::f64().mul_add(0.5, 0.5))
}

fn servers(written: &[String], context_url: &str) -> Result<Vec<ServerAddr>, String> {
    let mut texts: Vec<&str> = written
        .iter()
        .flat_map(|entry| entry.split(','))
        .map(str::trim)
        .collect();
    if texts.iter().all(|text| text.is_empty()) {
        texts = context_url.split(',').map(str::trim).collect();
    }
    texts.retain(|text| !text.is_empty());
    if texts.is_empty() {
        texts.push(DEFAULT_SERVER);
    }
    if texts.len() > SERVERS_MAX {
        return Err(format!(
            "{} servers are configured; use up to {SERVERS_MAX}",
            texts.len()
        ));
    }
    texts.into_iter().map(server).collect()
}

fn server(text: &str) -> Result<ServerAddr, String> {
    // The text may hold a password, so it is not repeated.
    let wrong = |why: String| {
        format!("a server address is not valid ({why}); write it like {DEFAULT_SERVER}")
    };
    let server: ServerAddr = text
        .parse()
        .map_err(|error: std::io::Error| wrong(error.to_string()))?;
    if server.is_websocket() {
        return Err(wrong("WebSockets are not supported".to_owned()));
    }
    if server.host().is_empty() {
        return Err(wrong("it has no host".to_owned()));
    }
    Ok(server)
}

fn api_prefix(options: &Options, context: &Context) -> Result<String, String> {
    let set = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let (domain, prefix) = match (set(&options.domain), set(&options.api_prefix)) {
        // Only if neither is set here: a domain of the context does not go with a prefix of ours.
        (None, None) => (
            set(&Some(context.jetstream_domain.clone())),
            set(&Some(context.jetstream_api_prefix.clone())),
        ),
        pair => pair,
    };
    match (domain, prefix) {
        (Some(_), Some(_)) => {
            Err("`domain` and `api_prefix` are both set; keep one of them".to_owned())
        }
        (Some(domain), None)
            if domain.contains(['.', '*', '>']) || domain.contains(char::is_whitespace) =>
        {
            Err(format!(
                "`{domain}` is not a JetStream domain; write the one word that the server has as \
                 `domain`"
            ))
        }
        // What the server itself calls the prefix of a domain.
        (Some(domain), None) => Ok(format!("$JS.{domain}.API")),
        (None, Some(prefix)) => subject_prefix("api_prefix", &prefix),
        (None, None) => Ok("$JS.API".to_owned()),
    }
}

fn inbox_prefix(options: &Options, context: &Context) -> Result<Option<String>, String> {
    let written = options
        .inbox_prefix
        .clone()
        .unwrap_or_else(|| context.inbox_prefix.clone());
    if written.is_empty() {
        return Ok(None);
    }
    subject_prefix("inbox_prefix", &written).map(Some)
}

fn subject_prefix(setting: &str, prefix: &str) -> Result<String, String> {
    // People write it with and without the dot.
    let trimmed = prefix.strip_suffix('.').unwrap_or(prefix);
    crate::subject::validate(trimmed)
        .map_err(|error| format!("`{setting}` is not valid: {error}"))?;
    Ok(trimmed.to_owned())
}

/// Completes a user or a password from the context, of which the settings override the other half.
fn complete_login(options: &mut Options, context: &Context) {
    let set = |value: &String| Some(value.clone()).filter(|value| !value.is_empty());
    let has_password = options.password.is_some() || options.password_file.is_some();
    match options.user {
        None if has_password => options.user = set(&context.user),
        Some(_) if !has_password => options.password = set(&context.password),
        _ => {}
    }
}

/// What settings or a context have to log in with.
struct Given {
    creds: Option<PathBuf>,
    nkey: Option<PathBuf>,
    jwt: Option<Secret>,
    user: Option<String>,
    password: Option<Secret>,
    token: Option<Secret>,
}

impl Auth {
    fn of_options(options: &Options) -> Result<Self, String> {
        Self::of_given(Given {
            creds: options.creds.clone(),
            nkey: options.nkey.clone(),
            jwt: options.jwt.clone().map(Secret::File),
            user: options.user.clone(),
            password: Secret::of(&options.password, &options.password_file),
            token: Secret::of(&options.token, &options.token_file),
        })
    }

    fn of_context(context: &Context) -> Result<Self, String> {
        let set = |value: &String| Some(value.clone()).filter(|value| !value.is_empty());
        let path = |value: &String| set(value).map(|value| context::home_expanded(&value));
        // The nats command line treats a user without a password as a token.
        let (user, token) = match (
            set(&context.user),
            set(&context.password),
            set(&context.token),
        ) {
            (Some(user), None, None) => (None, Some(user)),
            (user, _, token) => (user, token),
        };
        Self::of_given(Given {
            creds: path(&context.creds),
            nkey: path(&context.nkey),
            jwt: set(&context.user_jwt).map(Secret::Inline),
            user,
            password: set(&context.password).map(Secret::Inline),
            token: token.map(Secret::Inline),
        })
        .map_err(|message| format!("context: {message}"))
    }

    fn of_url(server: &ServerAddr) -> Result<Self, String> {
        let decoded = |text: &str| {
            percent_decoded(text)
                .ok_or_else(|| "user or password in the server address is not UTF-8".to_owned())
        };
        Ok(match (server.username(), server.password()) {
            (None, _) => Self::None,
            (Some(user), Some(password)) => Self::Password {
                user: decoded(user)?,
                password: Secret::Inline(decoded(password)?),
            },
            (Some(token), None) => Self::Token(Secret::Inline(decoded(token)?)),
        })
    }

    fn of_given(given: Given) -> Result<Self, String> {
        let Given {
            creds,
            nkey,
            jwt,
            user,
            password,
            token,
        } = given;
        // One way is one group of settings: a JWT needs an nkey, and a user a password.
        let ways = [
            creds.is_some(),
            nkey.is_some() || jwt.is_some(),
            user.is_some() || password.is_some(),
            token.is_some(),
        ];
        if ways.into_iter().filter(|set| *set).count() > 1 {
            return Err(
                "more than one of `creds`, `nkey` (with `jwt`), `user` (with `password`) and \
                 `token` is set; keep one"
                    .to_owned(),
            );
        }
        match (creds, nkey, jwt, user, password, token) {
            (Some(creds), ..) => Ok(Self::Creds(creds)),
            (_, Some(nkey), Some(jwt), ..) => Ok(Self::Jwt { jwt, nkey }),
            (_, Some(nkey), ..) => Ok(Self::Nkey(nkey)),
            (_, _, Some(_), ..) => {
                Err("`jwt` is set without `nkey`; set `nkey` to the file with its seed".to_owned())
            }
            (_, _, _, Some(user), Some(password), _) => Ok(Self::Password { user, password }),
            (_, _, _, Some(_), None, _) => {
                Err("`user` is set without `password`; set both".to_owned())
            }
            (_, _, _, None, Some(_), _) => {
                Err("`password` is set without `user`; set both".to_owned())
            }
            (.., Some(token)) => Ok(Self::Token(token)),
            (.., None) => Ok(Self::None),
        }
    }

    fn apply(&self, options: ConnectOptions) -> Result<ConnectOptions, String> {
        match self {
            Self::None => Ok(options),
            Self::Creds(path) => options.credentials(&read("creds", path)?).map_err(|error| {
                format!(
                    "`creds` {} is not a credentials file: {error}; generate it with `nsc`",
                    path.display()
                )
            }),
            Self::Nkey(path) => Ok(options.nkey(seed(path)?)),
            Self::Jwt { jwt, nkey } => {
                let jwt = undecorated(&jwt.text("jwt")?);
                // The client takes both only in the form of a credentials file.
                let seed = seed(nkey)?;
                options
                    .credentials(&credentials(&jwt, &seed))
                    .map_err(|error| format!("`jwt` is not valid: {error}"))
            }
            Self::Password { user, password } => {
                Ok(options.user_and_password(user.clone(), password.text("password_file")?))
            }
            Self::Token(token) => Ok(options.token(token.text("token_file")?)),
        }
    }
}

/// A JWT and a seed in the form of a credentials file.
fn credentials(jwt: &str, seed: &str) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER \
         NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

fn seed(path: &Path) -> Result<String, String> {
    let seed = undecorated(&read("nkey", path)?);
    // The client checks seeds only as part of credentials.
    ConnectOptions::new()
        .credentials(&credentials("e30", &seed))
        .map_err(|error| {
            format!(
                "`nkey` {} contains no seed: {error}; write one with `nk -gen user`",
                path.display()
            )
        })?;
    Ok(seed)
}

/// The first line that is neither empty nor a `-----BEGIN …-----` around it.
fn undecorated(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with("---"))
        .unwrap_or_default()
        .to_owned()
}

fn read(setting: &str, path: &Path) -> Result<String, String> {
    let unusable = |why: String| {
        format!(
            "cannot read `{setting}` {}: {why}; correct the path or its permissions",
            path.display()
        )
    };
    let content =
        read_regular(path, FILE_BYTES_MAX).map_err(|error| unusable(error.to_string()))?;
    String::from_utf8(content).map_err(|_| unusable("it is no UTF-8 text".to_owned()))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        // `%` without two hexadecimal digits means itself.
        let escaped = (*first == b'%').then(|| tail.get(..2)).flatten();
        let decoded = escaped
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(decoded.unwrap_or(*first));
        rest = if decoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).ok()
}

impl Tls {
    fn new(options: &Options, context: &Context) -> Result<Self, String> {
        let path = |own: &Option<PathBuf>, theirs: &String| {
            own.clone()
                .or_else(|| (!theirs.is_empty()).then(|| context::home_expanded(theirs)))
        };
        let tls = Self {
            ca: path(&options.tls_ca, &context.ca),
            cert: path(&options.tls_cert, &context.cert),
            key: path(&options.tls_key, &context.key),
            required: options.tls_required,
            first: options.tls_first || context.tls_first,
        };
        match (&tls.cert, &tls.key) {
            (Some(_), None) => Err("`tls_cert` is set without `tls_key`; set both".to_owned()),
            (None, Some(_)) => Err("`tls_key` is set without `tls_cert`; set both".to_owned()),
            _ => Ok(tls),
        }
    }

    fn apply(&self, mut options: ConnectOptions) -> Result<ConnectOptions, String> {
        if let Some(ca) = &self.ca {
            // Checked here, because the client would fail at each connection, and with fewer words.
            certificates("tls_ca", ca)?;
            options = options.add_root_certificates(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            certificates("tls_cert", cert)?;
            let unusable = |error: String| {
                format!(
                    "`tls_key` {} is not a key in PEM: {error}; correct it",
                    key.display()
                )
            };
            let text = read_regular_text(key).map_err(|error| unusable(error.to_string()))?;
            PrivateKeyDer::from_pem_slice(text.as_bytes())
                .map_err(|error| unusable(error.to_string()))?;
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        if self.first {
            options = options.tls_first();
        }
        // An operator who configures certificates does not want to continue in clear text.
        let required = self.required || self.first || self.ca.is_some() || self.cert.is_some();
        Ok(options.require_tls(required))
    }
}

fn certificates(setting: &str, path: &Path) -> Result<(), String> {
    let unusable = |why: String| {
        format!(
            "`{setting}` {} contains no certificate in PEM: {why}; correct it",
            path.display()
        )
    };
    let mut count = 0;
    let text = read_regular_text(path).map_err(|error| unusable(error.to_string()))?;
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        certificate.map_err(|error| unusable(error.to_string()))?;
        count += 1;
    }
    if count == 0 {
        return Err(unusable("none found".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_and_never_vanish() {
        let longest = Duration::from_secs(4);
        for attempt in 0..100 {
            let pause = delay(attempt, longest);
            assert!(
                pause >= Duration::from_millis(25) && pause <= longest,
                "{attempt}: {pause:?}"
            );
        }
        assert!(delay(50, longest) >= longest / 2);
    }

    #[test]
    fn context_completes_the_other_half_of_a_login() {
        let completed = |user: Option<&str>, password: Option<&str>, theirs: (&str, &str)| {
            let mut options = Options {
                user: user.map(str::to_owned),
                password: password.map(str::to_owned),
                ..Options::default()
            };
            let mut context = Context::default();
            (context.user, context.password) = (theirs.0.to_owned(), theirs.1.to_owned());
            complete_login(&mut options, &context);
            [options.user, options.password].map(Option::unwrap_or_default)
        };
        assert_eq!(completed(None, Some("own"), ("u", "p")), ["u", "own"]);
        assert_eq!(completed(Some("own"), None, ("u", "p")), ["own", "p"]);
        assert_eq!(completed(Some("a"), Some("b"), ("u", "p")), ["a", "b"]);
        // Then the whole login of the context counts.
        assert_eq!(completed(None, None, ("u", "p")), ["", ""]);
        // Refused afterwards, as a password without a user.
        assert_eq!(completed(None, Some("own"), ("", "")), ["", "own"]);
    }

    #[test]
    fn secrets_in_addresses_are_decoded() {
        assert_eq!(
            percent_decoded("p%40ss%2Fw%c3%B6rd").as_deref(),
            Some("p@ss/wörd")
        );
        assert_eq!(percent_decoded("100%").as_deref(), Some("100%"));
        assert_eq!(percent_decoded("%zz%4").as_deref(), Some("%zz%4"));
        assert_eq!(percent_decoded("%ff"), None);
    }
}
