//! Manifests, checked against the host's limits.

use std::collections::HashSet;
use std::time::Duration;

use super::bindings::{self, HandlerRecord, ManifestRecord};
use super::sandbox::Bounds;
use super::{Accepted, Error, Inbox, KeyRule, Manifest, ModuleKind, Options};
use crate::schemas::by_event;
use crate::state::catalogue::{
    ErrorPolicy, EventVersion, ModuleInfo, ModuleLimits, QueryDescription,
};
use crate::subject::{PATTERNS_MAX, Pattern, SubjectSet};

/// Longest name of a module or a query.
const NAME_BYTES_MAX: usize = 63;
const DESCRIPTION_BYTES_MAX: usize = 4_096;
const QUERIES_MAX: usize = 256;
/// Most tokens that a subject can have: one byte each, and a dot between.
const TOKENS_MAX: u32 = 512;
/// Longest header name or JSON pointer of a key rule.
const KEY_RULE_BYTES_MAX: usize = 1_024;

/// A manifest as the module returned it.
pub(super) enum Described {
    Projection(ManifestRecord),
    Handler(HandlerRecord),
}

impl Described {
    pub(super) fn checked(self, options: &Options) -> Result<Manifest, Error> {
        let handler = match self {
            Self::Projection(record) => return checked(record, options),
            Self::Handler(handler) => handler,
        };
        let publishes = publishes(&handler.publishes)?;
        let sets_timers = handler.sets_timers;
        // All that both kinds have is checked in one place.
        let record = ManifestRecord {
            kind: bindings::ModuleKind::Projection,
            name: handler.name,
            description: handler.description,
            subjects: handler.subjects,
            wants_headers: handler.wants_headers,
            key_rule: handler.key_rule,
            state_version: handler.state_version,
            error_policy: handler.error_policy,
            limits: handler.limits,
            queries: handler.queries,
        };
        Ok(Manifest {
            kind: ModuleKind::Handler,
            publishes,
            sets_timers,
            ..checked(record, options)?
        })
    }
}

/// The subjects that a handler publishes to. It may have none.
fn publishes(patterns: &[String]) -> Result<Vec<Pattern>, Error> {
    if patterns.len() > PATTERNS_MAX {
        let count = patterns.len();
        return Err(Error::Manifest(format!(
            "publishes has {count} subjects; declare at most {PATTERNS_MAX}"
        )));
    }
    let parse = |pattern: &String| {
        Pattern::parse(pattern).map_err(|error| Error::Manifest(format!("publishes: {error}")))
    };
    patterns.iter().map(parse).collect()
}

fn checked(record: ManifestRecord, options: &Options) -> Result<Manifest, Error> {
    let bindings::ModuleKind::Projection = record.kind;
    check_name("module", &record.name)?;
    check_description("the module", &record.description)?;
    let subjects =
        SubjectSet::parse(&record.subjects).map_err(|error| Error::Manifest(error.to_string()))?;
    let limits = &record.limits;
    let deadline = limits
        .deadline_ms
        .map(|ms| Duration::from_millis(ms.into()));
    check_limit(
        "memory-bytes",
        limits.memory_bytes,
        options.memory_bytes_max,
    )?;
    let deadline_max_ms = u64::try_from(options.deadline_max.as_millis()).unwrap_or(u64::MAX);
    check_limit(
        "deadline-ms",
        limits.deadline_ms.map(u64::from),
        deadline_max_ms,
    )?;
    // No maximum here: the host's own limits apply whatever the module asks for.
    check_limit("batch-events", limits.batch_events.map(u64::from), u64::MAX)?;
    check_limit("state-bytes", limits.state_bytes, u64::MAX)?;
    check_limit(
        "attempts",
        record.error_policy.attempts.map(u64::from),
        u64::MAX,
    )?;
    check_backoff(&record.error_policy)?;
    let milliseconds = |ms: Option<u32>| ms.map(|ms| Duration::from_millis(ms.into()));
    Ok(Manifest {
        kind: ModuleKind::Projection,
        publishes: Vec::new(),
        sets_timers: false,
        subjects,
        wants_headers: record.wants_headers,
        key_rule: key_rule("key-rule", record.key_rule)?,
        state_version: record.state_version,
        attempts: record.error_policy.attempts,
        initial_backoff: milliseconds(record.error_policy.initial_backoff_ms),
        max_backoff: milliseconds(record.error_policy.max_backoff_ms),
        memory_bytes: limits.memory_bytes,
        deadline,
        batch_events: limits.batch_events,
        state_bytes: limits.state_bytes,
        queries: queries(record.queries)?,
        inbox: None,
        name: record.name,
        description: record.description,
    })
}

