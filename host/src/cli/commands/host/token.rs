//! `foldstream token`: makes the tokens that a host admits.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::support::exit::{Exit, Failure};
use crate::scope::{Scope, digest, is_token_name};

/// What a token begins with, so that searches for lost secrets find it.
const PREFIX: &str = "foldstream_";

/// Make tokens for serve.tokens_file.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(before_help = "\
Examples:
  foldstream token new --name dashboard --scope read
  foldstream token new --name ci --scope deploy --scope read --deployment order-totals")]
pub enum Command {
    New(NewArgs),
}

/// Make a token: prints it once, and the entry of serve.tokens_file that admits it.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream token new --name dashboard --scope read
  foldstream token new --name ci --scope deploy --scope read --deployment order-totals
  foldstream token new --name loader --scope append -o json

The file holds no token, only its SHA-256. A host reads it again when it changes: add the new entry, hand the token to
its user, and remove the old entry once nobody uses it.")]
pub struct NewArgs {
    /// Name of the token, shown in the audit log.
    #[arg(long)]
    name: String,
    /// What it may do: read, append, operate or deploy; may be repeated.
    #[arg(long = "scope", value_name = "SCOPE", value_parser = str::parse::<Scope>, required = true)]
    scopes: Vec<Scope>,
    /// Only this deployment; may be repeated. Left out, all.
    #[arg(long = "deployment", value_name = "NAME")]
    deployments: Vec<String>,
}

/// What was made.
#[derive(Debug, Serialize)]
struct Made {
    token: String,
    name: String,
    sha256: String,
    scopes: Vec<Scope>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    deployments: Vec<String>,
}

/// Does what was asked for.
pub fn run(command: Command, context: &Context) -> anyhow::Result<()> {
    let Command::New(args) = command;
    let name = args.name;
    if !is_token_name(&name) {
        let message = "--name takes 1 to 63 lower-case letters, digits and hyphens, a letter first";
        return Err(Failure::new(Exit::Usage, message.to_owned()).into());
    }
    if let Some(name) = args.deployments.iter().find(|name| !is_token_name(name)) {
        let message = format!("--deployment {name:?} is no name of a deployment");
        return Err(Failure::new(Exit::Usage, message).into());
    }
    let random: [u8; 32] = rand::random();
    // What begins with a hyphen would be taken for an option.
    let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    let sha256 = digest(&token).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut scopes = args.scopes;
    scopes.sort_unstable();
    scopes.dedup();
    let made = Made { token, name, sha256, scopes, deployments: args.deployments };
    context.output.one(&made, entry)?;
    context.output.note("the token is shown this once; add the entry to the file that serve.tokens_file names");
    Ok(())
}

fn entry(made: &Made) -> String {
    let list = |names: Vec<&str>| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let scopes = list(made.scopes.iter().map(|scope| scope.name()).collect());
    let mut text = format!(
        "The token, shown only now: {}\n\nIts entry in serve.tokens_file:\n\n\
         [[tokens]]\nname = \"{}\"\nsha256 = \"{}\"\nscopes = [{scopes}]",
        made.token, made.name, made.sha256
    );
    if !made.deployments.is_empty() {
        let deployments = list(made.deployments.iter().map(String::as_str).collect());
        text.push_str(&format!("\ndeployments = [{deployments}]"));
    }
    text
}
