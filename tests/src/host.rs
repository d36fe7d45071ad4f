//! The program under test as a server: started on a free port, killed or stopped, and started again
//! on its files.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tempfile::TempDir;

use crate::client::Client;
use crate::process::Process;
use crate::wait;

/// What a host prints once it answers.
const LISTENING: &str = "listening on ";

/// A host with a data folder of its own. Dropping it kills it and removes the folder.
#[derive(Debug)]
pub struct Host {
    process: Option<Process>,
    folder: TempDir,
    client: Client,
    /// The step at which the program kills itself.
    die_at: Option<String>,
}

impl Host {
    /// Starts one on the embedded log, with the defaults.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts one that reads a stream of a server, as the source `orders`.
    pub async fn start_on(server: &crate::nats::NatsServer, stream: &str) -> Self {
        Self::start_with(&jetstream_source(&server.url(), stream)).await
    }

    /// Starts one with lines of configuration.
    pub async fn start_with(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        // Nobody listens there: it is replaced at the first start.
        let client = Client::new("http://127.0.0.1:1");
        let mut host = Self {
            process: None,
            folder,
            client,
            die_at: None,
        };
        host.configure(config);
        host.restart().await;
        host
    }

    /// Names the step at which the program kills itself, from the next start on; none for a long
    /// life.
    pub fn die_at(&mut self, step: Option<&str>) {
        self.die_at = step.map(str::to_owned);
    }

    /// Waits until the program has killed itself.
    pub fn wait_for_death(&mut self) {
        let mut process = self.process.take().expect("the host runs");
        let status = process.wait(wait::DEADLINE);
        assert_eq!(
            // Signal 9, as after a crash: the program sends it to itself.
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9),
            "{}",
            process.output()
        );
    }

    /// Lets no file of it grow beyond this many bytes, as a full disk would; none lifts the limit.
    pub fn limit_files(&mut self, bytes: Option<u64>) {
        let id = i32::try_from(self.process().id()).expect("a number of a process");
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        prlimit(Pid::from_raw(id), Resource::Fsize, limit).expect("our own child can be limited");
    }

    /// Replaces the configuration; it counts from the next start.
    pub fn configure(&self, config: &str) {
        let mut text = format!("data_dir = {:?}\n", self.data_dir());
        text.write_str(config).expect("a string takes text");
        std::fs::write(self.config_file(), text).expect("our folder can be written");
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("foldstream.toml")
    }

    /// The data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A host on a copy of its files, with the same configuration. It must be stopped.
    pub async fn copy(&self) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let mut other = Self {
            process: None,
            folder,
            client: Client::new("http://127.0.0.1:1"),
            die_at: None,
        };
        crate::nats::copy_folder(&self.data_dir(), &other.data_dir());
        let config = std::fs::read_to_string(self.config_file()).expect("it was written");
        let (_, config) = config
            .split_once('\n')
            .expect("the first line is the folder");
        other.configure(config);
        other.restart().await;
        other
    }

    /// Leaves its folder where it is when it is dropped, for someone to look into; the folder.
    pub fn keep_files(&mut self) -> &Path {
        self.folder.disable_cleanup(true);
        self.folder.path()
    }

    /// Whether it ended by itself, as at the step at which it was told to die.
    pub fn has_ended(&mut self) -> bool {
        self.process
            .as_mut()
            .is_none_or(|process| process.ended().is_some())
    }

    /// Starts it again on the same files; kills it first if it runs. A new port is taken each time.
    pub async fn restart(&mut self) {
        assert!(
            self.try_restart().await,
            "the host ended: {}",
            self.output()
        );
    }

    /// Waits until the process printed this. Its log is written by a thread of its own, so a line
    /// may come after the answer to a request that tells of the same.
    pub async fn prints(&self, text: &str) {
        let what = format!("the host to print {text:?}");
        let printed = async || self.output().contains(text).then_some(());
        wait::until(&what, printed).await;
    }

    /// What the running or last process printed.
    pub fn output(&self) -> String {
        self.process
            .as_ref()
            .map(Process::output)
            .unwrap_or_default()
    }

    /// The same for one that may end before it listens, as at the step at which it was told to die;
    /// whether it listens.
    pub async fn try_restart(&mut self) -> bool {
        self.kill();
        let mut command = serve(&self.config_file());
        if let Some(step) = &self.die_at {
            command.env("FOLDSTREAM_DIE_AT", step);
        }
        let mut process = Process::start("foldstream serve", &mut command);
        let url = wait::until("the host to listen or to end", || {
            // Both are looked at in one go: a host that ended may have listened before.
            let ended = process.ended().is_some();
            let url = process.printed(LISTENING);
            async move { if ended { Some(None) } else { url.map(Some) } }
        })
        .await;
        if url.is_none() {
            // Until all is there that it printed.
            process.wait(wait::DEADLINE);
        }
        self.process = Some(process);
        let Some(url) = url else { return false };
        self.client = Client::new(&url);
        true
    }

    /// Kills it at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Asks it to stop, and waits until it did.
    pub fn stop(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the host runs");
        process.terminate(wait::DEADLINE)
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the host runs")
    }

    /// The client of the running host.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its address.
    pub fn url(&self) -> &str {
        self.client.url()
    }

    /// Memory that its process holds, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let id = self.process.as_ref().expect("the host runs").id();
        resident_bytes(id, "VmRSS:")
    }

    /// The most memory that its process ever held, in bytes.
    pub fn peak_memory_bytes(&self) -> u64 {
        let id = self.process.as_ref().expect("the host runs").id();
        resident_bytes(id, "VmHWM:")
    }

    /// Bytes that its process has caused to be written to disks so far.
    pub fn written_bytes(&self) -> u64 {
        let id = self.process.as_ref().expect("the host runs").id();
        let counts = std::fs::read_to_string(format!("/proc/{id}/io"))
            .expect("our own child may be looked at");
        let line = counts
            .lines()
            .find_map(|line| line.strip_prefix("write_bytes: "));
        line.and_then(|bytes| bytes.trim().parse().ok())
            .expect("it counts what is written")
    }
}

