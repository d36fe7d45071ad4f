//! Permissions: the subjects that a reader publishes to, and which of them the server refuses.
//!
//! A server does not answer a request that it refuses, and a reader needs some
//! subjects only later, such as after a restart. So one that is refused is
//! looked for at once, and all are named together.

use std::time::Duration;

use super::link::{Link, Trouble};
use super::open::INACTIVE_THRESHOLD;
use super::wire::Api;

/// How long a request may take that is only to show whether it is allowed.
const TRIAL_MAX: Duration = Duration::from_secs(2);
/// No consumer of ours has this name.
const NOBODY: &str = "foldstream-nobody";

/// The subjects of the API that a reader publishes to, with no consequence if the request is empty, and whether it can
/// do without.
fn subjects(api: &Api) -> [(String, bool); 5] {
    let stream = &api.stream;
    [
        (format!("STREAM.INFO.{stream}"), false),
        (format!("STREAM.MSG.GET.{stream}"), false),
        (format!("CONSUMER.CREATE.{stream}.{NOBODY}"), false),
        (format!("CONSUMER.MSG.NEXT.{stream}.{NOBODY}"), false),
        // Only a courtesy: an abandoned consumer goes by itself.
        (format!("CONSUMER.DELETE.{stream}.{NOBODY}"), true),
    ]
}

/// Subjects that the server refuses us.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Without these nothing can be read.
    pub(super) needed: Vec<String>,
    /// We do without these.
    pub(super) optional: Vec<String>,
}

impl Refused {
    /// Whether nothing is.
    pub(super) fn is_empty(&self) -> bool {
        self.needed.is_empty() && self.optional.is_empty()
    }

    /// What an operator is warned of.
    pub(super) fn warning(&self) -> Option<String> {
        (!self.optional.is_empty()).then(|| {
            format!(
                "this user may not publish to {}: consumers that are no longer used stay for {} s; grant it",
                self.optional.join(", "),
                INACTIVE_THRESHOLD.as_secs()
            )
        })
    }

    /// What has to be granted, for people.
    pub(super) fn advice(&self) -> Option<String> {
        if self.needed.is_empty() {
            return None;
        }
        Some(format!(
            "the server refuses to let this user publish to {}; grant it all that `docs/operations.md` lists for a host on a NATS server",
            self.needed.join(", ")
        ))
    }
}

/// Tries what a reader needs only later, so that a refusal is seen before anything depends on it.
pub(super) async fn try_later_needs(link: &mut Link, api: &Api) -> Result<(), Trouble> {
    if link.is_tried() {
        return Ok(());
    }
    let subject = format!("STREAM.MSG.GET.{}", api.stream);
    link.permitted(api.trial(&subject, TRIAL_MAX)).await?;
    link.set_tried();
    Ok(())
}

/// Tries every subject.
pub(super) async fn survey(link: &mut Link, api: &Api) -> Refused {
    let mut refused = Refused::default();
    for (subject, is_optional) in subjects(api) {
        if link.is_refused(api.trial(&subject, TRIAL_MAX)).await {
            let shown = format!("{}.{}", api.prefix, subject.replace(NOBODY, ">"));
            if is_optional { refused.optional.push(shown) } else { refused.needed.push(shown) }
        }
    }
    refused
}

/// Names all that is refused in place of the first refusal.
pub(super) async fn explain(link: &mut Link, api: &Api, trouble: Trouble) -> Trouble {
    // Without its inbox nothing would be answered.
    if trouble.message.contains("Subscription to") {
        return trouble;
    }
    match survey(link, api).await.advice() {
        Some(advice) => Trouble::refused(format!("{advice} ({})", trouble.message)),
        None => trouble,
    }
}
