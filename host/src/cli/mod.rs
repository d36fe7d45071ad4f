//! The command line: a client of the HTTP API.
//!
//! One file per command, and one arm of `Command` each. A command's `Args` hold
//! what the user typed; [`Context`] turns it into what all commands need, once.

mod commands;
pub mod support;

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Arg, ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use commands::contract;
use commands::deployments::{delete, deploy, list, pause, resume, show, skips};
use commands::events;
use commands::host::{
    audit, backup, check_module, compact, completions, config, doctor, man, serve, token,
};
use commands::outbox;
use commands::parked;
use commands::project::{build, demo, dev, generate, inspect, new, record, replay, test};
use commands::reads::{get, query, scan, watch};
use commands::rollouts::{
    abort, generations, promote, prune, rebuild, rebuilds, rollback, throttle, verify,
};
use commands::sagas;
use commands::timers;
use support::client::{Client, Connection};
use support::exit::{self, Failure};
use support::exit_code;
use support::output::{Color, Format, Output};
use support::{config_args, nearby};

/// How long a stopped host waits for its files to close before the process ends despite a guest
/// that is still running.
const CALLS_LEFT_MAX: Duration = Duration::from_millis(200);

/// The default address of a host.
pub const URL_DEFAULT: &str = "http://127.0.0.1:7575";

/// Most threads of a host for blocking work; they start on demand. Even if as many queries run as a
/// configuration allows, for as long as a module may take, commits, scans and appends still get the
/// remaining threads, which they use only briefly.
pub(crate) const BLOCKING_THREADS_MAX: usize = crate::config::QUERIES_MAX + 512;

/// Examples come before the options, because most readers look for them.
const HELP_TEMPLATE: &str =
    "{about-with-newline}\n{before-help}{usage-heading} {usage}\n\n{all-args}{after-help}";

/// Fold event streams into read models with WebAssembly modules.
#[derive(Debug, Parser)]
#[command(
    name = "foldstream",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(before_help = "\
Examples:
  foldstream new order-totals                 # start a project in Rust, Python, TypeScript, Go or C
  foldstream dev ./order-totals               # build, run and rebuild it while you edit it
  foldstream serve --config foldstream.toml   # run a host
  foldstream deploy order-totals.wasm --wait  # deploy a module and wait until it has caught up
  foldstream scan order-totals --prefix customer/
  foldstream query order-totals top-customers '{\"limit\": 3}'
  foldstream watch order-totals -o ndjson")]
pub struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of every command")]
struct GlobalArgs {
    /// Address of the host; default: from ./foldstream.toml or the file in FOLDSTREAM_CONFIG,
    /// otherwise http://127.0.0.1:7575.
    #[arg(long, global = true, env = "FOLDSTREAM_URL")]
    url: Option<String>,
    /// Token for the host; default: the one that a host of the same user on this machine created
    /// for itself.
    #[arg(long, global = true, env = "FOLDSTREAM_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File that contains the token.
    #[arg(
        long,
        global = true,
        env = "FOLDSTREAM_TOKEN_FILE",
        value_name = "FILE",
        conflicts_with = "token"
    )]
    token_file: Option<PathBuf>,
    /// Root certificates (PEM) to trust instead of the system's.
    #[arg(long, global = true, env = "FOLDSTREAM_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Output format.
    #[arg(
        short,
        long,
        global = true,
        env = "FOLDSTREAM_OUTPUT",
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    output: Format,
    /// Print only data and errors.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Print more messages.
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// When to use colours.
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t)]
    color: Color,
}

/// All commands.
#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Dev(dev::Args),
    Demo(demo::Args),
    New(new::Args),
    Build(build::Args),
    Inspect(inspect::Args),
    Test(test::Args),
    Record(record::Args),
    Replay(replay::Args),
    #[command(subcommand)]
    Contract(contract::Command),
    Generate(generate::Args),
    Deploy(deploy::Args),
    List(list::Args),
    Show(show::Args),
    Get(get::Args),
    Scan(scan::Args),
    Query(query::Args),
    Watch(watch::Args),
    #[command(subcommand)]
    Events(events::Command),
    Pause(pause::Args),
    Resume(resume::Args),
    Skips(skips::Args),
    #[command(subcommand)]
    Outbox(outbox::Command),
    #[command(subcommand)]
    Parked(parked::Command),
    #[command(subcommand)]
    Timers(timers::Command),
    #[command(subcommand)]
    Sagas(sagas::Command),
    Generations(generations::Args),
    Promote(promote::Args),
    Rollback(rollback::Args),
    Rebuild(rebuild::Args),
    Rebuilds(rebuilds::Args),
    Verify(verify::Args),
    Throttle(throttle::Args),
    Abort(abort::Args),
    Prune(prune::Args),
    Delete(delete::Args),
    Audit(audit::Args),
    #[command(subcommand)]
    Config(config::Command),
    Doctor(doctor::Args),
    #[command(subcommand)]
    Token(token::Command),
    Backup(backup::Args),
    Compact(compact::Args),
    Completions(completions::Args),
    Man(man::Args),
    CheckModule(check_module::Args),
}

