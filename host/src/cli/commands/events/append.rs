//! `foldstream events append`: one event.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::times::{self, TimesOption};
use crate::api::{Appended, WaitOutcome, Waited};
use crate::cli::Context;
use crate::cli::commands::reads::value::bytes_as_json;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::json::one_line;
use crate::event::json;

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

Data that is JSON is stored as JSON, with all its digits and without white space, anything else as \
text. {\"$bytes\": \"AAEC\"} is bytes in base64.")]
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

/// [`crate::api::Append`], with data as typed.
#[derive(Serialize)]
struct Append {
    events: [NewEvent; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_last_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_last_subject_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_subject: Option<String>,
}

/// [`crate::api::NewEvent`], with data as typed.
#[derive(Serialize)]
struct NewEvent {
    subject: String,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    data: Box<RawValue>,
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
        events: [event],
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
    let is_refused = |waited: &Waited| waited.outcome == WaitOutcome::NotAllowed;
    if waited.iter().any(is_refused) {
        let message = "the event is stored, but the token no longer allows to ask what became of \
                       it; do not append it again";
        return Some(message.to_owned());
    }
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

fn data(typed: &str) -> anyhow::Result<Box<RawValue>> {
    if typed != "-" {
        return shown(typed);
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
        Ok(text) => shown(&text),
        Err(error) => Ok(to_raw_value(&bytes_as_json(error.as_bytes()))?),
    }
}

/// A text as the API takes it.
fn shown(text: &str) -> anyhow::Result<Box<RawValue>> {
    let shown = match json(text) {
        // A string of the API is plain text, and not the JSON that was typed.
        Some(raw) if raw.get().starts_with('"') => {
            to_raw_value(&bytes_as_json(raw.get().as_bytes()))
        }
        Some(raw) => RawValue::from_string(one_line(raw.get())),
        None => to_raw_value(text),
    };
    shown.context("cannot write the data as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_json_where_it_can_be_and_text_otherwise() {
        for (typed, sent) in [
            ("{\"a\": 1}", "{\"a\":1}"),
            (
                "{\"z\":0.12345678901234567890,\n\"a\":1.0,\"a\":1E5}\n",
                "{\"z\":0.12345678901234567890,\"a\":1.0,\"a\":1E5}",
            ),
            ("12345678901234567890123", "12345678901234567890123"),
            ("not json", "\"not json\""),
            ("\"hello\"", "{\"$bytes\":\"ImhlbGxvIg==\"}"),
            ("{\"$bytes\":\"AAEC\"}", "{\"$bytes\":\"AAEC\"}"),
            ("1e999", "\"1e999\""),
        ] {
            assert_eq!(data(typed).expect("fine").get(), sent, "{typed}");
        }
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
