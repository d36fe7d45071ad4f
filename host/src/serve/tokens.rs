//! Tokens and what they allow. Only digests keyed by a secret of this process stay in memory.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::Sha256;

use super::Error;
use super::scopes::{Demand, Reach};
use crate::config;
use crate::scope::{Scope, digest, is_token_name};

/// Shortest token, in bytes: a shorter one may be guessed.
const TOKEN_BYTES_MIN: usize = 16;
/// Longest token, in bytes; it has to fit into one header.
const TOKEN_BYTES_MAX: usize = 1_024;
/// Most tokens in a file.
const TOKENS_MAX: usize = 10_000;
/// Name of the token in the configuration itself. No token in a file can have it.
const CONFIGURED: &str = "serve.token";

/// The secret of this process: the digests in memory are worth nothing elsewhere. The same for each
/// reload, so that a request that is being answered can look up its token again.
static KEY: LazyLock<[u8; 32]> = LazyLock::new(rand::random);

/// The keyed digest of a token, by which it is found again after a reload.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Id([u8; 32]);

impl fmt::Debug for Id {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(config::REDACTED)
    }
}

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    id: Id,
    /// Its name, for the audit log.
    pub(super) name: String,
    scopes: BTreeSet<Scope>,
    /// Only these deployments; none means all.
    deployments: Option<BTreeSet<String>>,
}

/// What a token lacks for a request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotCovered {
    #[error("token {token} lacks the scope {scope}; it has {has}")]
    Scope {
        token: String,
        scope: Scope,
        has: String,
    },
    /// The deployments of the request.
    #[error("token {token} is only for the deployments {allowed}")]
    Deployment { token: String, allowed: String },
    /// A request for one of its deployments.
    #[error("token {token} is only for the deployments {allowed}; choose one with ?name=")]
    NoName { token: String, allowed: String },
    #[error("token {token} is only for the deployments {allowed}, and this request concerns all")]
    AllDeployments { token: String, allowed: String },
}

impl Grant {
    /// Checks whether the token covers what a route requires. `names` are the deployments that the
    /// request names.
    pub(super) fn covers(&self, demand: Demand, names: &[String]) -> Result<(), NotCovered> {
        let token = || self.name.clone();
        let missing = match demand.scope {
            Some(scope) if self.scopes.contains(&scope) => None,
            Some(scope) => Some(scope),
            // Without a known scope every one of them is needed.
            None => Scope::ALL
                .into_iter()
                .find(|scope| !self.scopes.contains(scope)),
        };
        let also = demand.also.filter(|scope| !self.scopes.contains(scope));
        if let Some(scope) = missing.or(also) {
            let has = self
                .scopes
                .iter()
                .map(|scope| scope.name())
                .collect::<Vec<_>>()
                .join(", ");
            return Err(NotCovered::Scope {
                token: token(),
                scope,
                has,
            });
        }
        // A token without a list is for all deployments.
        let Some(allowed) = &self.deployments else {
            return Ok(());
        };
        let is_allowed = |name: &String| allowed.contains(name);
        // A route that should have a name and has none is refused.
        let has_all = !names.is_empty() && names.iter().all(is_allowed);
        let list = || allowed.iter().cloned().collect::<Vec<_>>().join(", ");
        match demand.reach {
            Reach::Nothing => Ok(()),
            Reach::Host => Err(NotCovered::AllDeployments {
                token: token(),
                allowed: list(),
            }),
            Reach::Parameter if names.is_empty() => Err(NotCovered::NoName {
                token: token(),
                allowed: list(),
            }),
            Reach::Path | Reach::Parameter if has_all => Ok(()),
            Reach::Path | Reach::Parameter => Err(NotCovered::Deployment {
                token: token(),
                allowed: list(),
            }),
        }
    }
}