/// The limits of an instance: what the manifest asks for, otherwise the host's settings.
pub(super) fn bounds(options: &Options, manifest: Option<&Manifest>) -> Bounds {
    Bounds {
        host_calls_max: options.host_calls_max,
        memory_bytes: manifest
            .and_then(|manifest| manifest.memory_bytes)
            .unwrap_or(options.memory_bytes),
        table_elements_max: options.table_elements_max,
        log_bytes_max: options.log_bytes_max,
        deadline: manifest
            .and_then(|manifest| manifest.deadline)
            .unwrap_or(options.deadline),
        transfer_bytes_max: options.transfer_bytes_max(),
        value_bytes_max: options.value_bytes_max,
    }
}

/// The manifest, for people and machines outside, of a module that does not migrate.
pub(super) fn info(manifest: &Manifest, accepted: &Accepted) -> ModuleInfo {
    let key_rule = match &manifest.key_rule {
        KeyRule::None => "none".to_owned(),
        KeyRule::Subject => "subject".to_owned(),
        KeyRule::SubjectToken(token) => format!("subject-token:{token}"),
        KeyRule::Header(name) => format!("header:{name}"),
        KeyRule::DataPointer(pointer) => format!("data-pointer:{pointer}"),
    };
    let described = |(name, description): &(String, String)| QueryDescription {
        name: name.clone(),
        description: description.clone(),
    };
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    ModuleInfo {
        digest: accepted.digest.clone(),
        size: accepted.component.len() as u64,
        kind: manifest.kind,
        name: manifest.name.clone(),
        description: manifest.description.clone(),
        subjects: manifest
            .subjects
            .patterns()
            .iter()
            .map(ToString::to_string)
            .collect(),
        wants_headers: manifest.wants_headers,
        key_rule,
        state_version: manifest.state_version,
        error_policy: ErrorPolicy {
            attempts: manifest.attempts,
            initial_backoff_ms: manifest.initial_backoff.map(milliseconds),
            max_backoff_ms: manifest.max_backoff.map(milliseconds),
        },
        limits: ModuleLimits {
            memory_bytes: manifest.memory_bytes,
            deadline_ms: manifest.deadline.map(milliseconds),
            batch_events: manifest.batch_events,
            state_bytes: manifest.state_bytes,
        },
        queries: manifest.queries.iter().map(described).collect(),
        imports: accepted.imports.clone(),
        migrates: false,
        publishes: manifest.publishes.iter().map(ToString::to_string).collect(),
        inbox: manifest.inbox.as_ref().map(Inbox::info),
        sets_timers: manifest.sets_timers,
        events: events(accepted),
    }
}

/// The events for which a module carries schemas, by direction, type and version.
fn events(accepted: &Accepted) -> Vec<EventVersion> {
    let all = by_event(&accepted.schemas).into_values().flatten();
    all.map(|schema| EventVersion {
        event: schema.event.clone(),
        version: schema.version,
        direction: schema.direction,
    })
    .collect()
}

