//! `foldstream scan`: entries of a read model, in the order of their keys.

use serde_json::value::RawValue;

use super::reading::Reading;
use crate::cli::Context;
use crate::cli::support::client::{Client, Error};
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{Format, compact, table};
use crate::cli::support::received::{Entry, EntryPage};

/// Entries per page with `--all`.
const PAGE_ENTRIES: u32 = 1_000;
/// Longest value in a table, in characters, so that rows fit into a window.
const CELL_CHARS_MAX: usize = 160;

/// Print entries of a read model, in the order of their keys.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream scan order-totals
  foldstream scan order-totals --prefix customer/ --limit 20
  foldstream scan order-totals --start day/2026-01-01 --end day/2026-02-01 --reverse
  foldstream scan order-totals --all -o ndjson > entries.ndjson
  foldstream scan order-totals --generation 3 --limit 20")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Only keys that begin with this prefix.
    #[arg(long, conflicts_with_all = ["start", "end"])]
    prefix: Option<String>,
    /// Only keys from this one on (inclusive).
    #[arg(long, value_name = "KEY")]
    start: Option<String>,
    /// Only keys before this one (exclusive).
    #[arg(long, value_name = "KEY")]
    end: Option<String>,
    /// Continue after this key.
    #[arg(long, value_name = "KEY")]
    after: Option<String>,
    /// From the last key to the first.
    #[arg(long)]
    reverse: bool,
    /// Maximum number of entries.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000), conflicts_with = "all")]
    limit: u32,
    /// All entries, page by page, from one generation. Each page is consistent; a later page may
    /// reflect a later position.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    reading: Reading,
}

pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    args.reading
        .prepared(&client, &args.name, context.output)
        .await?;
    if args.all {
        return print_all(args, &client, context).await;
    }
    let page = fetch(&args, &client, args.after.clone(), args.limit).await?;
    context.output.many(&page.entries, &page, |entries| {
        lines(entries, Header::Shown)
    })?;
    if let Some(next) = &page.next {
        let next = crate::cli::support::output::printable(next);
        context
            .output
            .note(&format!("there is more: add --after '{next}', or --all"));
    }
    Ok(())
}

async fn fetch(
    args: &Args,
    client: &Client,
    after: Option<String>,
    limit: u32,
) -> Result<EntryPage, Error> {
    let mut parameters = args.reading.parameters();
    let texts = [
        ("prefix", &args.prefix),
        ("start", &args.start),
        ("end", &args.end),
        ("after", &after),
    ];
    parameters.extend(
        texts
            .into_iter()
            .filter_map(|(name, value)| value.clone().map(|value| (name, value))),
    );
    if args.reverse {
        parameters.push(("order", "desc".to_owned()));
    }
    parameters.push(("limit", limit.to_string()));
    client
        .get(&["v1", "deployments", &args.name, "entries"], &parameters)
        .await
}

async fn print_all(args: Args, client: &Client, context: &Context) -> anyhow::Result<()> {
    let output = &context.output;
    let mut args = args;
    let mut after = args.after.clone();
    let mut count = 0_u64;
    loop {
        let page = fetch(&args, client, after, PAGE_ENTRIES)
            .await
            .map_err(|error| broken_off(error, count))?;
        // Another generation may become active between two pages, and its keys may mean something
        // else. A host without generations names none.
        args.reading.pin(page.generation);
        match output.format {
            Format::Table => {
                let header = if count == 0 {
                    Header::Shown
                } else {
                    Header::Left
                };
                let text = lines(&page.entries, header);
                if !text.is_empty() {
                    output.line(&text)?;
                }
            }
            Format::Ndjson => page
                .entries
                .iter()
                .try_for_each(|entry| output.line(&compact(entry)))?,
            Format::Json => {
                let opening = if count == 0 { "{\"entries\":[\n" } else { "" };
                let joined: Vec<String> = page.entries.iter().map(compact).collect();
                let separator = if count > 0 && !joined.is_empty() {
                    ",\n"
                } else {
                    ""
                };
                output.raw(format!("{opening}{separator}{}", joined.join(",\n")).as_bytes())?;
            }
        }
        count += page.entries.len() as u64;
        if page.next.is_none() {
            if output.format == Format::Json {
                output.line(&format!(
                    "\n],\"position\":{},\"generation\":{}}}",
                    page.position, page.generation
                ))?;
            }
            return Ok(());
        }
        if page.entries.is_empty() {
            // A page that ends by size has at least one entry; an empty one would repeat forever.
            let message = "the host returned an empty page that is not the last; please report it";
            return Err(Failure::new(Exit::Failed, message).into());
        }
        after = page.next;
    }
}

