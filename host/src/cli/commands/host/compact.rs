//! `foldstream compact`: returns unused space in the files of a stopped host to the disk.

use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;

use crate::cli::Context;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{bytes, table};
use crate::integrity::{self, Compacted};

/// Return unused space in the files of a stopped host to the disk.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream compact --data /var/lib/foldstream
  foldstream compact --data /var/lib/foldstream -o json

State files and logs do not shrink on their own: they keep unused space for later writes. Stop \
the host first. Compacting is as safe as a commit: if it is interrupted, the files are \
unchanged, or smaller. Compare foldstream_deployment_disk_bytes with foldstream_state_bytes to \
see whether it is worthwhile.")]
pub(crate) struct Args {
    /// The data folder.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
}

/// The JSON document to print.
#[derive(Serialize)]
struct Files<'a> {
    files: &'a [Compacted],
}

/// Compacts file by file and shows the progress.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let output = context.output;
    let show = move |done: &Compacted| output.note(&line(done));
    // On a separate thread, so that Ctrl-C ends it at once.
    let compacted =
        tokio::task::spawn_blocking(move || integrity::compact_folder(&args.data, show));
    let files = compacted
        .await
        .context("the work panicked")?
        .map_err(|error| {
            let exit = match error {
                integrity::Error::NoFolder { .. } => Exit::NotFound,
                integrity::Error::InUse { .. } | integrity::Error::NotWritable { .. } => {
                    Exit::Failed
                }
            };
            Failure::new(exit, error.to_string())
        })?;
    context
        .output
        .many(&files, &Files { files: &files }, |files| {
            table(
                &["FILE", "BEFORE", "AFTER"],
                files.iter().map(|file| {
                    let after = if file.error.is_some() {
                        "failed".to_owned()
                    } else {
                        bytes(file.after_bytes)
                    };
                    vec![file.file.clone(), bytes(file.before_bytes), after]
                }),
            )
        })?;
    let failed = files.iter().filter(|file| file.error.is_some()).count();
    if failed > 0 {
        let message = format!(
            "{failed} of {} files could not be compacted and are unchanged",
            files.len()
        );
        return Err(Failure::new(Exit::Failed, message).into());
    }
    Ok(())
}

fn line(done: &Compacted) -> String {
    match &done.error {
        Some(error) => format!("{}: {error}", done.file),
        None => format!(
            "{}: {} left of {}",
            done.file,
            bytes(done.after_bytes),
            bytes(done.before_bytes)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_reported_with_what_it_takes_or_why_it_could_not_be_compacted() {
        let done = |error: Option<&str>| Compacted {
            file: "state/a/1.redb".to_owned(),
            before_bytes: 4 << 20,
            after_bytes: 1 << 20,
            error: error.map(str::to_owned),
        };
        assert_eq!(line(&done(None)), "state/a/1.redb: 1.0 MiB left of 4.0 MiB");
        assert_eq!(
            line(&done(Some("it is damaged"))),
            "state/a/1.redb: it is damaged"
        );
    }
}