/// Why a token lets nobody in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// Nobody made it.
    #[error(
        "the token is not one of this host's: it is misspelt, was withdrawn, or belongs to another \
         host"
    )]
    Unknown,
    /// Its entry was made of the token with the end of a line, as `echo` writes it.
    #[error(
        "the sha256 of token {name} in serve.tokens_file is that of the token with a line end; \
         hash it with `printf %s TOKEN | sha256sum`, or take the entry that `foldstream token new` \
         prints"
    )]
    HashedWithLineEnd {
        /// The name of its entry.
        name: String,
    },
}

/// All tokens of a host.
#[derive(Clone)]
pub(super) struct Tokens {
    grants: HashMap<Id, Arc<Grant>>,
}

/// A file of tokens.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Missing in a file that is empty, as one that is being written.
    tokens: Option<Vec<Entry>>,
}

/// One token in it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    sha256: String,
    scopes: Vec<Scope>,
    deployments: Option<Vec<String>>,
}

impl Tokens {
    /// The configured tokens; none if everyone who reaches the address may do everything.
    pub(super) fn configured(config: &config::Serve) -> Result<Option<Self>, Error> {
        let text = config
            .bearer_token()
            .map_err(|error| Error::Token(error.to_string()))?;
        if text.is_none() && config.tokens_file.is_none() {
            return Ok(None);
        }
        let mut tokens = Self {
            grants: HashMap::new(),
        };
        if let Some(text) = text {
            // A file usually ends with a line break.
            let token = text.trim();
            check(token)?;
            let all = Grant {
                id: keyed(&digest(token)),
                name: CONFIGURED.to_owned(),
                scopes: Scope::ALL.into(),
                deployments: None,
            };
            tokens.add(all);
        }
        if let Some(path) = &config.tokens_file {
            tokens
                .add_file(path)
                .map_err(|detail| Error::TokensFile(format!("{}: {detail}", path.display())))?;
        }
        Ok(Some(tokens))
    }

    fn add_file(&mut self, path: &Path) -> Result<(), String> {
        let text = crate::small_file::read_regular_text(path)
            .map_err(|error| format!("cannot be read: {error}"))?;
        let file: File = toml::from_str(&text).map_err(|error| error.to_string())?;
        let Some(entries) = file.tokens else {
            return Err(
                "has no tokens; add the entry that `foldstream token new` prints, or write `tokens \
                        = []` to let nobody in"
                    .to_owned(),
            );
        };
        if entries.len() > TOKENS_MAX {
            return Err(format!("has more than {TOKENS_MAX} tokens"));
        }
        if entries.is_empty() {
            tracing::warn!(
                file = %path.display(),
                "serve.tokens_file lets nobody in: its list is empty"
            );
        }
        let mut names = BTreeSet::new();
        for Entry {
            name,
            sha256,
            scopes,
            deployments,
        } in entries
        {
            let named = |detail: &str| {
                format!(
                    "token {}: {detail}",
                    name.escape_debug().take(64).collect::<String>()
                )
            };
            if !is_token_name(&name) {
                return Err(named(
                    "a name has 1 to 63 lower-case letters, digits and hyphens, a letter first",
                ));
            }
            // The audit log has to name one token.
            if !names.insert(name.clone()) {
                return Err(named("the name occurs twice; give each token its own name"));
            }
            let digest = from_hex(&sha256).ok_or_else(|| {
                named(
                    "sha256 is not 64 hexadecimal digits; `foldstream token new` prints the \
                       right value",
                )
            })?;
            if scopes.is_empty() {
                return Err(named(
                    "has no scopes; give it some of read, append, operate and deploy",
                ));
            }
            if deployments.as_ref().is_some_and(Vec::is_empty) {
                return Err(named(
                    "deployments is empty; remove it to allow all, or name some",
                ));
            }
            let grant = Grant {
                id: keyed(&digest),
                scopes: scopes.into_iter().collect(),
                deployments: deployments.map(|names| names.into_iter().collect()),
                name: name.clone(),
            };
            // One token with two entries would have the rights of one of them by chance.
            if self.add(grant) {
                return Err(named(
                    "is the same token as another one; create a new one with `foldstream token new`",
                ));
            }
        }
        Ok(())
    }

