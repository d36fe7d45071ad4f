//! `foldstream dev`: a host that builds a project and rebuilds it whenever its sources change.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use super::languages::{Language, Row};
use crate::api::SourceList;
use crate::cli::Context;
use crate::cli::commands::deployments::deploy;
use crate::cli::commands::events;
use crate::cli::support::client::Client;
use crate::cli::support::config_args;
use crate::cli::support::exit::message_of;
use crate::cli::support::local_host::{Hangups, Server, free_address, start_log, stop_signal};
use crate::cli::support::output::grouped;
use crate::cli::support::watched::{RecursiveMode, Watched};
use crate::config::{Config, LogFormat};

/// Longest wait for the read model after a deploy, before `dev` looks for the next change.
const CATCH_UP_WAIT: Duration = Duration::from_secs(600);
/// Events next to the project, imported into an empty log.
const SAMPLE: &str = "events.ndjson";

/// Run a host on an embedded log, and build, deploy and rebuild a project while you edit it.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream dev
  foldstream dev ./order-totals
  foldstream dev ./order-totals --data ./dev-data
  foldstream dev ./order-totals --config foldstream.toml --source orders
  foldstream dev ./fulfilment --allow-publish 'shipping.>@events' --effects-from beginning

Events in DIR/events.ndjson are imported into an empty log. If a build fails, the last good \
module keeps running.")]
pub(crate) struct Args {
    /// Folder of the project.
    #[arg(default_value = ".")]
    dir: PathBuf,
    #[command(flatten)]
    settings: config_args::Settings,
    /// Data folder to keep; default: a temporary one.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Address to listen on; default: the configured one if it is free, otherwise any free port.
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<std::net::SocketAddr>,
    /// Name of the deployment; default: the module's own.
    #[arg(long)]
    name: Option<String>,
    /// Source to read; default: the only one.
    #[arg(long)]
    source: Option<String>,
    #[command(flatten)]
    effects: deploy::EffectsArgs,
}

/// Runs until interrupted.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let language = Language::of(&args.dir)?;
    // First: until then SIGHUP ends the process.
    let hangups = Hangups::catch()?;
    let mut flags = Vec::new();
    flags.extend(
        args.listen
            .map(|listen| config_args::flag("--listen", "serve.listen", &listen)),
    );
    flags.extend(
        args.data
            .as_ref()
            .map(|data| config_args::flag("--data", "data_dir", &data.display())),
    );
    let mut config = args.settings.load_sound(flags, context)?;
    // The default folder is for `serve`; trying something should leave nothing behind.
    let temporary = (config.data_dir == Config::default().data_dir)
        .then(config_args::temporary_folder)
        .transpose()?;
    if let Some(folder) = &temporary {
        folder.path().clone_into(&mut config.data_dir);
    }
    if args.listen.is_none() {
        config.serve.listen = free_address(config.serve.listen);
    }
    quieten(&mut config);
    if config.serve.tokens_file.is_some() && config.serve.bearer_token()?.is_none() {
        // The file has hashes alone, and none of them may cover what is done here.
        config.serve.token = Some(crate::access::new_token().into());
    }
    // Kept to the end: dropping it writes what waits.
    let _log = start_log(&config, context.output)?;
    let known = config.clone();
    let same = move || Ok(known.clone());
    // Before the first build, so that a change during it is not missed.
    let watched = watch(&args.dir, &config.data_dir, language.row())?;
    let mut server = Server::start(config).await?;
    server.reload_on(hangups, same);
    context.output.say(&format!("listening on {}", server.url));
    if temporary.is_some() {
        context.output.note(
            "data is in a temporary folder that is removed at the end; use --data \
                             FOLDER to keep it",
        );
    }
    let client = server.client(context.output)?;
    let session = Session {
        args: &args,
        language,
        client: &client,
        context,
    };
    tokio::select! {
        result = server.ended() => return result,
        signal = stop_signal() => signal?,
        // If it is dropped in the middle it stops cargo, and keeps no state of its own.
        result = session.follow(&watched) => result?,
    }
    context.output.note("stopping");
    server.stop().await
}

