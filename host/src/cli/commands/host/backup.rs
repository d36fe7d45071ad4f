//! `foldstream backup`: a copy of the data folder of a running host.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use reqwest::Method;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use crate::backup::{self, Error, FileEntry, Manifest, Progress, Target};
use crate::cli::Context;
use crate::cli::support::client;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{Output, bytes, counted, grouped, table};
use crate::cli::support::progress;

/// How often to show the progress.
const SHOW_INTERVAL: Duration = Duration::from_secs(2);
/// Parts that wait to be written while the disk is slower than the host.
const PARTS: usize = 8;

/// Copy the data folder of a running host: catalogue, modules, states and embedded logs.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream backup /backup/monday
  foldstream backup /backup/monday -o json
  foldstream backup --check /backup/monday      # read a backup again, and compare
  foldstream serve --data /backup/monday        # run a host on it

The host keeps running. The copy is a data folder as a crash at one moment would have left it, \
so a host that starts on it continues at its checkpoints. The command reads the copy again and \
compares it before it gives the copy its name; if it is interrupted, it leaves nothing behind. The \
token needs the scopes operate and read.")]
pub(crate) struct Args {
    /// A new folder for it.
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Read an existing backup again, and compare it with its manifest. A host that ran on it has
    /// changed it.
    #[arg(long)]
    check: bool,
}

#[derive(Serialize)]
struct Done<'a> {
    folder: &'a Path,
    #[serde(flatten)]
    manifest: &'a Manifest,
}

/// Makes a backup, or checks one.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let (report, reported) = watch::channel(Progress::default());
    let made = if args.check {
        let folder = args.folder.clone();
        let work = Work::begin(move |is_unwanted| {
            let report = |progress| {
                report.send_replace(progress);
            };
            backup::check(&folder, &report, is_unwanted)
        });
        let checked = showing("checking", context.output, reported, work.done());
        checked
            .await
            .map(|manifest| (args.folder.clone(), manifest))
    } else {
        copy(&args.folder, context, (report, reported)).await?
    };
    let (folder, manifest) =
        made.map_err(|error| Failure::new(exit_of(&error), error.to_string()))?;
    for left_out in &manifest.left_out {
        context.output.warning(&format!(
            "{} is not in it: {}",
            left_out.file, left_out.reason
        ));
    }
    let done = Done {
        folder: &folder,
        manifest: &manifest,
    };
    context
        .output
        .one(&done, |done| lines(&done.manifest.files))?;
    let content = bytes(manifest.files.iter().map(|file| file.bytes).sum());
    let files = counted(manifest.files.len() as u64, "file");
    context.output.note(&match args.check {
        true => format!("{} is unchanged: {files}, {content}", folder.display()),
        false => format!(
            "{} is whole: {files}, {content}, read again and compared",
            folder.display()
        ),
    });
    Ok(())
}

type Made = Result<(PathBuf, Manifest), Error>;
type ProgressChannel = (watch::Sender<Progress>, watch::Receiver<Progress>);

/// Takes a backup of the host. A refusal of the host is an error of its own.
async fn copy(
    folder: &Path,
    context: &Context,
    (report, reported): ProgressChannel,
) -> anyhow::Result<Made> {
    let client = context.client()?;
    // Before the host is asked: a folder that is taken must not cost it a backup.
    let target = match Target::claim(folder) {
        Ok(target) => target,
        Err(error) => return Ok(Err(error)),
    };
    let response = client
        .stream(client.request(Method::GET, &["v1", "backup"]))
        .await?;
    let (parts, received) = mpsc::channel(PARTS);
    let work = Work::begin(move |is_unwanted| {
        let report = |progress| {
            report.send_replace(progress);
        };
        let manifest = backup::unpack(
            Received::from(received),
            target.folder(),
            &report,
            is_unwanted,
        )?;
        Ok((target.finish()?, manifest))
    });
    let url = client.url().to_owned();
    let pumped = pump(response.bytes_stream(), parts);
    let both = async {
        // Dropped in this order: the thread waits for parts until nobody can send any.
        let (pumped, made) = tokio::join!(pumped, work.done());
        match (pumped, made) {
            (_, Ok(made)) => Ok(Ok(made)),
            // The thread saw no more than the end of its input; the connection knows the cause.
            (Err(error), Err(Error::BrokeOff)) => Err(anyhow::Error::from(client::Error::Broken {
                url,
                message: error.to_string(),
            })),
            (_, Err(error)) => Ok(Err(error)),
        }
    };
    showing("backing up", context.output, reported, both).await
}