    /// Adds a token; returns whether it was there already.
    fn add(&mut self, grant: Grant) -> bool {
        self.grants.insert(grant.id, Arc::new(grant)).is_some()
    }

    /// What the token of an earlier grant is for now.
    pub(super) fn renewed(&self, earlier: &Grant) -> Result<&Grant, Refusal> {
        let grant = self.grants.get(&earlier.id);
        grant.map(Arc::as_ref).ok_or(Refusal::Unknown)
    }

    /// What a token is for. Looking up what only this process can compute reveals nothing by the time
    /// it takes.
    pub(super) fn grant(&self, token: &str) -> Result<Arc<Grant>, Refusal> {
        let look = |text: &str| self.grants.get(&keyed(&digest(text))).cloned();
        let Some(grant) = look(token) else {
            // Who gets this has the token.
            let with_end = look(&format!("{token}\n")).filter(|_| token.len() >= TOKEN_BYTES_MIN);
            let refusal = with_end.map(|grant| Refusal::HashedWithLineEnd {
                name: grant.name.clone(),
            });
            return Err(refusal.unwrap_or(Refusal::Unknown));
        };
        if token.len() >= TOKEN_BYTES_MIN {
            return Ok(grant);
        }
        // A file has hashes alone, so this shows only now. A client that may be guessing learns
        // nothing.
        tracing::warn!(
            token = grant.name,
            "a token of fewer than {TOKEN_BYTES_MIN} bytes may be guessed and lets nobody in; make \
             one with `foldstream token new`"
        );
        Err(Refusal::Unknown)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.grants.len()
    }
}

fn keyed(digest: &[u8; 32]) -> Id {
    let mut mac: Hmac<Sha256> =
        Hmac::new_from_slice(KEY.as_slice()).expect("HMAC takes keys of any length");
    mac.update(digest);
    Id(mac.finalize().into_bytes().into())
}

