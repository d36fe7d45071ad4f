//! The host's side of the checking process: starts it, feeds it, and trusts nothing but a valid
//! answer.
//!
//! An upload that makes a parser or a compiler run for hours, use up memory or overflow its stack
//! ends the child, not the host.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::answer::{Answer, Found, OVERHEAD_BYTES_MAX, WORDS_BYTES_MAX, Walls, plain};
use super::checker::Job;
use super::engine::AddressSpace;
use super::{Error, Options, Wanted};
use crate::advice;

/// Threads of the compiler: each of them takes address space, which is limited.
const THREADS_MAX: usize = 4;
/// Stack of each of these threads, in bytes.
const THREAD_STACK_BYTES: usize = 8 << 20;
/// Native code is larger than the module, but not by more than this factor.
const CODE_GROWTH_MAX: u64 = 8;
/// Native code that any module may have, however small it is.
const CODE_BYTES_MIN: u64 = 16 << 20;
/// Longest probe of the protections.
const PROBE_TIME_MAX: Duration = Duration::from_secs(10);

/// The result for a valid upload: what it has, and the component if the upload was a core module.
pub(super) type Checked = (Found, Option<Vec<u8>>);

/// The running program, for a host that starts it again as its checking process.
///
/// The kernel's own link to it survives an upgrade or a removal of the file.
pub fn this_program() -> io::Result<PathBuf> {
    let link = Path::new("/proc/self/exe");
    if link.exists() {
        Ok(link.to_owned())
    } else {
        std::env::current_exe()
    }
}

pub(super) fn check(upload: &[u8], options: &Options, wanted: &Wanted) -> Result<Checked, Error> {
    let run = Run {
        job: Job::Check,
        bytes_max: options.upload_bytes_max as u64,
        time_max: options.check_time_max,
        time_setting: "modules.check_time_max",
        address_space: AddressSpace::Plenty,
        options,
    };
    match run.answer(upload, wanted).map_err(Error::Check)? {
        Answer::Checked { found, component } => Ok((found, component)),
        Answer::Refused(words) => Err(Error::Refused(words)),
        _ => Err(Error::Check(
            "the checker answered another question".to_owned(),
        )),
    }
}

pub(super) fn compile(
    component: &[u8],
    options: &Options,
    address_space: AddressSpace,
    wanted: &Wanted,
) -> Result<Vec<u8>, Error> {
    let run = Run {
        job: Job::Compile,
        bytes_max: options
            .code_bytes_max
            .min(component.len() as u64 * CODE_GROWTH_MAX + CODE_BYTES_MIN),
        time_max: options.compile_time_max,
        time_setting: "modules.compile_time_max",
        address_space,
        options,
    };
    match run.answer(component, wanted).map_err(Error::Compile)? {
        Answer::Compiled(code) => Ok(code),
        Answer::Refused(words) => Err(Error::Compile(words)),
        _ => Err(Error::Compile(
            "the compiler answered another question".to_owned(),
        )),
    }
}

/// Tries what the checking process should be denied on this machine.
pub fn walls(options: &Options) -> Result<Walls, Error> {
    let run = Run {
        job: Job::Probe,
        bytes_max: 0,
        time_max: PROBE_TIME_MAX,
        time_setting: "no setting",
        address_space: AddressSpace::Plenty,
        options,
    };
    match run.answer(&[], &Wanted::always()).map_err(Error::Check)? {
        Answer::Walls(walls) => Ok(walls),
        _ => Err(Error::Check(
            "the checker answered another question".to_owned(),
        )),
    }
}

/// One run of the process, with its limits.
struct Run<'a> {
    job: Job,
    /// Most bytes of a component or code in the answer.
    bytes_max: u64,
    time_max: Duration,
    time_setting: &'static str,
    address_space: AddressSpace,
    options: &'a Options,
}

/// How the child ended.
enum Outcome {
    /// On its own, with everything that it wrote.
    Ended(ExitStatus, Vec<u8>),
    /// Killed at the deadline.
    Late,
    /// Killed because nobody waits for it any more.
    Unwanted,
}

