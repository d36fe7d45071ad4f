//! `foldstream token`: creates tokens for a host.

use serde::Serialize;

use crate::access;
use crate::cli::Context;
use crate::cli::support::client::Connection;
use crate::cli::support::exit::{Exit, Failure};
use crate::scope::{Scope, digest, is_token_name};

/// Make tokens for serve.tokens_file, and show the one that commands use.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(before_help = "\
Examples:
  foldstream token new --name dashboard --scope read
  foldstream token new --name ci --scope deploy --scope read --deployment order-totals
  foldstream token show")]
pub(crate) enum Command {
    New(NewArgs),
    Show(ShowArgs),
}

/// Create a token; prints the token once, and its entry for serve.tokens_file.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream token new --name dashboard --scope read
  foldstream token new --name ci --scope deploy --scope read --deployment order-totals
  foldstream token new --name loader --scope append -o json

The file contains only the SHA-256 of the token. A host reloads the file when it changes: add \
the new entry, give the token to its user, and remove the old entry once nobody uses it.")]
pub(crate) struct NewArgs {
    /// Name of the token; the audit log shows it.
    #[arg(long)]
    name: String,
    /// A scope: read, append, operate or deploy; may be repeated.
    #[arg(long = "scope", value_name = "SCOPE", value_parser = str::parse::<Scope>, required = true)]
    scopes: Vec<Scope>,
    /// Allow only this deployment; may be repeated. Default: all.
    #[arg(long = "deployment", value_name = "NAME")]
    deployments: Vec<String>,
}

/// Show the token that commands send to a host, for other clients such as curl.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream token show
  foldstream token show --url http://127.0.0.1:8080
  foldstream token show -o json

A host without configured tokens creates one when it starts, in the file `token` of its data \
folder. Commands of the same user find it on their own while the host runs. To replace it, \
remove the file, and send the host a SIGHUP or restart it.")]
pub(crate) struct ShowArgs {}

/// What commands send.
#[derive(Debug, Serialize)]
struct Sent {
    url: String,
    token: String,
}

#[derive(Debug, Serialize)]
struct Made {
    token: String,
    name: String,
    sha256: String,
    scopes: Vec<Scope>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    deployments: Vec<String>,
}

pub(crate) fn run(command: Command, context: &Context) -> anyhow::Result<()> {
    match command {
        Command::New(args) => make(args, context),
        Command::Show(_) => show(context),
    }
}

fn show(context: &Context) -> anyhow::Result<()> {
    let Connection { url, token } = context.connection_of(context.nearby()?.as_ref());
    let Some(token) = token else {
        let message = format!(
            "there is no token for {url}: none was given (--token, FOLDSTREAM_TOKEN), and no host \
             of this user runs there that made one; name the host with --url, or its file with \
             --token-file DATA_FOLDER/token"
        );
        return Err(Failure::new(Exit::NotFound, message).into());
    };
    Ok(context
        .output
        .one(&Sent { url, token }, |sent| sent.token.clone())?)
}

fn make(args: NewArgs, context: &Context) -> anyhow::Result<()> {
    let name = args.name;
    if !is_token_name(&name) {
        let message = "--name takes 1 to 63 lower-case letters, digits and hyphens, a letter first";
        return Err(Failure::new(Exit::Usage, message.to_owned()).into());
    }
    if let Some(name) = args.deployments.iter().find(|name| !is_token_name(name)) {
        let message = format!("--deployment {name:?} is not a valid name of a deployment");
        return Err(Failure::new(Exit::Usage, message).into());
    }
    let token = access::new_token();
    let sha256 = digest(&token)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut scopes = args.scopes;
    scopes.sort_unstable();
    scopes.dedup();
    let made = Made {
        token,
        name,
        sha256,
        scopes,
        deployments: args.deployments,
    };
    context.output.one(&made, entry)?;
    context.output.note(
        "the token is shown only once; add the entry to the file that serve.tokens_file names",
    );
    Ok(())
}

fn entry(made: &Made) -> String {
    let list = |names: Vec<&str>| {
        names
            .iter()
            .map(|name| format!("\"{name}\""))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let scopes = list(made.scopes.iter().map(|scope| scope.name()).collect());
    let mut text = format!(
        "The token, shown only once: {}\n\nIts entry in serve.tokens_file:\n\n\
         [[tokens]]\nname = \"{}\"\nsha256 = \"{}\"\nscopes = [{scopes}]",
        made.token, made.name, made.sha256
    );
    if !made.deployments.is_empty() {
        let deployments = list(made.deployments.iter().map(String::as_str).collect());
        text.push_str(&format!("\ndeployments = [{deployments}]"));
    }
    text
}