/// Whether a token can be used.
fn check(token: &str) -> Result<(), Error> {
    let fits = (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len());
    if fits && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(Error::Token(format!(
        "it must have {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} visible ASCII characters without \
         spaces; create one with `openssl rand -hex 32`"
    )))
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    // One byte for each character from here on.
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16)
            .ok()
            .filter(|_| !pair.starts_with('+'))?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(text: &str) -> Result<Tokens, Error> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        let config = config::Serve {
            tokens_file: Some(file.path().to_owned()),
            ..config::Serve::default()
        };
        Tokens::configured(&config).map(|tokens| tokens.expect("a file is named"))
    }

    fn entry(name: &str, token: &str, rest: &str) -> String {
        let digest: String = digest(token)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("[[tokens]]\nname = \"{name}\"\nsha256 = \"{digest}\"\n{rest}\n")
    }

    #[test]
    fn a_token_of_the_configuration_may_do_everything() {
        let config = config::Serve {
            token: Some("s3cret-s3cret-s3cret".into()),
            ..config::Serve::default()
        };
        let tokens = Tokens::configured(&config)
            .expect("sound")
            .expect("there is one");
        let grant = tokens.grant("s3cret-s3cret-s3cret").expect("it is known");
        for scope in Scope::ALL {
            grant
                .covers(
                    Demand {
                        scope: Some(scope),
                        also: None,
                        reach: Reach::Host,
                    },
                    &[],
                )
                .expect("all scopes");
        }
        for wrong in ["", "s3cret-s3cret-s3cre", "s3cret-s3cret-s3cret2"] {
            assert_eq!(
                tokens.grant(wrong).map(drop),
                Err(Refusal::Unknown),
                "{wrong}"
            );
        }
    }

    #[test]
    fn unusable_tokens_are_refused() {
        for token in [
            "",
            "short",
            "0123456789 abcdef",
            "äääääääääääää",
            &"x".repeat(TOKEN_BYTES_MAX + 1),
        ] {
            let config = config::Serve {
                token: Some(token.into()),
                ..config::Serve::default()
            };
            assert!(Tokens::configured(&config).is_err(), "{token}");
        }
    }

    #[test]
    fn a_token_covers_its_scopes_and_deployments_alone() {
        let text = entry(
            "dashboard",
            "0123456789abcdef",
            "scopes = [\"read\", \"deploy\"]\ndeployments = [\"totals\"]",
        );
        let grant = from_file(&text)
            .expect("sound")
            .grant("0123456789abcdef")
            .expect("it is known");
        let ask = |scope, reach, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            grant.covers(
                Demand {
                    scope,
                    also: None,
                    reach,
                },
                &names,
            )
        };
        ask(Some(Scope::Read), Reach::Path, &["totals"]).expect("its own");
        ask(Some(Scope::Deploy), Reach::Parameter, &["totals"]).expect("its own");
        ask(Some(Scope::Read), Reach::Nothing, &[]).expect("nothing of anybody's");
        assert!(
            ask(Some(Scope::Operate), Reach::Path, &["totals"])
                .expect_err("no scope")
                .to_string()
                .contains("scope operate")
        );
        for (reach, names) in [
            (Reach::Path, &["other"] as &[&str]),
            (Reach::Path, &[]),
            (Reach::Parameter, &["totals", "other"]),
            (Reach::Parameter, &[]),
            (Reach::Host, &["totals"]),
        ] {
            assert!(
                ask(Some(Scope::Read), reach, names)
                    .expect_err("refused")
                    .to_string()
                    .contains("totals"),
                "{reach:?} {names:?}"
            );
        }
        assert!(
            ask(None, Reach::Nothing, &[]).is_err(),
            "an unknown route asks for every scope"
        );
    }

    #[test]
    fn mistakes_in_a_file_are_named() {
        let sound = entry("a", "one", "scopes = [\"read\"]");
        for (text, said) in [
            ("tokens = 3".to_owned(), "tokens"),
            (entry("A", "one", "scopes = [\"read\"]"), "lower-case"),
            (entry("a", "one", "scopes = [\"write\"]"), "write"),
            (entry("a", "one", "scopes = []"), "no scopes"),
            (
                entry("a", "one", "scopes = [\"read\"]\ndeployments = []"),
                "deployments is empty",
            ),
            (
                entry("a", "one", "scopes = [\"read\"]\ndeployment = \"x\""),
                "deployment",
            ),
            (
                format!("{sound}{}", entry("a", "two", "scopes = [\"read\"]")),
                "twice",
            ),
            (
                format!("{sound}{}", entry("b", "one", "scopes = [\"read\"]")),
                "same token",
            ),
            (
                sound.replace("sha256 = \"", "sha256 = \"zz"),
                "64 hexadecimal digits",
            ),
        ] {
            let error = from_file(&text).map(drop).expect_err(&text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        for empty in ["", "# soon\n"] {
            let error = from_file(empty).map(drop).expect_err("no list").to_string();
            assert!(
                error.contains("has no tokens") && error.contains("token new"),
                "{error}"
            );
        }
        assert_eq!(
            from_file("tokens = []")
                .expect("nobody is let in, as it says")
                .count(),
            0
        );
    }

    #[test]
    fn tokens_that_were_hashed_by_hand_are_distinguished() {
        let (short, long) = ("0123456789", "0123456789abcdef");
        let text = [
            entry("short", short, "scopes = [\"read\"]"),
            entry("ended", &format!("{long}\n"), "scopes = [\"read\"]"),
        ];
        let tokens = from_file(&text.concat()).expect("hashes of any text are sound");
        assert_eq!(
            tokens.grant(short).map(drop),
            Err(Refusal::Unknown),
            "it may be guessed"
        );
        let said = tokens
            .grant(long)
            .map(drop)
            .expect_err("its hash is of another text")
            .to_string();
        assert!(
            said.contains("token ended") && said.contains("printf"),
            "{said}"
        );
    }
}
