//! Compilation of uploads, in a child process with limits of its own.
//!
//! A compiler is a large program that reads what a stranger wrote. A bomb that makes it run for hours or take all
//! memory ends the child, not the host.

use std::io::{self, Read, Write};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};

use super::engine::{AddressSpace, config};
use super::{Error, Options};

const MEMORY_BYTES: &str = "FOLDSTREAM_COMPILE_MEMORY_BYTES";
const CPU_SECONDS: &str = "FOLDSTREAM_COMPILE_CPU_SECONDS";
const ADDRESS_SPACE: &str = "FOLDSTREAM_COMPILE_ADDRESS_SPACE";
const SCARCE: &str = "scarce";
/// Threads of the compiler: each of them takes address space, which is limited.
const THREADS_MAX: usize = 4;
/// Most that is kept of what the child says.
const WORDS_BYTES_MAX: u64 = 4_096;
/// Compiled code is larger than the module, but not beyond this.
const CODE_GROWTH_MAX: u64 = 32;
const CODE_BYTES_MIN: u64 = 16 << 20;
/// How often the end of a child is looked for that has already written its output.
const POLL: Duration = Duration::from_millis(1);

/// Compiles a component.
pub(super) fn in_child(component: &[u8], options: &Options, address_space: AddressSpace) -> Result<Vec<u8>, Error> {
    let deadline = Instant::now() + options.compile_time_max;
    let mut child = spawn(options, address_space)?;
    let code_bytes_max = component.len() as u64 * CODE_GROWTH_MAX + CODE_BYTES_MIN;
    let (outcome, words) = converse(&mut child, component, code_bytes_max, deadline)
        .map_err(|error| Error::Compile(format!("lost touch with the compiler: {error}")))?;
    let Outcome::Ended(status, code) = outcome else {
        return Err(Error::Compile(format!(
            "it took longer than {:?}; make the module smaller, or raise the host's limit",
            options.compile_time_max
        )));
    };
    if !status.success() {
        return Err(Error::Compile(explain(status, &words, options)));
    }
    if code.len() as u64 > code_bytes_max {
        return Err(Error::Compile(format!("the compiled code has more than {code_bytes_max} bytes")));
    }
    Ok(code)
}

/// How the child came to its end.
enum Outcome {
    /// By itself, with all that it wrote.
    Ended(ExitStatus, Vec<u8>),
    /// Killed at the deadline.
    Late,
}

fn spawn(options: &Options, address_space: AddressSpace) -> Result<Child, Error> {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
    let seconds = options.compile_time_max.as_secs().saturating_add(1).saturating_mul(threads as u64);
    let mut command = Command::new(&options.compiler);
    command
        .arg("compile-module")
        .env_clear()
        .env(MEMORY_BYTES, options.compile_memory_max.to_string())
        .env(CPU_SECONDS, seconds.to_string())
        .env("RAYON_NUM_THREADS", threads.to_string())
        // Each arena of the C library takes address space, whether it is used or not.
        .env("MALLOC_ARENA_MAX", "1")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if address_space == AddressSpace::Scarce {
        command.env(ADDRESS_SPACE, SCARCE);
    }
    command.spawn().map_err(|error| {
        Error::Engine(format!("cannot start the compiler {}: {error}; check its path", options.compiler.display()))
    })
}

/// Feeds the child and collects what it says until it ends or the deadline passes; it never outlives this call.
fn converse(
    child: &mut Child,
    component: &[u8],
    code_bytes_max: u64,
    deadline: Instant,
) -> io::Result<(Outcome, String)> {
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let stdout = child.stdout.take().expect("stdout is piped");
    let stderr = child.stderr.take().expect("stderr is piped");
    std::thread::scope(|scope| {
        // A child that refuses early closes its end; what it says is on stderr.
        scope.spawn(move || drop(stdin.write_all(component)));
        let words = scope.spawn(move || {
            let mut words = Vec::new();
            let mut stderr = stderr;
            let result = stderr.by_ref().take(WORDS_BYTES_MAX).read_to_end(&mut words);
            let _ = io::copy(&mut stderr, &mut io::sink());
            result.map(|_| String::from_utf8_lossy(&words).trim().to_owned())
        });
        // One answer; the sender never waits.
        let (sender, receiver) = sync_channel(1);
        scope.spawn(move || {
            let mut code = Vec::new();
            let result = stdout.take(code_bytes_max + 1).read_to_end(&mut code).map(|_| code);
            let _ = sender.send(result);
        });
        let code = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        let status = match &code {
            Ok(Ok(_)) => wait_until(child, deadline),
            _ => Ok(None),
        };
        // From here on nothing below can wait for long: the child's ends of the pipes are closed with it.
        let _ = child.kill();
        let _ = child.wait();
        let words = words.join().expect("the reader does not panic")?;
        match (status?, code) {
            (Some(status), Ok(Ok(code))) => Ok((Outcome::Ended(status, code), words)),
            (_, Ok(Err(error))) => Err(error),
            (None, Ok(Ok(_))) | (_, Err(RecvTimeoutError::Timeout)) => Ok((Outcome::Late, words)),
            (_, Err(RecvTimeoutError::Disconnected)) => Err(io::Error::other("its output could not be read")),
        }
    })
}

/// Waits for the end of a child that has closed its output. The standard library has no wait with a limit.
fn wait_until(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

fn explain(status: ExitStatus, words: &str, options: &Options) -> String {
    use std::os::unix::process::ExitStatusExt;

    const OUT_OF_MEMORY: [&str; 3] =
        ["memory allocation of", "Cannot allocate memory", "Resource temporarily unavailable"];
    if OUT_OF_MEMORY.iter().any(|sign| words.contains(sign)) {
        return format!(
            "it took more than {} bytes of memory; make the module smaller, or raise the host's limit",
            options.compile_memory_max
        );
    }
    match status.signal() {
        Some(signal) => format!("the compiler was ended by signal {signal}: {words}"),
        None if words.is_empty() => format!("the compiler failed with {status}"),
        None => words.to_owned(),
    }
}

/// The compiling process: reads a component from standard input, writes compiled code to standard output. Limits come
/// from the environment that the host sets; errors are text on standard error.
pub fn compile_child() -> ExitCode {
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(io::stderr(), "{message}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), String> {
    limit_process()?;
    let scarce = std::env::var(ADDRESS_SPACE).is_ok_and(|value| value == SCARCE);
    let config = config(if scarce { AddressSpace::Scarce } else { AddressSpace::Plenty });
    let engine = wasmtime::Engine::new(&config).map_err(|error| format!("cannot set up the compiler: {error:#}"))?;
    let mut component = Vec::new();
    io::stdin().read_to_end(&mut component).map_err(|error| format!("cannot read the module: {error}"))?;
    let code = engine.precompile_component(&component).map_err(|error| format!("{error:#}"))?;
    io::stdout().write_all(&code).map_err(|error| format!("cannot write the code: {error}"))
}

/// Takes from this process what compiling does not need.
fn limit_process() -> Result<(), String> {
    let limit = |resource, max: u64| {
        let limits = Rlimit { current: Some(max), maximum: Some(max) };
        setrlimit(resource, limits).map_err(|error| format!("cannot limit the compiler: {error}"))
    };
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    // A host that dies must not leave a compiler behind.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| format!("cannot bind the compiler to its host: {error}"))?;
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    if let Some(bytes) = number(MEMORY_BYTES) {
        limit(Resource::As, bytes)?;
    }
    if let Some(seconds) = number(CPU_SECONDS) {
        limit(Resource::Cpu, seconds)?;
    }
    Ok(())
}