/// If the generation of a scan disappears between two pages, the scan cannot end correctly, and
/// says so. Other errors stay unchanged.
fn broken_off(error: Error, count: u64) -> anyhow::Error {
    match &error {
        Error::Problem(problem)
            if count > 0 && matches!(problem.kind.as_str(), "conflict" | "not-found") =>
        {
            let message = format!(
                "the scan stopped after {} entries and must be repeated from the start: {}",
                crate::cli::support::output::grouped(count),
                problem.detail
            );
            Failure::new(Exit::Refused, message).into()
        }
        _ => error.into(),
    }
}

/// Whether a table begins with the names of its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// It begins with them.
    Shown,
    /// It continues an earlier page.
    Left,
}

/// Entries as rows.
pub(crate) fn lines(entries: &[Entry], header: Header) -> String {
    let header: &[&str] = match header {
        Header::Shown => &["KEY", "VALUE"],
        Header::Left if entries.is_empty() => return String::new(),
        Header::Left => &[],
    };
    table(
        header,
        entries
            .iter()
            .map(|entry| vec![entry.key.clone(), cell(&entry.value)]),
    )
}

/// A value in a table: text as it is, anything else as JSON on one line.
pub(crate) fn cell(value: &RawValue) -> String {
    // Only a string is read as one; anything else keeps its digits.
    let text = serde_json::from_str::<String>(value.get()).unwrap_or_else(|_| value.get().into());
    if text.chars().count() <= CELL_CHARS_MAX {
        return text;
    }
    let mut shortened: String = text.chars().take(CELL_CHARS_MAX - 1).collect();
    shortened.push('…');
    shortened
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::support::exit::exit_of;
    use crate::cli::support::received::raw;

    #[test]
    fn entries_are_rows_with_values_in_one_line() {
        let entries = [
            Entry {
                key: "customer/42".to_owned(),
                value: raw(r#"{"total":12345678901234567890.50}"#),
            },
            Entry {
                key: "c".to_owned(),
                value: raw("\"text\""),
            },
        ];
        assert_eq!(
            lines(&entries, Header::Shown),
            "KEY          VALUE\ncustomer/42  {\"total\":12345678901234567890.50}\nc            text"
        );
        assert_eq!(lines(&entries[1..], Header::Left), "c  text");
        assert_eq!(lines(&[], Header::Shown), "KEY  VALUE");
    }

    #[test]
    fn scan_whose_generation_is_gone_must_begin_again() {
        let problem = |kind: &str| {
            Error::Problem(crate::api::Problem {
                kind: kind.to_owned(),
                title: String::new(),
                status: 409,
                detail: "generation 1 of totals no longer runs".to_owned(),
                position: None,
            })
        };
        let said = "the scan stopped after 2,000 entries and must be repeated from the start: \
                    generation 1 of totals no longer runs";
        for kind in ["conflict", "not-found"] {
            let error = broken_off(problem(kind), 2_000);
            assert_eq!(
                (exit_of(&error), error.to_string().as_str()),
                (Exit::Refused, said)
            );
        }
        assert_eq!(
            exit_of(&broken_off(problem("not-found"), 0)),
            Exit::NotFound
        );
        assert_eq!(
            exit_of(&broken_off(problem("busy"), 2_000)),
            Exit::Unreachable
        );
    }

    #[test]
    fn long_values_are_shortened_in_tables_only() {
        let long = "x".repeat(500);
        let cell = cell(&raw(&format!("\"{long}\"")));
        assert_eq!(cell.chars().count(), CELL_CHARS_MAX);
        assert!(cell.ends_with('…'));
    }
}
