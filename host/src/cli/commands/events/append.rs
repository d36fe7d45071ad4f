//! `foldstream events append`: one event.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::Duration;

use anyhow::Context as _;

use super::times::{self, TimesOption};
use crate::api::{Append, Appended, NewEvent, WaitOutcome, Waited};
use crate::cli::Context;
use crate::cli::commands::reads::get::bytes_as_json;
use crate::cli::support::exit::{Exit, Failure};

/// Longest wait for the append.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Largest event to read from standard input, in bytes.
const DATA_BYTES_MAX: u64 = 64 << 20;

/// Append one event to an embedded log.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream events append orders.42.placed '{\"amount\": 10}'
  foldstream events append orders.42.placed - < order.json
  foldstream events append orders.42.paid '{}' --id payment-7 --header traceparent=00-…
  foldstream events append orders.42.placed '{}' --expected-last-sequence 17
  foldstream events append orders.42.placed '{}' --wait-for order-totals

Data that is JSON is stored as JSON, anything else as text.")]
pub(crate) struct Args {
    /// Subject: tokens joined by dots.
    subject: String,
    /// Data; `-` reads it from standard input.
    #[arg(default_value = "{}", allow_negative_numbers = true)]
    data: String,
    /// Type; default: the last token of the subject.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Message id: an event with the same id as one appended recently is not stored again.
    #[arg(long)]
    id: Option<String>,
    /// Time in RFC 3339; default: now.
    #[arg(long)]
    time: Option<String>,
    #[command(flatten)]
    times: TimesOption,
    /// Header; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    header: Vec<String>,
    /// Source; default: the only one.
    #[arg(long)]
    source: Option<String>,
    /// Refuse the event unless the last sequence of the log is this one.
    #[arg(long, value_name = "SEQUENCE")]
    expected_last_sequence: Option<u64>,
    /// Refuse the event unless the last sequence under the subject is this one; 0 means that there
    /// is none.
    #[arg(long, value_name = "SEQUENCE")]
    expected_last_subject_sequence: Option<u64>,
    /// Subject, or pattern, for --expected-last-subject-sequence; default: the event's.
    #[arg(
        long,
        value_name = "SUBJECT",
        requires = "expected_last_subject_sequence"
    )]
    expected_subject: Option<String>,
    /// Return when this deployment has applied the event; may be repeated. The event is stored in
    /// any case.
    #[arg(long, value_name = "DEPLOYMENT")]
    wait_for: Vec<String>,
    /// Longest wait, such as `500ms` or `1m`.
    #[arg(
        long,
        value_name = "DURATION",
        requires = "wait_for",
        default_value = "5s"
    )]
    timeout: String,
}

/// Appends the event and prints its sequence.
pub(super) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let event = NewEvent {
        subject: args.subject,
        kind: args.kind,
        id: args.id,
        time: args.time,
        headers: headers(&args.header)?,
        data: data(&args.data)?,
    };
    let append = Append {
        events: vec![event],
        expected_last_sequence: args.expected_last_sequence,
        expected_last_subject_sequence: args.expected_last_subject_sequence,
        expected_subject: args.expected_subject,
    };
    let body = serde_json::to_vec(&append).context("cannot write the event as JSON")?;
    let mut parameters: Vec<_> = args
        .source
        .into_iter()
        .map(|source| ("source", source))
        .collect();
    parameters.extend(args.times.parameter());
    if !args.wait_for.is_empty() {
        parameters.push(("wait", args.wait_for.join(",")));
        parameters.push(("timeout", args.timeout));
    }
    let content = ("application/json", body.into());
    let appended: Appended = context
        .client()?
        .post(&["v1", "events"], &parameters, content, TIMEOUT)
        .await?;
    context.output.one(&appended, |appended| {
        let sequence = appended
            .sequences
            .first()
            .copied()
            .unwrap_or(appended.last_sequence);
        let mut text = if appended.duplicates > 0 {
            format!("{sequence} (already stored)")
        } else {
            sequence.to_string()
        };
        for waited in &appended.waited {
            let (name, outcome) = (&waited.deployment, waited.outcome.name());
            text.push_str(&format!("\n{name}: {outcome}, at {}", waited.position));
        }
        text
    })?;
    times::warn(&context.output, appended.times_raised);
    match not_applied(&appended.waited) {
        Some(message) => Err(Failure::new(Exit::TimedOut, message).into()),
        None => Ok(()),
    }
}

/// What to print if a deployment has not applied the event.
fn not_applied(waited: &[Waited]) -> Option<String> {
    let open: Vec<&str> = waited
        .iter()
        .filter(|waited| !matches!(waited.outcome, WaitOutcome::Applied | WaitOutcome::Skipped))
        .map(|waited| waited.deployment.as_str())
        .collect();
    (!open.is_empty()).then(|| {
        format!(
            "the event is stored, and not yet applied by {}; do not append it again",
            open.join(", ")
        )
    })
}

fn headers(typed: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let pairs = typed.iter().map(|header| match header.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Failure::new(
            Exit::Usage,
            format!("--header `{header}` is not a header; write --header NAME=VALUE"),
        )),
    });
    pairs.collect()
}

fn data(typed: &str) -> anyhow::Result<serde_json::Value> {
    if typed != "-" {
        return Ok(serde_json::from_str(typed)
            .unwrap_or_else(|_| serde_json::Value::String(typed.to_owned())));
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(DATA_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .context("cannot read standard input")?;
    if bytes.len() as u64 > DATA_BYTES_MAX {
        return Err(Failure::new(
            Exit::Usage,
            format!("the data has more than {DATA_BYTES_MAX} bytes"),
        )
        .into());
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text))),
        Err(error) => Ok(bytes_as_json(error.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn data_is_json_where_it_can_be_and_text_otherwise() {
        assert_eq!(data("{\"a\": 1}").expect("fine"), json!({ "a": 1 }));
        assert_eq!(data("17").expect("fine"), json!(17));
        assert_eq!(data("not json").expect("fine"), json!("not json"));
    }

    #[test]
    fn headers_need_a_name_and_a_value() {
        let pairs = headers(&["a=b=c".to_owned(), "d=".to_owned()]).expect("fine");
        assert_eq!(
            pairs,
            BTreeMap::from([
                ("a".to_owned(), "b=c".to_owned()),
                ("d".to_owned(), String::new())
            ])
        );
        for wrong in ["a", "=b", ""] {
            assert_eq!(
                headers(&[wrong.to_owned()]).expect_err("is none").exit,
                Exit::Usage
            );
        }
    }
}
