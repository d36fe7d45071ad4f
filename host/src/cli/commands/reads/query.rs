//! `foldstream query`: runs a query of a module.

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::value::RawValue;

use super::reading::Reading;
use super::value::{as_json, print_value};
use crate::cli::Context;
use crate::cli::support::client::{self, Client, Value};
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::json::{self, Ordered};
use crate::cli::support::output::{Format, compact, printable, table};

const JSON: &str = "application/json";
/// Most columns of an answer shown as a table.
const COLUMNS_MAX: usize = 12;

/// Run one of the queries of a module.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream query order-totals top-customers
  foldstream query order-totals top-customers '{\"limit\": 3}'
  foldstream query order-totals top-customers '{\"limit\": 3}' -o ndjson
  foldstream query order-totals top-customers --generation 3
  foldstream show order-totals              # its queries and their arguments

Arguments that begin like JSON (with { [ \" a digit, or a minus) must be JSON; anything else is \
passed as text. A list of objects is shown as a table.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Name of the query.
    query: String,
    /// Arguments.
    #[arg(value_name = "ARGUMENTS", allow_negative_numbers = true)]
    arguments: Option<String>,
    #[command(flatten)]
    reading: Reading,
}

pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let arguments = args.arguments.unwrap_or_default();
    let media_type = media_type(&arguments)?;
    let client = context.client()?;
    args.reading
        .prepared(&client, &args.name, context.output)
        .await?;
    let path = ["v1", "deployments", &args.name, "queries", &args.query];
    let request = client
        .request(Method::POST, &path)
        .query(&args.reading.parameters())
        .header(CONTENT_TYPE, media_type)
        .body(arguments);
    let answer = match client.value(request).await {
        Ok(answer) => answer,
        Err(error) => {
            return Err(explained(&client, (&args.name, &args.query), media_type, error).await);
        }
    };
    let output = &context.output;
    match output.format {
        Format::Table if answer.is_json() => output.line(&for_people(&answer))?,
        Format::Table => print_value(output, &answer)?,
        Format::Json => output.line(&json::indented(as_json(&answer).get()))?,
        Format::Ndjson => {
            match serde_json::from_str::<Vec<Box<RawValue>>>(as_json(&answer).get()) {
                Ok(items) => items
                    .iter()
                    .try_for_each(|item| output.line(&compact(item)))?,
                Err(_) => output.line(&compact(&as_json(&answer)))?,
            }
        }
    }
    Ok(())
}

/// An error of the query itself, with the module's description of its arguments.
async fn explained(
    client: &Client,
    (name, query): (&str, &str),
    media_type: &str,
    error: client::Error,
) -> anyhow::Error {
    // The module says `invalid` if it cannot use the arguments.
    let is_of_module = matches!(
        &error,
        client::Error::Problem(problem) if ["query-failed", "invalid"].contains(&problem.kind.as_str())
    );
    if !is_of_module {
        return error.into();
    }
    let Ok(deployment) = client.deployment(name).await else {
        return error.into();
    };
    let Some(described) = deployment
        .module
        .queries
        .iter()
        .find(|described| described.name == query)
    else {
        return error.into();
    };
    let mut message = format!(
        "{error}; `{query}` is described as: {}",
        described.description
    );
    if media_type != JSON {
        message.push_str(
            "; its arguments were sent as text: for a JSON string quote them twice, \
                          as in '\"ada\"'",
        );
    }
    Failure::new(error.exit(), message).into()
}

/// An answer for people: a table if possible, otherwise indented JSON, otherwise text.
pub(crate) fn for_people(answer: &Value) -> String {
    match rows(answer) {
        Some(rows) => rows,
        None if answer.is_json() => json::indented(as_json(answer).get()),
        None => String::from_utf8_lossy(&answer.body)
            .lines()
            .map(printable)
            .collect::<Vec<_>>()
            .join("\n"),
    }
}

/// The content type of the arguments: JSON if they begin like JSON, in which case they must be
/// valid.
pub(crate) fn media_type(arguments: &str) -> Result<&'static str, Failure> {
    let first = arguments.trim_start().chars().next();
    let literal = matches!(arguments.trim(), "true" | "false" | "null");
    let like_json =
        literal || first.is_some_and(|c| matches!(c, '{' | '[' | '"' | '-') || c.is_ascii_digit());
    if !like_json {
        return Ok("text/plain; charset=utf-8");
    }
    match serde_json::from_str::<serde::de::IgnoredAny>(arguments) {
        Ok(_) => Ok(JSON),
        Err(error) => Err(Failure::new(
            Exit::Usage,
            format!(
                "the arguments begin like JSON but are not valid: {error}; quote them for the \
                 shell, as in '{{\"limit\": 3}}'"
            ),
        )),
    }
}

/// The answer as a table, if it is a list of flat objects with few members.
fn rows(answer: &Value) -> Option<String> {
    if !answer.is_json() {
        return None;
    }
    let Ordered::List(items) = serde_json::from_slice(&answer.body).ok()? else {
        return None;
    };
    let mut columns: Vec<&str> = Vec::new();
    for item in &items {
        let Ordered::Object(members) = item else {
            return None;
        };
        for (name, value) in members {
            if matches!(value, Ordered::List(_) | Ordered::Object(_)) {
                return None;
            }
            if !columns.contains(&name.as_str()) {
                columns.push(name);
            }
        }
    }
    if columns.is_empty() || columns.len() > COLUMNS_MAX {
        return None;
    }
    let rows = items
        .iter()
        .map(|item| columns.iter().map(|column| item.cell(column)).collect());
    let header: Vec<String> = columns.iter().map(|column| column.to_uppercase()).collect();
    Some(table(
        &header.iter().map(String::as_str).collect::<Vec<_>>(),
        rows,
    ))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn answer(json: &str) -> Value {
        let media_type = "application/json".to_owned();
        Value {
            media_type,
            position: None,
            body: Bytes::copy_from_slice(json.as_bytes()),
        }
    }

    #[test]
    fn lists_of_flat_objects_are_tables_in_the_order_of_their_members() {
        let json = r#"[{"customer":"42","total":1.5},{"customer":"7","total":20,"note":null}]"#;
        assert_eq!(
            rows(&answer(json)).as_deref(),
            Some("CUSTOMER  TOTAL  NOTE\n42        1.5\n7         20")
        );
    }

    #[test]
    fn other_answers_are_no_tables() {
        for json in [
            "[]",
            "{}",
            "3",
            "[1,2]",
            r#"[{"a":[1]}]"#,
            r#"[{"a":{}}]"#,
            "[{}]",
        ] {
            assert_eq!(rows(&answer(json)), None, "{json}");
        }
    }

    #[test]
    fn arguments_are_json_only_when_they_begin_like_it() {
        for json in [
            "{\"limit\": 3}",
            "[1]",
            "3",
            "-1.5",
            "\"text\"",
            "true",
            "null",
        ] {
            assert_eq!(
                media_type(json).expect("is JSON"),
                "application/json",
                "{json}"
            );
        }
        for text in ["", "customer 42", "nothing", "truly"] {
            assert_eq!(
                media_type(text).expect("is text"),
                "text/plain; charset=utf-8",
                "{text}"
            );
        }
        for broken in ["{limit: 3}", "[1", "3 customers"] {
            let failure = media_type(broken).expect_err("is neither");
            assert_eq!(failure.exit, Exit::Usage);
            assert!(
                failure
                    .message
                    .starts_with("the arguments begin like JSON but are not valid: "),
                "{failure}"
            );
        }
    }
}