impl Run<'_> {
    /// The child's answer, or why there is none.
    fn answer(&self, upload: &[u8], wanted: &Wanted) -> Result<Answer, String> {
        // Its turn may have taken longer than its caller waited.
        if wanted.has_ended() {
            return Err(left());
        }
        let mut child = self.spawn()?;
        let (outcome, words) = self
            .converse(&mut child, upload, wanted)
            .map_err(|error| format!("lost contact with the {}: {error}", self.name()))?;
        match outcome {
            Outcome::Unwanted => Err(left()),
            Outcome::Late => Err(self.late()),
            Outcome::Ended(status, output) => {
                // One byte more than allowed is read, so that a cut answer is not taken for a whole
                // one.
                if output.len() as u64 > self.output_bytes_max() {
                    return Err(format!("its result has more than {} bytes", self.bytes_max));
                }
                // The status is looked at before the answer: a child that was taken over could
                // write one and die.
                if !status.success() {
                    return Err(self.explain(status, &words));
                }
                match Answer::parse(output) {
                    // A compiler that survived a failed allocation says so in its own words; ours
                    // name the setting.
                    Some(Answer::Broken(words)) => Err(self.out_of_memory(&words).unwrap_or(words)),
                    Some(answer) => Ok(answer),
                    None => {
                        let program = self.options.compiler.display();
                        Err(format!(
                            "the {} {program} gave no answer; is it this program?",
                            self.name()
                        ))
                    }
                }
            }
        }
    }

    fn name(&self) -> &'static str {
        if self.job == Job::Compile {
            "compiler"
        } else {
            "checker"
        }
    }

    fn output_bytes_max(&self) -> u64 {
        self.bytes_max.saturating_add(OVERHEAD_BYTES_MAX as u64)
    }

    fn late(&self) -> String {
        let Self {
            time_max,
            time_setting,
            ..
        } = self;
        format!(
            "it took longer than {time_max:?} ({time_setting}); make the module smaller, or raise \
             the limit"
        )
    }

    fn spawn(&self) -> Result<Child, String> {
        let threads = match self.job {
            Job::Compile => {
                std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX))
            }
            Job::Check | Job::Probe => 1,
        };
        // The kernel counts the time of all threads together: with this factor, only a child with
        // more threads than these reaches the limit before the deadline.
        let seconds = self
            .time_max
            .as_secs()
            .saturating_add(1)
            .saturating_mul(threads as u64);
        let job = match self.job {
            Job::Check => "check",
            Job::Compile => "compile",
            Job::Probe => "probe",
        };
        let mut command = Command::new(&self.options.compiler);
        // Through `/proc/self/exe` the process would be listed as `exe`.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::arg0(&mut command, "foldstream");
        command
            .args([
                "check-module",
                job,
                "--host-version",
                env!("CARGO_PKG_VERSION"),
            ])
            .args([
                "--memory-bytes",
                &self.options.compile_memory_max.to_string(),
            ])
            .args(["--cpu-seconds", &seconds.to_string()])
            .args(["--bytes-max", &self.bytes_max.to_string()])
            .env_clear()
            .env("RAYON_NUM_THREADS", threads.to_string())
            .env("RUST_MIN_STACK", THREAD_STACK_BYTES.to_string())
            // Each arena of the C library takes address space, used or not.
            .env("MALLOC_ARENA_MAX", "1")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if self.address_space == AddressSpace::Scarce {
            command.arg("--scarce");
        }
        if self.options.counts_fuel {
            command.arg("--fuel");
        }
        command.spawn().map_err(|error| {
            let (program, advice) = (self.options.compiler.display(), advice::of_program(&error));
            format!(
                "cannot start the {} {program}: {error}; {advice}",
                self.name()
            )
        })
    }

    /// Feeds the child and collects its output until it ends, the deadline passes, or nobody waits;
    /// the child never outlives this call.
    fn converse(
        &self,
        child: &mut Child,
        upload: &[u8],
        wanted: &Wanted,
    ) -> io::Result<(Outcome, String)> {
        let deadline = Instant::now() + self.time_max;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let output_bytes_max = self.output_bytes_max();
        // All pipes are served at once: a child that writes much while it is fed would block
        // otherwise.
        std::thread::scope(|scope| {
            // A child that refuses early closes its end; its answer says why.
            scope.spawn(move || drop(stdin.write_all(upload)));
            let words = scope.spawn(move || words_of(stderr));
            // One answer; the sender never waits.
            let (sender, receiver) = bounded(1);
            scope.spawn(move || {
                let mut output = Vec::new();
                let result = stdout
                    .take(output_bytes_max + 1)
                    .read_to_end(&mut output)
                    .map(|_| output);
                let _ = sender.send(result);
            });
            // Never sent to: dropping its sender ends the wait for it.
            let (running, ended) = bounded(0);
            let id = Pid::from_child(child);
            scope.spawn(move || wait_for_end(id, running));
            // Closed output comes before the end: the status follows within moments, or within the
            // deadline.
            let outcome = select! {
                recv(receiver) -> output => match output {
                    Ok(Ok(output)) => status_of(child, &ended, deadline, wanted).map(|status| match status {
                        Some(status) => Outcome::Ended(status, output),
                        None if wanted.has_ended() => Outcome::Unwanted,
                        None => Outcome::Late,
                    }),
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(io::Error::other("its output could not be read")),
                },
                recv(wanted.ended()) -> _ => Ok(Outcome::Unwanted),
                default(deadline.saturating_duration_since(Instant::now())) => Ok(Outcome::Late),
            };
            // From here on nothing can block for long: the child's ends of the pipes are closed
            // with it.
            // Also after a good answer: what was already waited for gets no signal.
            let _ = child.kill();
            let _ = child.wait();
            let words = words.join().expect("the reader does not panic")?;
            Ok((outcome?, words))
        })
    }

    /// The message if the child's output shows that it ran out of memory.
    fn out_of_memory(&self, words: &str) -> Option<String> {
        use rustix::process::{Resource, getrlimit};

        // What Rust's allocator, and threads and mappings that the C library could not make, print.
        const SIGNS: [&str; 3] = [
            "memory allocation of",
            "Cannot allocate memory",
            "Resource temporarily unavailable",
        ];
        if !SIGNS.iter().any(|sign| words.contains(sign)) {
            return None;
        }
        let hard = getrlimit(Resource::As).maximum.unwrap_or(u64::MAX);
        let bytes = self.options.compile_memory_max.min(hard);
        Some(format!(
            "it took more than {bytes} bytes of memory (modules.compile_memory_max, or the address \
             space that the host may have); make the module smaller, or raise the limit"
        ))
    }

    /// Why a child ended without an answer.
    fn explain(&self, status: ExitStatus, words: &str) -> String {
        use rustix::process::Signal;
        use std::os::unix::process::ExitStatusExt as _;

        let name = self.name();
        let is = |signal: Signal| status.signal() == Some(signal.as_raw());
        // An overflow is a signal, or the words that Rust's handler prints before it aborts.
        if words.contains("overflowed its stack") || is(Signal::SEGV) || is(Signal::BUS) {
            return format!("the {name} ran out of stack; nest types and modules less deeply");
        }
        if let Some(words) = self.out_of_memory(words) {
            return words;
        }
        if is(Signal::XCPU) {
            // `XCPU` is the limit of seconds that it was given: to the caller the same as the
            // deadline.
            return self.late();
        }
        if is(Signal::KILL) {
            return format!(
                "the {name} was killed, as happens if the machine is short of memory; try again \
                 later"
            );
        }
        match status.signal() {
            Some(signal) => format!("the {name} was ended by signal {signal}: {words}"),
            None => format!("the {name} failed with {status}: {words}"),
        }
    }
}

