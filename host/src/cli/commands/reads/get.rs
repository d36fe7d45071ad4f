//! `foldstream get`: one entry of a read model.

use std::io::IsTerminal as _;

use base64::Engine as _;
use reqwest::Method;
use serde::Serialize;
use serde_json::value::RawValue;

use super::query;
use crate::api::EntryPage;
use crate::cli::Context;
use crate::cli::support::client::{Client, Error, Value};
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::json;
use crate::cli::support::output::{Format, Output, compact};
use crate::cli::support::progress::Progress;
use crate::cli::support::wait_until_live::Patience;

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

/// Which state to read.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Reading {
    /// Wait until the state reflects this sequence.
    #[arg(long, value_name = "SEQUENCE")]
    at_least: Option<u64>,
    /// How long to wait for --at-least, such as `500ms` or `5s`.
    #[arg(long, value_name = "DURATION", requires = "at_least")]
    timeout: Option<humantime::Duration>,
    /// Read this generation, even if it is not the active one: a candidate, or the previous one.
    #[arg(long, value_name = "NUMBER")]
    generation: Option<u64>,
    /// Read the state right after this sequence, or at this time. The host folds it separately,
    /// which takes a while the first time.
    #[arg(long, value_name = "SEQUENCE|TIME", conflicts_with_all = ["at_least", "generation"])]
    as_of: Option<String>,
    /// Read it even if events that were applied are gone from the stream.
    #[arg(long, requires = "as_of")]
    accept_missing: bool,
}

impl Reading {
    /// The API parameters for these options.
    pub(crate) fn parameters(&self) -> Vec<(&'static str, String)> {
        let mut parameters = Vec::new();
        parameters.extend(
            self.at_least
                .map(|sequence| ("at-least", sequence.to_string())),
        );
        parameters.extend(
            self.timeout
                .map(|timeout| ("timeout", timeout.to_string().replace(' ', ""))),
        );
        parameters.extend(
            self.generation
                .map(|generation| ("generation", generation.to_string())),
        );
        if let Some(moment) = &self.as_of {
            parameters.push(("as-of", moment.clone()));
        }
        parameters.extend(
            self.accept_missing
                .then(crate::cli::commands::deployments::deploy::accept_missing),
        );
        parameters
    }

    /// Continues with the generation that answered. An as-of read has one generation anyway, and a
    /// host without generations names none.
    pub(crate) fn pin(&mut self, generation: u64) {
        if generation > 0 && self.as_of.is_none() {
            self.generation = Some(generation);
        }
    }

    /// Waits until the past state is prepared; the current state needs no such wait.
    pub(crate) async fn prepared(
        &self,
        client: &Client,
        name: &str,
        output: Output,
    ) -> anyhow::Result<()> {
        let Some(moment) = &self.as_of else {
            return Ok(());
        };
        let mut progress = Progress::new(&format!("{name} as of {moment}"), output);
        let mut patience = Patience::new(None);
        loop {
            let mut parameters = vec![
                ("as-of", moment.clone()),
                ("limit", "1".to_owned()),
                ("timeout", "500ms".to_owned()),
            ];
            parameters.extend(
                self.accept_missing
                    .then(crate::cli::commands::deployments::deploy::accept_missing),
            );
            match client
                .get::<EntryPage>(&["v1", "deployments", name, "entries"], &parameters)
                .await
            {
                Ok(_) => return Ok(()),
                Err(Error::Problem(problem)) if problem.kind == "not-ready" => {
                    patience.heard();
                    progress.wait(&problem.detail);
                }
                Err(error) => patience.bear(error, &progress)?,
            }
            patience.pause().await;
        }
    }
}

/// One entry, with its value unparsed, so that numbers keep all their digits.
#[derive(Serialize)]
struct Entry<'a> {
    key: &'a str,
    value: Box<RawValue>,
    position: Option<u64>,
}

/// Prints one value.
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
                value: query::as_json(&value),
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
        let shown: Vec<String> = text
            .lines()
            .map(crate::cli::support::output::printable)
            .collect();
        return Ok(output.line(&shown.join("\n"))?);
    }
    Ok(output.line(text)?)
}

/// Bytes as the API writes them in JSON.
pub(crate) fn bytes_as_json(bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({ "$bytes": base64::engine::general_purpose::STANDARD.encode(bytes) })
}
