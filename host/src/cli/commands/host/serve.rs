//! `foldstream serve`: runs a host.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::cli::Context;
use crate::cli::support::config_args;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::local_host::{Hangups, Server, Stops, keep_files_private, start_log};
use crate::cli::support::output::write_messages_as_json;
use crate::config::{Anonymous, LogFormat, Override};
use crate::descriptors;

/// Run a host: read streams, fold them through modules, answer reads.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream serve
  foldstream serve --config /etc/foldstream.toml
  foldstream serve --data /var/lib/foldstream --listen 127.0.0.1:8080
  FOLDSTREAM_SERVE__LISTEN=127.0.0.1:8080 foldstream serve

Ctrl-C or SIGTERM stops the host gracefully; a second one stops it at once. SIGHUP reloads \
tokens, certificate and log level.")]
pub(crate) struct Args {
    #[command(flatten)]
    settings: config_args::Settings,
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Data folder.
    #[arg(long, alias = "data-dir", value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Listen on other addresses than loopback without TLS or token.
    #[arg(long)]
    insecure: bool,
}

/// Runs until interrupted.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut flags = Vec::new();
    flags.extend(
        args.listen
            .map(|listen| config_args::flag("--listen", "serve.listen", &listen)),
    );
    flags.extend(args.data.as_deref().map(data_flag).transpose()?);
    flags.extend(
        args.insecure
            .then(|| config_args::flag("--insecure", "serve.insecure", &true)),
    );
    let hangups = Hangups::catch()?;
    let mut stops = Stops::catch()?;
    let (settings, known) = (args.settings.clone(), flags.clone());
    // A file may be a pipe that nobody has written to.
    let loading = tokio::task::spawn_blocking(move || settings.load(known));
    let Some(config) = stops.unless(loading).await else {
        return Ok(());
    };
    let config = config??;
    if config.log.format == LogFormat::Json {
        write_messages_as_json();
    }
    config_args::check(&config, |warning| context.output.warning(warning))?;
    // Before the data folder is made, and everything in it.
    keep_files_private();
    let _log = start_log(&config, context.output)?;
    let file = args.settings.file();
    descriptors::raise_limit();
    let Some(server) = stops.unless(Server::start(config)).await else {
        // Nothing was shown to anybody, and what is on disk is as after a crash.
        context.output.note("stopping before the host had started");
        return Ok(());
    };
    let mut server = server?;
    log_start(&server, file.as_deref());
    context.output.say(&format!("listening on {}", server.url));
    show_token(&server, context);
    server.reload_on(hangups, move || {
        // The flags once more: they win over whatever the file says now.
        let config = args.settings.load(flags.clone())?;
        config_args::check(&config, |warning| tracing::warn!("{warning}"))?;
        Ok(config)
    });
    // Units that depend on this one start now, so the socket has to listen already.
    notify_systemd("READY=1");
    // A server that ends on its own has failed; otherwise it serves until the first signal.
    tokio::select! {
        result = server.ended() => return result,
        () = stops.first() => {}
    }
    notify_systemd("STOPPING=1");
    context.output.note("stopping");
    server.stop().await
}

/// How a host without configured tokens can be changed.
fn show_token(server: &Server, context: &Context) {
    if let Some(file) = server.made_token() {
        let what = match server.config().serve.anonymous() {
            Anonymous::Read => "changes take the token",
            Anonymous::Nothing | Anonymous::Everything => "every request takes the token",
        };
        context.output.note(&format!(
            "{what} in {}; commands of this user find it",
            file.display()
        ));
    }
}

/// Settings are text, and a folder under another name would be another folder.
fn data_flag(folder: &Path) -> anyhow::Result<Override> {
    let Some(name) = folder.to_str() else {
        let message = format!(
            "--data {} is no UTF-8; choose a folder whose name is",
            folder.display()
        );
        return Err(Failure::new(Exit::Usage, message).into());
    };
    Ok(config_args::flag("--data", "data_dir", &name))
}

/// A summary of the start for operators, in one line.
fn log_start(server: &Server, file: Option<&Path>) {
    let serve = &server.config().serve;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        configuration = file.map_or("none".to_owned(), |file| file.display().to_string()),
        data = %server.config().data_dir.display(),
        url = server.url,
        deployments = server.deployments(),
        tls = serve.tls_cert.is_some(),
        tokens = serve.has_tokens(),
        "started"
    );
}

/// Notifies systemd if it waits for that (`Type=notify`); see sd_notify(3).
fn notify_systemd(state: &str) {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let name = name.as_encoded_bytes();
    // sd_notify(3): an `@` stands for the zero byte of an abstract address.
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(std::path::Path::new(&*String::from_utf8_lossy(name))),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot notify systemd");
    }
}