/// In a terminal that also shows builds, log only warnings, and what the module itself logs.
pub(crate) fn quieten(config: &mut Config) {
    if config.log.level == Config::default().log.level {
        "warn,foldstream::guest=info".clone_into(&mut config.log.level);
    }
    config.log.format = LogFormat::Text;
}

struct Session<'a> {
    args: &'a Args,
    language: Language,
    client: &'a Client,
    context: &'a Context,
}

impl Session<'_> {
    /// Builds and deploys once now and then after every change.
    async fn follow(&self, watched: &Watched) -> anyhow::Result<()> {
        self.import_sample().await?;
        let (mut deployed, mut shown) = (None, None);
        loop {
            match self.rebuild(&mut deployed).await {
                // Said once for each name, which is known after a build.
                Ok(()) if shown != deployed => {
                    let name = deployed.as_deref().unwrap_or_default();
                    self.context.output.note(&further(self.client.url(), name));
                    shown.clone_from(&deployed);
                }
                Ok(()) => {}
                Err(error) => self.context.output.error(&message_of(&error)),
            }
            self.context.output.note(&format!(
                "waiting for changes in {}",
                self.args.dir.display()
            ));
            // A change during the build left a permit, so this returns at once.
            watched.changed().await;
            self.context.output.note("a file changed; building");
        }
    }

    /// Builds, deploys, and waits for the read model. `deployed` is the name of the deployment that
    /// this session made last.
    async fn rebuild(&self, deployed: &mut Option<String>) -> anyhow::Result<()> {
        let output = self.context.output;
        let compiled = self.language.compile(&self.args.dir, output).await?;
        // Projects and their modules usually have one name.
        let name = self.args.name.as_ref().unwrap_or(&compiled.name);
        // No answer counts as unknown: the deploy itself says what is wrong.
        let known = self.client.deployment(name).await.ok();
        let is_handler = known.as_ref().is_some_and(|known| known.outbox.is_some());
        let request = deploy::Request {
            name: self.args.name.clone(),
            source: self.args.source.clone(),
            // Edits usually change the fold, and an inherited read model would come from the
            // previous code. A handler keeps its state, because its outbox belongs to it.
            strategy: (!is_handler).then_some(deploy::Strategy::Rebuild),
            candidate: if known.is_none() {
                self.args.effects.parameters()
            } else {
                self.args.effects.later_parameters()
            },
            ..deploy::Request::default()
        };
        let made = deploy::upload(self.client, compiled.module, &request).await?;
        output.note(&deploy::describe(&made));
        let new = &made.deployment.name;
        if let Some(old) = deployed.replace(new.clone()).filter(|old| old != new) {
            output.note(&renamed(self.client.url(), &old, new));
        }
        let deployment = deploy::settled(self.client, &made, Some(CATCH_UP_WAIT), output).await?;
        output.note(&deploy::end_line(&deployment, made.generation));
        Ok(())
    }

    /// Imports the sample next to the project if the log is empty, so that a kept folder is not
    /// filled twice.
    async fn import_sample(&self) -> anyhow::Result<()> {
        let sample = self.args.dir.join(SAMPLE);
        if !sample.is_file() {
            return Ok(());
        }
        let list: SourceList = self.client.get(&["v1", "sources"], &[]).await?;
        let mut embedded = list.sources.iter().filter(|source| source.is_log());
        let chosen = match &self.args.source {
            Some(name) => embedded.find(|source| source.name == *name),
            None => embedded.next(),
        };
        // A kept folder has the events already.
        let Some(source) = chosen.filter(|source| source.last_sequence == Some(0)) else {
            return Ok(());
        };
        let options = events::ImportOptions::into_source(&source.name);
        let imported =
            events::import_file(self.client, &sample, &options, self.context.output).await;
        match imported {
            Ok(imported) => {
                let count = grouped(imported.events);
                self.context.output.note(&format!(
                    "imported {count} events from {}",
                    sample.display()
                ));
            }
            // The project works without its sample.
            Err(error) => self.context.output.error(&message_of(&error)),
        }
        Ok(())
    }
}