/// What commands make of the global options.
#[derive(Clone, Debug)]
pub struct Context {
    /// The output.
    pub output: Output,
    /// The address given by the user.
    url: Option<String>,
    token: Option<String>,
    ca: Option<PathBuf>,
}

impl Context {
    fn new(global: GlobalArgs) -> anyhow::Result<Self> {
        // An empty variable is as good as none.
        let token = global.token.filter(|token| !token.is_empty());
        let token = match (token, &global.token_file) {
            (Some(token), _) => Some(token),
            (None, Some(path)) => Some(read_token(path)?),
            (None, None) => None,
        };
        Ok(Self {
            output: Output {
                format: global.output,
                quiet: global.quiet,
                verbose: global.verbose,
                color: global.color,
            },
            url: global.url.filter(|url| !url.is_empty()),
            token,
            ca: global.ca,
        })
    }

    /// A client of the host that the user named, or that the configuration file in the current
    /// folder describes.
    fn client(&self) -> anyhow::Result<Client> {
        self.client_of(self.nearby()?.as_ref())
    }

    /// What the configuration file nearby says, unless a host was named.
    fn nearby(&self) -> anyhow::Result<Option<crate::config::Config>> {
        if self.url.is_some() {
            return Ok(None);
        }
        let Some(config_args::Nearby {
            file,
            is_named,
            config,
        }) = config_args::nearby()
        else {
            return Ok(None);
        };
        match config {
            Ok(config) => Ok(Some(config)),
            // Another host than the one that the user named must not get the command.
            Err(error) if is_named => Err(error.context(
                "cannot read the host's address from the file in FOLDSTREAM_CONFIG; correct that, \
                 or name the host with --url",
            )),
            // Only a warning: a command must also work in a folder with a file of some other
            // program.
            Err(error) => {
                let file = file.display();
                self.output.warning(&format!(
                    "cannot read the host's address from {file}, so {URL_DEFAULT} is used: \
                     {error:#}"
                ));
                Ok(None)
            }
        }
    }

    /// How to reach the host that the user named, or that a configuration describes. The
    /// configuration's token goes to no other host.
    fn connection_of(&self, config: Option<&crate::config::Config>) -> Connection {
        let described = config
            .filter(|_| self.url.is_none())
            .and_then(nearby::connection);
        let mut connection = described.unwrap_or_else(|| {
            let url = self.url.clone().unwrap_or_else(|| URL_DEFAULT.to_owned());
            Connection {
                token: nearby::running(&url),
                url,
            }
        });
        // A token that was given wins over any that was found.
        connection.token = self.token.clone().or(connection.token);
        connection
    }

    /// A client of the host that was named, or that a configuration describes.
    fn client_of(&self, config: Option<&crate::config::Config>) -> anyhow::Result<Client> {
        let connection = self.connection_of(config);
        // A host whose certificate is in its configuration is trusted by it: it may be self-signed.
        let own = config
            .filter(|_| self.url.is_none())
            .and_then(|config| config.serve.tls_cert.as_deref());
        Ok(Client::new(
            &connection,
            self.ca.as_deref().or(own),
            self.output,
        )?)
    }
}

fn read_token(path: &std::path::Path) -> anyhow::Result<String> {
    let text = crate::small_file::read_text(path).map_err(|error| {
        Failure::new(
            exit::Exit::Usage,
            format!("cannot read --token-file {}: {error}", path.display()),
        )
    })?;
    Ok(text.trim().to_owned())
}

/// The whole command, with the layout of its help.
pub fn command() -> clap::Command {
    lay_out(Cli::command())
}

fn lay_out(command: clap::Command) -> clap::Command {
    // One form of help, because the long one spreads every option over four lines.
    let help = Arg::new("help")
        .short('h')
        .long("help")
        .action(ArgAction::HelpShort)
        .help("Print help");
    command
        .disable_help_flag(true)
        .arg(help)
        .help_template(HELP_TEMPLATE)
        .after_help(exit_code::HELP)
        .mut_subcommands(lay_out)
}

