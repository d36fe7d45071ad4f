//! Permissions: the subjects that a reader publishes to, and which of them the server refuses.
//!
//! A server does not answer a request that it refuses, and a reader needs some
//! subjects only later, such as after a restart. So if one subject is refused,
//! all others are tested at once, and all refused ones are listed together.

use std::time::Duration;

use super::link::{Link, Trouble};
use super::open::INACTIVE_THRESHOLD;
use super::wire::Api;

/// Longest wait for a request that only tests a permission.
const TRIAL_MAX: Duration = Duration::from_secs(2);
/// No consumer of ours has this name.
const NOBODY: &str = "foldstream-nobody";

/// The API subjects to which a reader publishes, and whether it can work without them. An empty
/// request to them has no effect.
fn subjects(api: &Api) -> [(String, bool); 5] {
    // In the order in which a reader needs them.
    let stream = &api.stream;
    [
        (format!("STREAM.INFO.{stream}"), false),
        (format!("STREAM.MSG.GET.{stream}"), false),
        (format!("CONSUMER.CREATE.{stream}.{NOBODY}"), false),
        (format!("CONSUMER.MSG.NEXT.{stream}.{NOBODY}"), false),
        // Optional: an abandoned consumer is removed on its own.
        (format!("CONSUMER.DELETE.{stream}.{NOBODY}"), true),
    ]
}

/// Subjects that the server refuses.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Without these nothing can be read.
    pub(super) needed: Vec<String>,
    /// These are optional.
    pub(super) optional: Vec<String>,
}

impl Refused {
    /// Whether nothing is refused.
    pub(super) fn is_empty(&self) -> bool {
        self.needed.is_empty() && self.optional.is_empty()
    }

    /// A warning for operators.
    pub(super) fn warning(&self) -> Option<String> {
        (!self.optional.is_empty()).then(|| {
            format!(
                "this user may not publish to {}: unused consumers stay for {} s; grant it",
                self.optional.join(", "),
                INACTIVE_THRESHOLD.as_secs()
            )
        })
    }

    /// The permissions to grant, for people.
    pub(super) fn advice(&self) -> Option<String> {
        if self.needed.is_empty() {
            return None;
        }
        Some(format!(
            "the server refuses to let this user publish to {}; grant it all that \
             `docs/operations.md` lists for a host on a NATS server",
            self.needed.join(", ")
        ))
    }
}

/// Tests what a reader needs only later, so that a refusal is seen before anything depends on it.
pub(super) async fn try_later_needs(link: &mut Link, api: &Api) -> Result<(), Trouble> {
    // Once per connection: permissions belong to it.
    if link.is_tried() {
        return Ok(());
    }
    let subject = format!("STREAM.MSG.GET.{}", api.stream);
    link.permitted(api.trial(&subject, TRIAL_MAX)).await?;
    link.set_tried();
    Ok(())
}

/// Tests every subject.
pub(super) async fn survey(link: &mut Link, api: &Api) -> Refused {
    let mut refused = Refused::default();
    for (subject, is_optional) in subjects(api) {
        if link.is_refused(api.trial(&subject, TRIAL_MAX)).await {
            // People grant it for all consumers, as their names are random.
            let shown = format!("{}.{}", api.prefix, subject.replace(NOBODY, ">"));
            if is_optional {
                refused.optional.push(shown);
            } else {
                refused.needed.push(shown);
            }
        }
    }
    refused
}

/// Lists everything that is refused in place of the first refusal.
pub(super) async fn explain(link: &mut Link, api: &Api, trouble: Trouble) -> Trouble {
    // Without its inbox no request would get an answer.
    if trouble.message.contains("Subscription to") {
        return trouble;
    }
    match survey(link, api).await.advice() {
        Some(advice) => Trouble::refused(format!("{advice} ({})", trouble.message)),
        None => trouble,
    }
}