fn left() -> String {
    "nobody waits for it any more".to_owned()
}

/// The first text on standard error. The rest is read and dropped, so that the child never blocks
/// on it.
fn words_of(mut stderr: impl Read) -> io::Result<String> {
    let mut words = Vec::new();
    let result = stderr
        .by_ref()
        .take(WORDS_BYTES_MAX as u64)
        .read_to_end(&mut words);
    // A child that writes on would fill the pipe and stop; it must reach its end, or its deadline.
    let _ = io::copy(&mut stderr, &mut io::sink());
    result.map(|_| plain(&String::from_utf8_lossy(&words)))
}

/// Waits for the end of a child, and leaves its status to the thread that started it. Dropping
/// `running` is the message.
fn wait_for_end(id: Pid, running: Sender<Infallible>) {
    let look = || {
        waitid(
            WaitId::Pid(id),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        )
    };
    // An error means that its status was already taken.
    let _ = rustix::io::retry_on_intr(look);
    drop(running);
}

/// The status of a child that has closed its output, once it has ended; none if that takes too long
/// or nobody waits.
fn status_of(
    child: &mut Child,
    ended: &Receiver<Infallible>,
    deadline: Instant,
    wanted: &Wanted,
) -> io::Result<Option<ExitStatus>> {
    // Each arm only observes; the caller kills a child of which it gets no status.
    select! {
        recv(ended) -> _ => child.wait().map(Some),
        recv(wanted.ended()) -> _ => Ok(None),
        default(deadline.saturating_duration_since(Instant::now())) => Ok(None),
    }
}