/// Parses the command line.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    Cli::from_arg_matches(&matches)
}

impl Cli {
    /// The output of this run, for code that reports its end.
    pub fn output(&self) -> Output {
        Output {
            quiet: self.global.quiet,
            color: self.global.color,
            ..Output::default()
        }
    }

    /// Runs the chosen command.
    pub fn run(self) -> anyhow::Result<()> {
        // Before the context, which may read files: the checker needs none of it.
        if let Command::CheckModule(args) = self.command {
            return check_module::run(args);
        }
        let context = Context::new(self.global)?;
        match self.command {
            Command::Serve(args) => hosting(serve::run(args, &context)),
            Command::Dev(args) => hosting(dev::run(args, &context)),
            Command::Demo(args) => hosting(demo::run(args, &context)),
            Command::New(args) => new::run(&args, &context),
            Command::Build(args) => asking(build::run(args, &context)),
            Command::Inspect(args) => inspect::run(&args, &context),
            Command::Generate(args) => generate::run(&args, &context),
            Command::Test(args) => hosting(test::run(args, &context)),
            Command::Record(args) => asking(record::run(args, &context)),
            Command::Replay(args) => asking(replay::run(args, &context)),
            Command::Contract(command) => asking(contract::run(command, &context)),
            Command::Deploy(args) => asking(deploy::run(args, &context)),
            Command::List(args) => asking(list::run(args, &context)),
            Command::Show(args) => asking(show::run(args, &context)),
            Command::Get(args) => asking(get::run(args, &context)),
            Command::Scan(args) => asking(scan::run(args, &context)),
            Command::Query(args) => asking(query::run(args, &context)),
            Command::Watch(args) => asking(watch::run(args, &context)),
            Command::Events(command) => asking(events::run(command, &context)),
            Command::Pause(args) => asking(pause::run(args, &context)),
            Command::Resume(args) => asking(resume::run(args, &context)),
            Command::Skips(args) => asking(skips::run(args, &context)),
            Command::Outbox(command) => asking(outbox::run(command, &context)),
            Command::Parked(command) => asking(parked::run(command, &context)),
            Command::Timers(command) => asking(timers::run(command, &context)),
            Command::Sagas(command) => asking(sagas::run(command, &context)),
            Command::Generations(args) => asking(generations::run(args, &context)),
            Command::Promote(args) => asking(promote::run(args, &context)),
            Command::Rollback(args) => asking(rollback::run(args, &context)),
            Command::Rebuild(args) => asking(rebuild::run(args, &context)),
            Command::Rebuilds(args) => asking(rebuilds::run(args, &context)),
            Command::Verify(args) => asking(verify::run(args, &context)),
            Command::Throttle(args) => asking(throttle::run(args, &context)),
            Command::Abort(args) => asking(abort::run(args, &context)),
            Command::Prune(args) => asking(prune::run(args, &context)),
            Command::Delete(args) => asking(delete::run(args, &context)),
            Command::Audit(args) => asking(audit::run(args, &context)),
            Command::Config(command) => config::run(command, &context),
            Command::Doctor(args) => asking(doctor::run(args, &context)),
            Command::Token(command) => token::run(command, &context),
            Command::Backup(args) => asking(backup::run(args, &context)),
            Command::Compact(args) => asking(compact::run(args, &context)),
            Command::Completions(args) => completions::run(&args),
            Command::Man(args) => man::run(&args, &context),
            Command::CheckModule(args) => check_module::run(args),
        }
    }
}

/// Runs a client command: one thread is enough, and Ctrl-C ends it at once.
fn asking(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        tokio::select! {
            // Ctrl-C first, so that it is caught before a command begins, which may have files to
            // remove. Dropping a request does no harm: the host has carried it out, or has not.
            biased;
            _ = tokio::signal::ctrl_c() => Err(Failure::interrupted().into()),
            result = command => result,
        }
    })
}