/// A manifest for fuzz tests, as a module may return it.
#[derive(Clone, Debug, Default)]
pub struct DrawnManifest {
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: String,
    /// Its subjects.
    pub subjects: Vec<String>,
    /// The key rule from 0 to 4, and the number and text that some rules have.
    pub key_rule: (u8, u32, String),
    /// Memory in bytes, deadline in milliseconds, events per batch, state in bytes.
    pub limits: [Option<u64>; 4],
    /// Attempts per event.
    pub attempts: Option<u32>,
    /// The first and the longest pause between them, in milliseconds.
    pub backoff_ms: [Option<u32>; 2],
    /// Names and descriptions of its queries.
    pub queries: Vec<(String, String)>,
}

/// Checks a manifest that does not come from a module, with the default limits of a host.
pub(super) fn check_drawn(drawn: &DrawnManifest) -> Result<ModuleInfo, Error> {
    let short = |limit: Option<u64>| limit.map(|limit| limit as u32);
    let (number, text) = (drawn.key_rule.1, drawn.key_rule.2.clone());
    let record = ManifestRecord {
        kind: bindings::ModuleKind::Projection,
        name: drawn.name.clone(),
        description: drawn.description.clone(),
        subjects: drawn.subjects.clone(),
        wants_headers: false,
        key_rule: match drawn.key_rule.0 {
            0 => bindings::KeyRule::None,
            1 => bindings::KeyRule::Subject,
            2 => bindings::KeyRule::SubjectToken(number),
            3 => bindings::KeyRule::Header(text),
            _ => bindings::KeyRule::DataPointer(text),
        },
        state_version: number,
        error_policy: bindings::ErrorPolicy {
            attempts: drawn.attempts,
            initial_backoff_ms: drawn.backoff_ms[0],
            max_backoff_ms: drawn.backoff_ms[1],
        },
        limits: bindings::Limits {
            memory_bytes: drawn.limits[0],
            deadline_ms: short(drawn.limits[1]),
            batch_events: short(drawn.limits[2]),
            state_bytes: drawn.limits[3],
        },
        queries: drawn
            .queries
            .iter()
            .map(|(name, description)| bindings::QueryDescription {
                name: name.clone(),
                description: description.clone(),
            })
            .collect(),
    };
    let options = Options::new("cache".into(), "compiler".into());
    let manifest = checked(record, &options)?;
    let accepted = Accepted {
        component: bytes::Bytes::new(),
        digest: String::new(),
        imports: Vec::new(),
        schemas: Vec::new().into(),
    };
    Ok(info(&manifest, &accepted))
}

fn check_name(of: &str, name: &str) -> Result<(), Error> {
    let sound = name.len() <= NAME_BYTES_MAX
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !sound {
        return Err(Error::Manifest(format!(
            "`{}` is not a name for a {of}: use lower-case letters, digits and hyphens, 1 to \
             {NAME_BYTES_MAX} of them, a letter first",
            shown(name)
        )));
    }
    Ok(())
}

fn check_description(of: &str, description: &str) -> Result<(), Error> {
    if description.len() > DESCRIPTION_BYTES_MAX {
        return Err(Error::Manifest(format!(
            "the description of {of} has {} bytes; shorten it to {DESCRIPTION_BYTES_MAX}",
            description.len()
        )));
    }
    Ok(())
}

/// Zero never makes sense, and more than the host allows is refused.
fn check_limit(name: &str, wanted: Option<u64>, max: u64) -> Result<(), Error> {
    match wanted {
        Some(0) => Err(Error::Manifest(format!(
            "{name} is 0; use at least 1, or leave it out"
        ))),
        Some(wanted) if wanted > max => Err(Error::Manifest(format!(
            "{name} is {wanted}, but this host allows {max}; ask for less, or raise the host's \
             maximum"
        ))),
        _ => Ok(()),
    }
}

fn check_backoff(policy: &bindings::ErrorPolicy) -> Result<(), Error> {
    match (policy.initial_backoff_ms, policy.max_backoff_ms) {
        (Some(initial), Some(max)) if initial > max => Err(Error::Manifest(format!(
            "initial-backoff-ms is {initial}, but max-backoff-ms is only {max}; raise the latter"
        ))),
        _ => Ok(()),
    }
}

