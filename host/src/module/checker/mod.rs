//! The checking process: everything that parses an upload.
//!
//! Parsers, validators and compilers are large programs that read untrusted input. Here they may
//! run out of stack, memory or time, and may even be taken over, without harm: the host sees an
//! answer, or none. Nothing outside this folder may parse an upload.

mod accept;
mod contract;
mod encode;
mod expansion;
#[cfg(target_os = "linux")]
mod walls;
#[cfg(not(target_os = "linux"))]
#[path = "no_walls.rs"]
mod walls;

use std::io::{self, Read};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::answer::Answer;
use super::description;
use super::engine::{AddressSpace, config};
use crate::precedence;

/// Stack of the worker thread. A valid module needs a small part of it; one whose types nest
/// without end exhausts it early.
const STACK_BYTES: usize = 16 << 20;
/// Stack of the main thread, which only waits.
const MAIN_STACK_BYTES: u64 = 8 << 20;

/// An upload is refused: why, as its client reads it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

impl From<String> for Refused {
    fn from(words: String) -> Self {
        Self(words)
    }
}

/// The job of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Check an upload.
    Check,
    /// Compile a component.
    Compile,
    /// Test what this process can still access.
    Probe,
}

/// The arguments of the process.
#[derive(Clone, Debug)]
pub struct Order {
    /// What to do.
    pub job: Job,
    /// Version of the host.
    pub version: String,
    /// Address space, in bytes.
    pub memory_bytes: u64,
    /// Processor time, in seconds.
    pub cpu_seconds: u64,
    /// Most bytes of the result: a component, or code.
    pub bytes_max: u64,
    /// Whether to compile for memories without reserved address space.
    pub is_scarce: bool,
    /// Whether the code counts the instructions that it executes.
    pub counts_fuel: bool,
}

/// Does a job for the host: reads the upload from standard input, and writes the answer to standard
/// output.
pub fn run(order: Order) -> ExitCode {
    let answer = match prepare(&order) {
        Ok(compiler) => work(order, compiler),
        Err(words) => Answer::Broken(words),
    };
    // If the output is closed, nobody is left to answer.
    match answer.write_to(&mut io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Gives up the privileges that the job does not need; the upload is read only afterwards. Returns
/// the compiler if there is something to compile: it inspects the machine when it is created, which
/// would fail later.
fn prepare(order: &Order) -> Result<Option<wasmtime::Engine>, String> {
    let own = env!("CARGO_PKG_VERSION");
    if order.version != own {
        return Err(format!(
            "the host has version {}, but the program that checks modules has version {own}; \
             restart the host",
            order.version
        ));
    }
    // This process must not outlive a host that dies.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| format!("cannot bind the checker to its host: {error}"))?;
    // Threads of the host that answer reads get a core first.
    precedence::give_way_to_parent();
    // If the machine runs short of memory, it should kill this process first.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    limit(Resource::Core, 0, "")?;
    // No core of somebody's upload on the disk, and no writing to files. The answer goes to a pipe,
    // which no limit of a file's size concerns.
    limit(Resource::Fsize, 0, "")?;
    limit(Resource::Stack, MAIN_STACK_BYTES, "")?;
    limit(
        Resource::As,
        order.memory_bytes,
        "; lower modules.compile_memory_max",
    )?;
    let time = if order.job == Job::Compile {
        "modules.compile_time_max"
    } else {
        "modules.check_time_max"
    };
    limit(Resource::Cpu, order.cpu_seconds, &format!("; lower {time}"))?;
    let compiler = if order.job == Job::Compile {
        Some(compiler(order)?)
    } else {
        None
    };
    walls::raise();
    Ok(compiler)
}

fn compiler(order: &Order) -> Result<wasmtime::Engine, String> {
    let space = if order.is_scarce {
        AddressSpace::Scarce
    } else {
        AddressSpace::Plenty
    };
    wasmtime::Engine::new(&config(space, order.counts_fuel.into()))
        .map_err(|error| format!("cannot set up the compiler: {error:#}"))
}

/// Lowers a limit. A lower one stays.
fn limit(resource: Resource, wanted: u64, advice: &str) -> Result<(), String> {
    // None is a process without a limit. More than the hard limit would be an error, and a stricter
    // one of the machine may stay.
    let hard = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let max = wanted.min(hard);
    // The processor limit sends a signal that identifies it, and kills a second later.
    let maximum = if matches!(resource, Resource::Cpu) {
        max.saturating_add(1).min(hard)
    } else {
        max
    };
    setrlimit(
        resource,
        Rlimit {
            current: Some(max),
            maximum: Some(maximum),
        },
    )
    .map_err(|error| format!("cannot limit {resource:?} to {max}: {error}{advice}"))
}

fn work(order: Order, compiler: Option<wasmtime::Engine>) -> Answer {
    let thread = std::thread::Builder::new()
        .name("checker".to_owned())
        .stack_size(STACK_BYTES);
    // A panic is the upload's doing, because nothing else differs between two checks. A stack that
    // runs out is no panic: it ends the process, and the host sees the signal.
    match thread.spawn(move || answer(&order, compiler.as_ref())) {
        Ok(thread) => thread.join().unwrap_or_else(|_| {
            Answer::Refused("it makes the checker fail; build it again".to_owned())
        }),
        Err(error) => Answer::Broken(format!("cannot start its thread: {error}")),
    }
}

fn answer(order: &Order, compiler: Option<&wasmtime::Engine>) -> Answer {
    if order.job == Job::Probe {
        return Answer::Walls(walls::probe());
    }
    let mut upload = Vec::new();
    if let Err(error) = io::stdin().read_to_end(&mut upload) {
        return Answer::Broken(format!("cannot read the module: {error}"));
    }
    match compiler {
        Some(compiler) => compile(&upload, order, compiler),
        None => accept::accept(&upload, order.bytes_max),
    }
}

fn compile(component: &[u8], order: &Order, compiler: &wasmtime::Engine) -> Answer {
    match compiler.precompile_component(component) {
        Ok(code) if code.len() as u64 > order.bytes_max => Answer::Refused(format!(
            "its native code has {} bytes, {} are allowed; make the module smaller, or raise \
             modules.code_bytes_max",
            code.len(),
            order.bytes_max
        )),
        Ok(code) if description::length(&code) > description::BYTES_MAX => {
            Answer::Refused(format!(
                "it has too many types, functions, globals and segments: their description has {} \
                 bytes, {} are allowed; make the module smaller",
                description::length(&code),
                description::BYTES_MAX
            ))
        }
        Ok(code) => Answer::Compiled(code),
        Err(error) => Answer::Refused(format!("{error:#}")),
    }
}
