//! Values of entries and answers, for people and as JSON.

use std::io::IsTerminal as _;

use base64::Engine as _;
use serde_json::value::RawValue;

use crate::cli::support::client::Value;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::json;
use crate::cli::support::output::{Output, compact, printable};

/// Prints a value: JSON and text as lines, bytes as they are.
pub(crate) fn print_value(output: &Output, value: &Value) -> anyhow::Result<()> {
    let Ok(text) = std::str::from_utf8(&value.body) else {
        if std::io::stdout().is_terminal() {
            let size = value.body.len();
            let message = format!(
                "the value is {size} bytes of binary data; write it to a file with `> FILE`, or \
                 use -o json"
            );
            return Err(Failure::new(Exit::Failed, message).into());
        }
        return Ok(output.raw(&value.body)?);
    };
    if std::io::stdout().is_terminal()
        && text
            .chars()
            .any(|c| c.is_control() && !matches!(c, '\n' | '\t'))
    {
        let shown: Vec<String> = text.lines().map(printable).collect();
        return Ok(output.line(&shown.join("\n"))?);
    }
    Ok(output.line(text)?)
}

/// Bytes as the API writes them in JSON.
pub(crate) fn bytes_as_json(bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({ "$bytes": base64::engine::general_purpose::STANDARD.encode(bytes) })
}

/// A value as JSON on one line; numbers keep all their digits.
pub(crate) fn as_json(value: &Value) -> Box<RawValue> {
    let raw = |json: String| RawValue::from_string(json).ok();
    let own = std::str::from_utf8(&value.body)
        .ok()
        .filter(|_| value.is_json())
        .and_then(|text| raw(json::one_line(text)));
    let other = || match std::str::from_utf8(&value.body) {
        Ok(text) => raw(compact(&text)),
        Err(_) => raw(compact(&bytes_as_json(&value.body))),
    };
    own.or_else(other)
        .expect("text and octets can be written as JSON")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn values_become_json_in_one_line_without_loss() {
        let text = |body: &'static [u8], media_type: &str| {
            let value = Value {
                media_type: media_type.to_owned(),
                position: None,
                body: Bytes::from_static(body),
            };
            as_json(&value).get().to_owned()
        };
        assert_eq!(
            text(b"{\"b\": 1,\n \"a\": 1e400}", "application/json"),
            "{\"b\":1,\"a\":1e400}"
        );
        assert_eq!(text(b"not json", "application/json"), "\"not json\"");
        assert_eq!(
            text(b"a \"b\"", "text/plain; charset=utf-8"),
            "\"a \\\"b\\\"\""
        );
        assert_eq!(
            text(b"\xff", "application/octet-stream"),
            "{\"$bytes\":\"/w==\"}"
        );
    }
}