/// Checks where a key or an id is; `what` names the field of the manifest.
pub(super) fn key_rule(what: &str, rule: bindings::KeyRule) -> Result<KeyRule, Error> {
    match rule {
        bindings::KeyRule::None => Ok(KeyRule::None),
        bindings::KeyRule::Subject => Ok(KeyRule::Subject),
        bindings::KeyRule::SubjectToken(token) if (1..=TOKENS_MAX).contains(&token) => {
            Ok(KeyRule::SubjectToken(token))
        }
        bindings::KeyRule::SubjectToken(token) => Err(Error::Manifest(format!(
            "{what} uses token {token} of the subject; tokens are counted from 1 to at most \
             {TOKENS_MAX}"
        ))),
        bindings::KeyRule::Header(name) => {
            let sound = (1..=KEY_RULE_BYTES_MAX).contains(&name.len())
                && name.bytes().all(|byte| {
                    byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && byte != b':'
                });
            if sound {
                Ok(KeyRule::Header(name))
            } else {
                Err(unsound_rule(what, "header name in lower case", &name))
            }
        }
        bindings::KeyRule::DataPointer(pointer) => {
            let sound = pointer.len() <= KEY_RULE_BYTES_MAX
                && pointer.starts_with('/')
                && escapes_are_sound(&pointer);
            if sound {
                Ok(KeyRule::DataPointer(pointer))
            } else {
                let wanted = format!(
                    "JSON pointer of at most {KEY_RULE_BYTES_MAX} bytes that begins with `/` and \
                     writes `~` as `~0`"
                );
                Err(unsound_rule(what, &wanted, &pointer))
            }
        }
    }
}

/// Whether each `~` of a JSON pointer begins one of its two escapes.
fn escapes_are_sound(pointer: &str) -> bool {
    pointer
        .split('~')
        .skip(1)
        .all(|rest| rest.starts_with(['0', '1']))
}

fn unsound_rule(what: &str, wanted: &str, found: &str) -> Error {
    Error::Manifest(format!(
        "{what} uses `{}`, which is not a {wanted}",
        shown(found)
    ))
}

fn queries(described: Vec<bindings::QueryDescription>) -> Result<Vec<(String, String)>, Error> {
    if described.len() > QUERIES_MAX {
        return Err(Error::Manifest(format!(
            "{} queries; declare at most {QUERIES_MAX}",
            described.len()
        )));
    }
    let mut names = HashSet::new();
    let mut queries = Vec::with_capacity(described.len());
    for bindings::QueryDescription { name, description } in described {
        check_name("query", &name)?;
        check_description(&format!("query {name}"), &description)?;
        // The host finds a query by its name.
        if !names.insert(name.clone()) {
            return Err(Error::Manifest(format!(
                "two queries have the name `{name}`; rename one"
            )));
        }
        queries.push((name, description));
    }
    Ok(queries)
}

