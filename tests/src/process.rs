//! Child processes: each is stopped by its own handle, and what it printed is kept for the message
//! of a failure.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Most lines kept of one child; the oldest go first.
const LINES_MAX: usize = 5_000;

/// The processes that a process started, by their numbers.
///
/// # Panics
///
/// When there is no such process.
pub fn children(parent: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task"))
        .expect("it runs")
        .flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Sends a signal to one of them, unless it has ended.
///
/// # Panics
///
/// When it is no number of a process.
pub fn signal(child: &str, signal: Signal) {
    let child = Pid::from_raw(child.parse().expect("a number of a process"));
    let _ = kill_process(child.expect("not 0"), signal);
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts it, with both its outputs collected.
    pub fn start(name: &str, command: &mut Command) -> Self {
        Self::spawn(name, command.stdin(Stdio::null()))
    }

    /// The same with a standard input that stays open, and to which nothing is written.
    pub fn start_waiting_for_input(name: &str, command: &mut Command) -> Self {
        Self::spawn(name, command.stdin(Stdio::piped()))
    }

    fn spawn(name: &str, command: &mut Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let readers = vec![
            collect(
                child.stdout.take().expect("piped above"),
                Arc::clone(&lines),
            ),
            collect(
                child.stderr.take().expect("piped above"),
                Arc::clone(&lines),
            ),
        ];
        Self {
            child,
            name: name.to_owned(),
            lines,
            readers,
        }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it at once, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child can be killed");
        self.child.wait().expect("our own child can be waited for");
    }

    /// Asks it to stop, and waits until it did.
    pub fn terminate(&mut self, deadline: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(deadline)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid =
            Pid::from_raw(self.child.id().cast_signed()).expect("a child has a number above zero");
        kill_process(pid, signal).expect("our own child can be signalled");
    }

    /// Waits until it ends by itself, and all that it printed is there.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let begin = Instant::now();
        loop {
            // Before the status: a line that is still on its way would be missing.
            let read = self.readers.iter().all(JoinHandle::is_finished);
            if let Some(status) = self
                .child
                .try_wait()
                .expect("our own child can be waited for")
                .filter(|_| read)
            {
                return status;
            }
            assert!(
                begin.elapsed() < deadline,
                "{} did not end within {deadline:?}:\n{}",
                self.name,
                self.output()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child
            .try_wait()
            .expect("our own child can be waited for")
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        self.lines.lock().expect("no holder panics").join("\n")
    }

    /// What follows `marker` in the first line that has it.
    pub fn printed(&self, marker: &str) -> Option<String> {
        let lines = self.lines.lock().expect("no holder panics");
        lines.iter().find_map(|line| {
            line.split_once(marker)
                .map(|(_, rest)| rest.trim().to_owned())
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended before; there is nothing to do about it here.
        let _ = self.child.kill();
        // Without it the child would stay as a zombie until the tests end.
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- {} printed:\n{}\n----", self.name, self.output());
        }
    }
}

fn collect(stream: impl Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut lines = lines.lock().expect("no holder panics");
            if lines.len() >= LINES_MAX {
                // The first lines are the least interesting ones of a long run.
                lines.remove(0);
            }
            lines.push(line);
        }
    })
}
