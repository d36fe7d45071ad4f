//! `foldstream demo`: a working read model with one command.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;

use super::dev;
use crate::api::{Deployment, ModuleInfo};
use crate::cli::Context;
use crate::cli::commands::deployments::deploy;
use crate::cli::commands::events;
use crate::cli::commands::reads::query;
use crate::cli::commands::reads::scan;
use crate::cli::support::client::Client;
use crate::cli::support::config_args;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::local_host::{
    Hangups, Server, free_address, keep_files_private, start_log, stop_signal,
};
use crate::cli::support::output::{Output, grouped, known, span};
use crate::cli::support::received::EntryPage;
use crate::config::Config;

/// Longest wait for the read model.
const CATCH_UP_WAIT: Duration = Duration::from_secs(120);
/// The query to show, if the module has it.
const QUERY_USUAL: &str = "top-customers";
/// Rows that are shown.
const ROWS: u32 = 8;

/// Show a complete host at work: import events, deploy a module, read the result.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream demo --module order-totals.wasm --events examples/order-totals/events.ndjson
  foldstream demo --module order-totals.wasm --events events.ndjson --query days
  foldstream demo --module order-totals.wasm --events events.ndjson --once")]
pub(crate) struct Args {
    /// The module.
    #[arg(long, value_name = "FILE")]
    module: PathBuf,
    /// Events to import.
    #[arg(long, value_name = "FILE")]
    events: PathBuf,
    /// Query to show; default: `top-customers`, or the module's first.
    #[arg(long, value_name = "NAME")]
    query: Option<String>,
    /// Arguments of the query; default: the example in its description.
    #[arg(long, value_name = "ARGUMENTS")]
    arguments: Option<String>,
    /// End after showing everything, instead of waiting for Ctrl-C.
    #[arg(long)]
    once: bool,
}

/// Shows everything, and then waits for Ctrl-C unless `--once` is set.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let hangups = Hangups::catch()?;
    let folder = config_args::temporary_folder()?;
    let mut config = Config {
        data_dir: folder.path().to_owned(),
        ..Config::default()
    };
    config.serve.listen = free_address(config.serve.listen);
    dev::quieten(&mut config);
    keep_files_private();
    let known = config.clone();
    let same = move || Ok(known.clone());
    let _log = start_log(&config, context.output)?;
    let mut server = Server::start(config).await?;
    server.reload_on(hangups, same);
    let client = server.client(context.output)?;
    let result = tokio::select! {
        result = server.ended() => return result,
        signal = stop_signal() => signal,
        // If it is dropped in the middle, it leaves only the temporary folder, which removes
        // itself.
        result = present_and_stay(&args, &client, context.output) => result,
    };
    server.stop().await?;
    result
}

async fn present_and_stay(args: &Args, client: &Client, output: Output) -> anyhow::Result<()> {
    present(args, client, output).await?;
    if !args.once {
        std::future::pending::<()>().await;
    }
    Ok(())
}

async fn present(args: &Args, client: &Client, output: Output) -> anyhow::Result<()> {
    let begun = Instant::now();
    output.line(&format!(
        "A host with an empty log listens at {}.",
        client.url()
    ))?;
    let imported = events::import_file(
        client,
        &args.events,
        &events::ImportOptions::default(),
        output,
    )
    .await?;
    let seconds = begun.elapsed().as_secs_f64();
    output.line(&format!(
        "Imported {} events in {}.",
        grouped(imported.events),
        span(seconds)
    ))?;

    let begun = Instant::now();
    let module = deploy::read_module(&args.module)?;
    let deployed = deploy::upload(client, module, &deploy::Request::default()).await?;
    output.line(&format!("Deployed {}", deploy::describe(&deployed)))?;
    let name = deployed.deployment.name.clone();
    let deployment = deploy::settled(client, &deployed, Some(CATCH_UP_WAIT), output).await?;
    output.line(&format!(
        "Caught up {} after the deploy began.",
        span(begun.elapsed().as_secs_f64())
    ))?;

    show_rows(client, &name, output).await?;
    show_query(args, client, &deployment, output).await?;
    show_position(client, &name, imported.last_sequence, output).await?;
    // With `--once` there is no host to ask when somebody reads this.
    if !args.once {
        output.line(&format!(
            "\nThe host is at {}; {}",
            client.url(),
            dev::further(client.url(), &name)
        ))?;
        output.line("Ctrl-C ends it.")?;
    }
    Ok(())
}

async fn show_rows(client: &Client, name: &str, output: Output) -> anyhow::Result<()> {
    let path = ["v1", "deployments", name, "entries"];
    let page: EntryPage = client.get(&path, &[("limit", ROWS.to_string())]).await?;
    if page.entries.is_empty() {
        return Err(Failure::new(
            Exit::Failed,
            format!("{name} has no rows; do the events match its subjects?"),
        )
        .into());
    }
    output.line(&format!(
        "\nIts first rows (foldstream scan {name} --limit {ROWS}):\n"
    ))?;
    output.line(&scan::lines(&page.entries, scan::Header::Shown))?;
    Ok(())
}

async fn show_query(
    args: &Args,
    client: &Client,
    deployment: &Deployment,
    output: Output,
) -> anyhow::Result<()> {
    let Some((query, arguments)) = choose_query(args, &deployment.module) else {
        return Ok(());
    };
    let path = ["v1", "deployments", &deployment.name, "queries", &query];
    let request = client.request(Method::POST, &path);
    let request = request
        .header(CONTENT_TYPE, query::media_type(&arguments)?)
        .body(arguments.clone());
    let answer = client.value(request).await?;
    output.line(&format!(
        "\nA query (foldstream query {} {query} '{arguments}'):\n",
        deployment.name
    ))?;
    output.line(&query::for_people(&answer))?;
    Ok(())
}

fn choose_query(args: &Args, module: &ModuleInfo) -> Option<(String, String)> {
    let named = |name: &str| module.queries.iter().find(|query| query.name == name);
    let chosen = match &args.query {
        Some(name) => named(name),
        None => named(QUERY_USUAL).or(module.queries.first()),
    };
    let name = args
        .query
        .clone()
        .or_else(|| chosen.map(|query| query.name.clone()))?;
    let example = chosen.and_then(|query| example_arguments(&query.description));
    Some((
        name,
        args.arguments
            .clone()
            .or(example)
            .unwrap_or_else(|| "{}".to_owned()),
    ))
}

/// The JSON object in a description, if there is one.
fn example_arguments(description: &str) -> Option<String> {
    let example = description.get(description.find('{')?..=description.rfind('}')?)?;
    serde_json::from_str::<serde::de::IgnoredAny>(example)
        .is_ok()
        .then(|| example.to_owned())
}

async fn show_position(
    client: &Client,
    name: &str,
    last_sequence: u64,
    output: Output,
) -> anyhow::Result<()> {
    let deployment = client.deployment(name).await?;
    output.line(&format!(
        "\nPosition {} of {}, lag {} events.",
        grouped(deployment.position),
        known(deployment.head, grouped),
        known(deployment.lag_events, grouped)
    ))?;
    if deployment.position < last_sequence || deployment.lag_events != Some(0) {
        let message = format!(
            "{name} is at position {}, expected {last_sequence}",
            deployment.position
        );
        return Err(Failure::new(Exit::Failed, message).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_taken_from_the_description() {
        assert_eq!(
            example_arguments("Who ordered most: {\"limit\": 3}").as_deref(),
            Some("{\"limit\": 3}")
        );
        for without in ["Who ordered most", "a } before {", "no {json}"] {
            assert_eq!(example_arguments(without), None, "{without}");
        }
    }
}