/// Passes on what the host sends; fails if the connection broke.
async fn pump(
    stream: impl Stream<Item = reqwest::Result<Bytes>>,
    parts: mpsc::Sender<Bytes>,
) -> reqwest::Result<()> {
    let mut stream = std::pin::pin!(stream);
    while let Some(part) = stream.next().await {
        if parts.send(part?).await.is_err() {
            // The other end knows why it stopped.
            break;
        }
    }
    Ok(())
}

/// Shows the progress of some work.
async fn showing<T>(
    subject: &str,
    output: Output,
    mut reported: watch::Receiver<Progress>,
    work: impl Future<Output = T>,
) -> T {
    let mut shown = progress::Progress::new(subject, output);
    let mut work = std::pin::pin!(work);
    loop {
        // Only the first arm makes progress, and it is never dropped before its end.
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(SHOW_INTERVAL) => {
                shown.wait(&describe(*reported.borrow_and_update()));
            }
        }
    }
}

fn describe(progress: Progress) -> String {
    let Progress {
        files,
        files_total,
        bytes: count,
        is_comparing,
    } = progress;
    let deed = if is_comparing { "compared" } else { "copied" };
    format!(
        "{} of {} {deed}, {}",
        grouped(files),
        counted(files_total, "file"),
        bytes(count)
    )
}

/// Work on a thread of its own. Dropping it, as Ctrl-C does, ends the thread and waits for that: it
/// cleans up.
struct Work<T> {
    is_unwanted: Arc<AtomicBool>,
    done: Option<oneshot::Receiver<Result<T, Error>>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Work<T> {
    fn begin(work: impl FnOnce(&AtomicBool) -> Result<T, Error> + Send + 'static) -> Self {
        let is_unwanted = Arc::new(AtomicBool::new(false));
        let (finish, done) = oneshot::channel();
        let asked = Arc::clone(&is_unwanted);
        let thread = std::thread::spawn(move || drop(finish.send(work(&asked))));
        Self {
            is_unwanted,
            done: Some(done),
            thread: Some(thread),
        }
    }

    async fn done(mut self) -> Result<T, Error> {
        let done = self.done.as_mut().expect("it is taken once");
        let broken = || {
            Err(Error::Format(
                "the copy broke off by a defect of this program; report it".to_owned(),
            ))
        };
        done.await.unwrap_or_else(|_| broken())
    }
}

impl<T> Drop for Work<T> {
    fn drop(&mut self) {
        self.is_unwanted.store(true, Ordering::Relaxed);
        // Nobody receives its result any more.
        self.done = None;
        if let Some(thread) = self.thread.take() {
            // The panic hook has logged it.
            let _ = thread.join();
        }
    }
}

/// The input from the host as a reader.
struct Received {
    parts: mpsc::Receiver<Bytes>,
    part: Bytes,
}

impl From<mpsc::Receiver<Bytes>> for Received {
    fn from(parts: mpsc::Receiver<Bytes>) -> Self {
        Self {
            parts,
            part: Bytes::new(),
        }
    }
}

impl Read for Received {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            match self.parts.blocking_recv() {
                Some(part) => self.part = part,
                None => return Ok(0),
            }
        }
        let count = into.len().min(self.part.len());
        into[..count].copy_from_slice(&self.part.split_to(count));
        Ok(count)
    }
}

fn exit_of(error: &Error) -> Exit {
    match error {
        Error::Target(_) => Exit::Refused,
        Error::Io { error, .. } if error.kind() == io::ErrorKind::NotFound => Exit::NotFound,
        _ => Exit::Failed,
    }
}

fn lines(files: &[FileEntry]) -> String {
    let row = |file: &FileEntry| {
        let number = |number: Option<u64>| number.map_or_else(String::new, grouped);
        vec![
            file.file.clone(),
            number(file.position),
            number(file.rows),
            bytes(file.bytes),
        ]
    };
    table(
        &["FILE", "POSITION", "ROWS", "CONTENT"],
        files.iter().map(row),
    )
}
