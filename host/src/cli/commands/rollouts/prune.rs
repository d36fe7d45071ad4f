//! `foldstream prune`.

use crate::api::Pruned;
use crate::cli::Context;
use crate::cli::support::output::bytes;

/// Remove old generations of a deployment and their files.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream prune order-totals --keep 1 --dry-run
  foldstream prune order-totals --keep 1

The active generation and the candidate always stay. Without the previous generation, a rollback \
has to build its state from scratch.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Generations to keep in addition to the active one and the candidate, newest first.
    #[arg(long, value_name = "COUNT")]
    keep: u32,
    /// Only list what would be removed.
    #[arg(long)]
    dry_run: bool,
}

/// Sends the request and prints the outcome.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut parameters = vec![("keep", args.keep.to_string())];
    if args.dry_run {
        parameters.push(("dry-run", "true".to_owned()));
    }
    let path = ["v1", "deployments", &args.name, "prune"];
    let pruned: Pruned = context.client()?.act(&path, &parameters).await?;
    context
        .output
        .one(&pruned, |pruned| line(&args.name, pruned))?;
    Ok(())
}

fn line(name: &str, pruned: &Pruned) -> String {
    let numbers: Vec<String> = pruned.generations.iter().map(u64::to_string).collect();
    let generations = match numbers.len() {
        0 => return format!("{name}: nothing to remove"),
        1 => "generation",
        _ => "generations",
    };
    let verb = if pruned.dry_run {
        "would remove"
    } else {
        "removed"
    };
    format!(
        "{name}: {verb} {generations} {} with {} of files",
        numbers.join(", "),
        bytes(pruned.bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_or_would_be_removed_is_reported_with_its_size() {
        let told = |generations: &[u64], dry_run| {
            line(
                "totals",
                &Pruned {
                    generations: generations.to_vec(),
                    bytes: 3 << 20,
                    dry_run,
                },
            )
        };
        assert_eq!(
            told(&[1, 2], true),
            "totals: would remove generations 1, 2 with 3.0 MiB of files"
        );
        assert_eq!(
            told(&[1], false),
            "totals: removed generation 1 with 3.0 MiB of files"
        );
        assert_eq!(told(&[], false), "totals: nothing to remove");
    }
}