/// Memory that a process holds, in bytes.
fn resident_bytes(id: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))
        .expect("a running process has a status");
    let line = status
        .lines()
        .find(|line| line.starts_with(field))
        .expect("the status has its memory");
    let kilobytes: u64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .expect("a number");
    kilobytes * 1024
}

/// The configuration of one JetStream source named `orders`.
pub fn jetstream_source(url: &str, stream: &str) -> String {
    format!("[sources.orders]\nkind = \"jetstream\"\nstream = {stream:?}\nservers = [{url:?}]\n")
}

/// The command that serves with a configuration file, on a free port, with nothing taken from our
/// environment. Unless the file is about tokens, everyone may do everything: few tests are about
/// the door.
pub fn serve(config: &Path) -> Command {
    let mut command = foldstream();
    command
        .arg("serve")
        .arg("--config")
        .arg(config)
        .args(["--listen", "127.0.0.1:0"]);
    // A pipe is for the host to read.
    let text = if config.is_file() {
        std::fs::read_to_string(config).unwrap_or_default()
    } else {
        String::new()
    };
    // Such a file says itself who may do what.
    let is_about_the_door =
        text.contains("[serve]") && (text.contains("token") || text.contains("anonymous"));
    if !is_about_the_door {
        command.env("FOLDSTREAM_SERVE__ANONYMOUS", "everything");
    }
    command
}

/// The program, with none of its variables set.
pub fn foldstream() -> Command {
    let mut command = Command::new(crate::foldstream());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FOLDSTREAM_") {
            command.env_remove(name);
        }
    }
    // Notes about running hosts stay out of the folders of the user who runs the tests.
    command.env("XDG_RUNTIME_DIR", crate::built().join("run"));
    // And compiled code.
    command.env("XDG_CACHE_HOME", crate::built().join("caches"));
    command
}

/// Runs a host that is expected to refuse its configuration: its exit code and what it printed.
pub fn refused(config: &str, arguments: &[&str]) -> (i32, String) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("foldstream.toml");
    std::fs::write(&file, config).expect("our folder can be written");
    let mut command = foldstream();
    command.arg("serve").arg("--config").arg(&file);
    if !arguments.contains(&"--listen") && !config.contains("listen") {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    let mut process = Process::start(
        "foldstream serve",
        command.args(arguments).current_dir(folder.path()),
    );
    let status = process.wait(Duration::from_secs(20));
    (status.code().expect("it ended by itself"), process.output())
}

/// Processor time of a process so far, in seconds.
pub fn processor_seconds(id: u32) -> f64 {
    let stat =
        std::fs::read_to_string(format!("/proc/{id}/stat")).expect("a running process has a state");
    // The name is in parentheses and may hold anything; what follows it is plain.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("ticks are a number");
    // Fields 14 and 15, user and system time, counted from 3 behind the name; Linux counts 100
    // ticks a second.
    (ticks(11) + ticks(12)) / 100.0
}
