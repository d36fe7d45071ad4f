//! `foldstream get`: one entry of a read model.

use reqwest::Method;
use serde::Serialize;
use serde_json::value::RawValue;

use super::reading::Reading;
use super::value::{as_json, print_value};
use crate::cli::Context;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::json;
use crate::cli::support::output::{Format, compact};

/// Print one entry of a read model.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream get order-totals customer/42
  foldstream get order-totals customer/42 --at-least 1000000
  foldstream get order-totals customer/42 --generation 3
  foldstream get order-totals customer/42 --as-of 2026-11-24T10:00:00Z
  foldstream get order-totals customer/42 -o json | jq .value.total")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// The key.
    key: String,
    #[command(flatten)]
    reading: Reading,
}

/// One entry, with its value unparsed, so that numbers keep all their digits.
#[derive(Serialize)]
struct Entry<'a> {
    key: &'a str,
    value: Box<RawValue>,
    position: Option<u64>,
}

pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    if matches!(args.key.as_str(), "." | "..") {
        let message = format!(
            "the key `{0}` cannot be part of a URL; use `foldstream scan NAME --prefix {0}`",
            args.key
        );
        return Err(Failure::new(Exit::Usage, message).into());
    }
    let client = context.client()?;
    args.reading
        .prepared(&client, &args.name, context.output)
        .await?;
    let path = ["v1", "deployments", &args.name, "entries", &args.key];
    let value = client
        .value(
            client
                .request(Method::GET, &path)
                .query(&args.reading.parameters()),
        )
        .await?;
    match context.output.format {
        Format::Table => print_value(&context.output, &value)?,
        Format::Json | Format::Ndjson => {
            let entry = Entry {
                key: &args.key,
                value: as_json(&value),
                position: value.position,
            };
            let text = compact(&entry);
            let text = if context.output.format == Format::Json {
                json::indented(&text)
            } else {
                text
            };
            context.output.line(&text)?;
        }
    }
    Ok(())
}