/// What is left of a module that got another name. Only its owner knows whether it is still needed.
fn renamed(url: &str, old: &str, new: &str) -> String {
    let url = option(url);
    format!(
        "the module is now named {new}; the old deployment {old} keeps running: delete it with \
         `foldstream delete {old}{url}`"
    )
}

/// The option that names a host, unless it is the usual one.
fn option(url: &str) -> String {
    if url == crate::cli::URL_DEFAULT {
        String::new()
    } else {
        format!(" --url {url}")
    }
}

/// Commands to try next.
pub(crate) fn further(url: &str, name: &str) -> String {
    let url = option(url);
    format!(
        "try\n  foldstream scan {name}{url}\n  foldstream show {name}{url}\n  foldstream watch \
         {name}{url}"
    )
}

/// Watches the sources of a project, except build output: each build would trigger the next one.
fn watch(dir: &Path, data: &Path, row: &'static Row) -> anyhow::Result<Watched> {
    let root = dir
        .canonicalize()
        .with_context(|| format!("cannot find {}", dir.display()))?;
    let within = root.clone();
    let mut watched = Watched::new(move |path| is_source(&within, path, row))?;
    // The root alone: below it `target` changes with each build.
    watched.add(&root, RecursiveMode::NonRecursive)?;
    // A data folder within the project changes all the time.
    let data = data.canonicalize().unwrap_or_else(|_| root.join(data));
    for entry in std::fs::read_dir(&root)
        .with_context(|| format!("cannot read {}", root.display()))?
        .flatten()
    {
        let path = entry.path();
        if path.is_dir() && path != data && is_source(&root, &path.join("any"), row) {
            watched.add(&path, RecursiveMode::Recursive)?;
        }
    }
    Ok(watched)
}

/// Whether a build reads a path: next to the manifest only folders count, because logs and modules
/// are often written into the project itself; no build output, nothing hidden, no backup file of an
/// editor.
fn is_source(root: &Path, path: &Path, row: &Row) -> bool {
    let Ok(relative) = path.strip_prefix(root) else {
        return false;
    };
    let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
    match &parts[..] {
        [] => false,
        [file] => row.is_source(file),
        [folder, .., file] => {
            !row.other_folders.contains(&&**folder)
                // Python writes it next to the sources that it reads.
                && !parts.iter().any(|part| part == "__pycache__")
                && !parts.iter().any(|part| part.starts_with('.'))
                && !file.ends_with('~')
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_start_a_build() {
        let (root, row) = (Path::new("/crate"), Language::Rust.row());
        for source in [
            "src/lib.rs",
            "Cargo.toml",
            "build.rs",
            "src/deep/er.rs",
            "vendor/sdk/src/lib.rs",
            "scenarios/a.json",
        ] {
            assert!(is_source(root, &root.join(source), row), "{source}");
        }
        for other in [
            "target/release/x",
            "target",
            ".git/index",
            "src/.lib.rs.swp",
            "src/lib.rs~",
            "order-totals.wasm",
            "dev.log",
            "src",
            "Cargo.lock",
            "events.ndjson",
            "",
        ] {
            assert!(!is_source(root, &root.join(other), row), "{other}");
        }
        assert!(!is_source(root, Path::new("/elsewhere/src/lib.rs"), row));
    }

    #[test]
    fn change_of_a_source_is_noticed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("src")).expect("make src");
        let watched =
            watch(folder.path(), Path::new("data"), Language::Rust.row()).expect("watches");
        std::fs::write(folder.path().join("src/lib.rs"), "// new").expect("write");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let deadline = Duration::from_secs(20);
        runtime
            .block_on(async { tokio::time::timeout(deadline, watched.changed()).await })
            .expect("the change is noticed in time");
    }

    #[test]
    fn commands_name_the_host_unless_it_is_the_usual_one() {
        assert!(further("http://127.0.0.1:7575", "a").contains("foldstream scan a\n"));
        assert!(
            further("http://127.0.0.1:1234", "a")
                .contains("foldstream scan a --url http://127.0.0.1:1234\n")
        );
        assert!(renamed("http://127.0.0.1:7575", "a", "b").ends_with("`foldstream delete a`"));
    }
}