/// Runs a host command, which ends on its own.
fn hosting(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(command);
    // A guest that still runs has used up the host's time to stop. Nothing of its work is durable,
    // and nothing waits for it.
    runtime.shutdown_timeout(CALLS_LEFT_MAX);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(command: &clap::Command, look: &mut dyn FnMut(&clap::Command)) {
        look(command);
        command
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .for_each(|command| each(command, look));
    }

    #[test]
    fn arguments_do_not_contradict_each_other() {
        command().debug_assert();
    }

    /// clap does not ask for what an option needs if another option excludes that.
    #[test]
    fn options_that_would_be_ignored_are_refused() {
        for line in [
            "parked retry totals ada --class trap",
            "parked drop totals ada --class trap --reason none",
            "parked export totals ada --class trap",
            "resume totals --source events",
            "get totals ada --as-of 5 --timeout 3s",
            "get totals ada --at-least 5 --accept-missing",
            "get totals ada --generation 5 --accept-missing",
            "rebuild totals --key ada --effects-from now",
            "contract check old new --mode full --require-schemas",
        ] {
            let words = std::iter::once("foldstream").chain(line.split(' '));
            let parsed = command().try_get_matches_from(words);
            let error = parsed.expect_err(line);
            let is_conflict = error.kind() == clap::error::ErrorKind::ArgumentConflict;
            assert!(is_conflict, "{line}: {error}");
        }
    }

    #[test]
    fn every_help_begins_with_examples_and_ends_with_exit_codes() {
        each(&command(), &mut |command| {
            let help = command.clone().render_help().to_string();
            let place = |text: &str| {
                help.find(text)
                    .unwrap_or_else(|| panic!("{text} is missing: {help}"))
            };
            assert!(place("Examples:") < place("Usage:"), "{help}");
            assert!(place("Usage:") < place("Exit codes:"), "{help}");
            assert!(help.trim_end().ends_with("interrupted"), "{help}");
            assert!(
                help.lines().all(|line| line.chars().count() <= 120),
                "{help}"
            );
        });
    }

    #[test]
    fn help_leaves_the_wrapping_of_its_text_to_the_terminal() {
        each(&command(), &mut |command| {
            let help = command.get_before_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            let is_text = |line: &str| !line.is_empty() && !line.starts_with("  ");
            let lines: Vec<&str> = help.lines().filter(|line| *line != "Examples:").collect();
            for pair in lines.windows(2) {
                let is_broken = is_text(pair[0]) && is_text(pair[1]);
                assert!(!is_broken, "a line breaks after: {}", pair[0]);
            }
        });
    }

    #[test]
    fn examples_in_help_are_accepted() {
        let mut count = 0;
        each(&command(), &mut |command| {
            let examples = command
                .get_before_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            for line in examples
                .lines()
                .map(str::trim)
                .filter(|line| line.starts_with("foldstream "))
            {
                // What follows several spaces is an explanation; a pipe or redirection is the
                // shell's.
                let (typed, note) = line.split_once("  ").unwrap_or((line, "# "));
                // An example that is pasted must not run its explanation.
                assert!(note.trim_start().starts_with("# "), "{line}");
                let typed = typed.split(['|', '>', '<', '&']).next().unwrap_or_default();
                let parsed = parse(words(typed).into_iter().map(OsString::from));
                assert!(
                    parsed.is_ok(),
                    "{line}: {}",
                    parsed.expect_err("is refused")
                );
                count += 1;
            }
        });
        assert!(count > 80, "only {count} examples");
    }

    /// Words as a shell takes them apart, single quotes respected.
    fn words(line: &str) -> Vec<String> {
        let parts = line.split('\'').enumerate();
        parts
            .flat_map(|(index, part)| match index % 2 {
                0 => part.split_whitespace().map(str::to_owned).collect(),
                _ => vec![part.to_owned()],
            })
            .collect()
    }

    #[test]
    fn mistakes_are_answered_with_a_suggestion() {
        let refused = |typed: &str| {
            let error =
                parse(words(typed).into_iter().map(OsString::from)).expect_err("is a mistake");
            error.to_string()
        };
        assert!(refused("foldstream scna totals").contains("'scan'"));
        assert!(refused("foldstream scan totals --prefx a").contains("'--prefix'"));
        assert!(refused("foldstream list -o yaml").contains("table, json, ndjson"));
        assert!(refused("foldstream scan totals --limit 0").contains("1..=10000"));
        assert!(refused("foldstream deploy a.wasm --timeout 5s").contains("--wait"));
        assert!(
            refused("foldstream deploy a.wasm --strategy copy")
                .contains("rebuild, inherit, migrate")
        );
        assert!(refused("foldstream deploy a.wasm --auto --manual").contains("'--auto'"));
        assert!(
            refused("foldstream deploy a.wasm --allow new").contains("added, removed, changed")
        );
        assert!(
            refused("foldstream deploy a.wasm --require-equal --allow added")
                .contains("'--require-equal'")
        );
        assert!(refused("foldstream deploy a.wasm --cpu 101").contains("1..=100"));
        assert!(refused("foldstream throttle totals").contains("--off"));
        assert!(refused("foldstream throttle totals --off --cpu 9").contains("'--off'"));
        assert!(refused("foldstream prune totals").contains("--keep"));
    }
}
