//! `foldstream config`: checks, shows and generates configurations without starting anything.

use serde::Serialize;

use crate::cli::Context;
use crate::cli::support::config_args;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{Format, Output, compact, pretty, table};
use crate::config::{self, Problem, Severity};

/// Check, show or generate a configuration.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(before_help = "\
Examples:
  foldstream config template > foldstream.toml
  foldstream config check --config foldstream.toml
  foldstream config show --set serve.listen=127.0.0.1:8080")]
pub(crate) enum Command {
    Check(CheckArgs),
    Show(ShowArgs),
    Template(TemplateArgs),
}

/// Check a configuration: keys, types, contradictions, files, exposure.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream config check
  foldstream config check --config /etc/foldstream.toml -o json")]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    settings: config_args::Settings,
}

/// Show the configuration as the host would use it: file, then environment, then flags. Secrets are
/// hidden.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream config show
  FOLDSTREAM_STATE__FLUSH_INTERVAL=5s foldstream config show -o json")]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    settings: config_args::Settings,
}

/// Print a commented configuration file with every key and its default.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream config template > foldstream.toml")]
pub(crate) struct TemplateArgs {}

/// One finding, as it is printed.
#[derive(Debug, Serialize)]
struct Finding {
    severity: &'static str,
    key: String,
    message: String,
}

pub(crate) fn run(command: Command, context: &Context) -> anyhow::Result<()> {
    match command {
        Command::Check(args) => check(&args, context),
        Command::Show(args) => show(&args, context),
        Command::Template(TemplateArgs {}) => {
            Ok(context.output.raw(config::template().as_bytes())?)
        }
    }
}

fn check(args: &CheckArgs, context: &Context) -> anyhow::Result<()> {
    let config = args.settings.load(Vec::new())?;
    let problems = crate::preflight::problems(&config);
    let errors = problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .count();
    print(&context.output, &problems)?;
    if errors > 0 {
        let message = format!(
            "{errors} of {} findings would keep a host from starting",
            problems.len()
        );
        return Err(Failure::new(Exit::Usage, message).into());
    }
    context.output.note(&match args.settings.file() {
        Some(file) => format!("{} is valid", file.display()),
        None => "no file; defaults, environment and flags are valid".to_owned(),
    });
    Ok(())
}

fn print(output: &Output, problems: &[Problem]) -> std::io::Result<()> {
    let findings: Vec<Finding> = problems.iter().map(finding).collect();
    if findings.is_empty() && output.format == Format::Table {
        return Ok(());
    }
    output.many(&findings, &findings, |findings| {
        let row = |finding: &Finding| {
            vec![
                finding.severity.to_owned(),
                finding.key.clone(),
                finding.message.clone(),
            ]
        };
        table(&["SEVERITY", "KEY", "FINDING"], findings.iter().map(row))
    })
}

fn finding(problem: &Problem) -> Finding {
    let severity = match problem.severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    Finding {
        severity,
        key: problem.key.clone(),
        message: problem.message.clone(),
    }
}

fn show(args: &ShowArgs, context: &Context) -> anyhow::Result<()> {
    let shown = args.settings.load(Vec::new())?.to_shown();
    match context.output.format {
        Format::Table => context.output.raw(shown.to_string().as_bytes())?,
        Format::Json => context.output.line(&pretty(&shown))?,
        Format::Ndjson => context.output.line(&compact(&shown))?,
    }
    Ok(())
}