/// The beginning of a text that may be long, with control characters escaped.
fn shown(text: &str) -> String {
    let begin = super::output::clipped(text, 128);
    begin
        .chars()
        .map(|c| {
            if c.is_control() {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointer_with_an_escape_that_there_is_not_is_no_pointer() {
        for (pointer, is_sound) in [
            ("/id", true),
            ("/a~0b/~1", true),
            ("/a~2", false),
            ("/a~", false),
        ] {
            let made = key_rule(
                "key-rule",
                bindings::KeyRule::DataPointer(pointer.to_owned()),
            );
            assert_eq!(made.is_ok(), is_sound, "{pointer}");
        }
    }

    fn record() -> ManifestRecord {
        ManifestRecord {
            kind: bindings::ModuleKind::Projection,
            name: "order-totals".to_owned(),
            description: "Totals.".to_owned(),
            subjects: vec!["orders.>".to_owned()],
            wants_headers: false,
            key_rule: bindings::KeyRule::None,
            state_version: 1,
            error_policy: bindings::ErrorPolicy {
                attempts: None,
                initial_backoff_ms: None,
                max_backoff_ms: None,
            },
            limits: bindings::Limits {
                memory_bytes: None,
                deadline_ms: None,
                batch_events: None,
                state_bytes: None,
            },
            queries: Vec::new(),
        }
    }

    /// The complaint about a manifest that is sound but for one change.
    fn complaint(change: impl FnOnce(&mut ManifestRecord)) -> String {
        let options = Options::new("cache".into(), "compiler".into());
        let mut changed = record();
        change(&mut changed);
        checked(changed, &options)
            .expect_err("is refused")
            .to_string()
    }

    fn query(name: &str) -> bindings::QueryDescription {
        bindings::QueryDescription {
            name: name.to_owned(),
            description: String::new(),
        }
    }

    #[test]
    fn sound_manifest_is_taken_over() {
        let options = Options::new("cache".into(), "compiler".into());
        let mut record = record();
        record.limits.deadline_ms = Some(250);
        record.queries = vec![query("top")];
        let manifest = checked(record, &options).expect("is sound");
        let bounds = bounds(&options, Some(&manifest));
        assert_eq!(bounds.deadline, Duration::from_millis(250));
        assert_eq!(
            bounds.memory_bytes, options.memory_bytes,
            "what is left out takes the host's setting"
        );
        assert_eq!(manifest.queries, [("top".to_owned(), String::new())]);
    }

    #[test]
    fn names_are_checked() {
        let long = "x".repeat(64);
        for name in ["", "Orders", "1st", "-a", "a b", "ümlaut", long.as_str()] {
            assert!(
                complaint(|record| record.name = name.to_owned())
                    .contains("is not a name for a module"),
                "{name}"
            );
            assert!(
                complaint(|record| record.queries = vec![query(name)]).contains("for a query"),
                "{name}"
            );
        }
        let steered = complaint(|record| record.name = "a\u{1b}[2J\n".to_owned());
        assert!(
            steered.contains("`a\\u{1b}[2J\\n`") && !steered.contains(char::is_control),
            "{steered:?}"
        );
        assert!(
            complaint(|record| record.queries = vec![query("a"), query("a")])
                .contains("two queries")
        );
    }

    #[test]
    fn subjects_are_checked() {
        assert!(complaint(|record| record.subjects.clear()).contains("0 subjects"));
        assert!(complaint(|record| record.subjects = vec!["a..b".to_owned()]).contains("a..b"));
        assert!(
            complaint(|record| record.subjects = vec!["a".to_owned(); 65]).contains("65 subjects")
        );
    }

    #[test]
    fn limits_are_checked_against_the_hosts() {
        assert!(
            complaint(|record| record.limits.memory_bytes = Some(2 << 30))
                .contains("allows 268435456")
        );
        assert!(
            complaint(|record| record.limits.deadline_ms = Some(60_001))
                .contains("deadline-ms is 60001")
        );
        assert!(
            complaint(|record| record.limits.batch_events = Some(0)).contains("batch-events is 0")
        );
        assert!(
            complaint(|record| record.error_policy.attempts = Some(0)).contains("attempts is 0")
        );
        let backoff = |record: &mut ManifestRecord| {
            record.error_policy.initial_backoff_ms = Some(2);
            record.error_policy.max_backoff_ms = Some(1);
        };
        assert!(complaint(backoff).contains("raise the latter"));
    }

    #[test]
    fn key_rules_are_checked() {
        for rule in [
            bindings::KeyRule::SubjectToken(0),
            bindings::KeyRule::SubjectToken(513),
            bindings::KeyRule::Header(String::new()),
            bindings::KeyRule::Header("Ce-Id".to_owned()),
            bindings::KeyRule::DataPointer("a/b".to_owned()),
        ] {
            assert!(complaint(|record| record.key_rule = rule).contains("key-rule"));
        }
    }

    #[test]
    fn descriptions_are_bounded() {
        assert!(complaint(|record| record.description = "x".repeat(4_097)).contains("4097 bytes"));
    }
}
