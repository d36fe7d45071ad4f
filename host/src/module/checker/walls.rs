//! Confines the checking process: even if an upload takes it over, it can only compute and answer.
//!
//! Each protection is enabled if the kernel has it; otherwise the others and the limits must do.
//! The host logs which ones are enabled.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, RulesetStatus, Scope,
};
use rustix::process::Resource;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::module::answer::Walls;

/// The newest rules that we request; an older kernel applies those that it knows.
const LANDLOCK: ABI = ABI::V6;
/// Standard input, output and error.
const STANDARD: u64 = 3;
/// System calls whose arguments need no check: memory, threads, time, and exit.
const HARMLESS: &[libc::c_long] = &[
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
];

/// Enables all protections that this kernel has. After this, no file, socket or other process can
/// be reached.
pub(super) fn raise() {
    close_inherited();
    // Each protection first gives up new privileges. The filter comes last, because it refuses the
    // others.
    // An error is no reason to stop: without one protection the others still hold (see above).
    let _ = landlock();
    // All three numbers are taken, so nothing can be opened, whatever the filter lets pass.
    let _ = super::limit(Resource::Nofile, STANDARD, "");
    let _ = seccomp();
}

/// Closes descriptors that the host's own parent left open: standard input, output and error
/// suffice. Without a list of descriptors, the filter must do.
fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // The list itself was one of them, and is closed after it is read.
    for descriptor in names.collect::<Vec<_>>() {
        let is_open = std::fs::symlink_metadata(format!("/proc/self/fd/{descriptor}")).is_ok();
        if descriptor >= 3 && is_open {
            // SAFETY: this process has one thread, which has opened nothing that is still open:
            // what this number names is open, and belongs to nobody in this process.
            unsafe { rustix::io::close(descriptor) };
        }
    }
}

/// No file can be opened, created or removed, no TCP port used, no other process signalled; returns
/// whether all of that is enforced.
fn landlock() -> Option<bool> {
    // Requested with the newest rules and best effort: an older kernel applies a part of them.
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))
        .ok()?;
    let rules = rules.handle_access(AccessNet::from_all(LANDLOCK)).ok()?;
    let status = rules
        .scope(Scope::from_all(LANDLOCK))
        .ok()?
        .create()
        .ok()?
        .restrict_self()
        .ok()?;
    Some(status.ruleset != RulesetStatus::NotEnforced)
}

/// Allows only the system calls that computing and answering need; any other fails as if the kernel
/// did not have it.
fn seccomp() -> Option<()> {
    // `ENOSYS` and not a signal: libraries then take their other way, as on an older kernel.
    let unknown = SeccompAction::Errno(u32::try_from(libc::ENOSYS).ok()?);
    let architecture = std::env::consts::ARCH.try_into().ok()?;
    let filter = SeccompFilter::new(rules()?, unknown, SeccompAction::Allow, architecture).ok()?;
    let program = BpfProgram::try_from(filter).ok()?;
    seccompiler::apply_filter(&program).ok()
}

fn rules() -> Option<BTreeMap<i64, Vec<SeccompRule>>> {
    let is = |index, value| condition(index, SeccompCmpOp::Eq, value);
    // Flags and descriptors are all in the low half of their argument.
    let lacks =
        |index, bit: i32| condition(index, SeccompCmpOp::MaskedEq(u64::try_from(bit).ok()?), 0);
    let has = |index, bit: i32| {
        let bit = u64::try_from(bit).ok()?;
        condition(index, SeccompCmpOp::MaskedEq(bit), bit)
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        HARMLESS.iter().map(|call| (*call, Vec::new())).collect();
    // Only from standard input, and only to standard output and error.
    rules.insert(libc::SYS_read, vec![rule(is(0, 0)?)?]);
    for call in [libc::SYS_write, libc::SYS_writev] {
        rules.insert(call, vec![rule(is(0, 1)?)?, rule(is(0, 2)?)?]);
    }
    // Nothing written here can be executed here.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(lacks(2, libc::PROT_EXEC)?)?]);
    }
    // Threads, but no processes. The C library tries `clone3` first, whose flags cannot be checked,
    // and then uses this one.
    rules.insert(libc::SYS_clone, vec![rule(has(0, libc::CLONE_THREAD)?)?]);
    // A process may end itself by a signal, but send no other one.
    rules.insert(
        libc::SYS_tgkill,
        vec![rule(is(0, u64::from(std::process::id()))?)?],
    );
    // Limits may be read.
    // The third argument is the new limit: none, so that it only reads.
    let reads = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0).ok()?;
    rules.insert(libc::SYS_prlimit64, vec![rule(reads)?]);
    Some(rules)
}

fn condition(index: u8, operator: SeccompCmpOp, value: u64) -> Option<SeccompCondition> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value).ok()
}

fn rule(condition: SeccompCondition) -> Option<SeccompRule> {
    SeccompRule::new(vec![condition]).ok()
}

/// Tries what a process that was taken over would try.
pub(super) fn probe() -> Walls {
    let folder = std::env::temp_dir().join(format!("foldstream-wall-{}", std::process::id()));
    let makes_folders = std::fs::create_dir(&folder).is_ok();
    if makes_folders {
        let _ = std::fs::remove_dir(&folder);
    }
    let opens_files = std::fs::File::open("/proc/self/exe").is_ok();
    let opens_sockets = std::net::UdpSocket::bind(("127.0.0.1", 0)).is_ok();
    // Signal 0 does nothing to the parent, and shows whether another one would reach it.
    let parent = rustix::process::getppid();
    let signals = parent.is_some_and(|parent| rustix::process::test_kill_process(parent).is_ok());
    // A program that does not exist shows whether a process could be started for one that does:
    // only then it is looked for.
    let started = std::process::Command::new("/nonexistent").spawn();
    let starts = started
        .err()
        .is_none_or(|error| error.raw_os_error() == Some(libc::ENOENT));
    if !opens_files {
        // Without a way to files no program can take the place of this one either. If one does,
        // nobody answers.
        // Only a failure returns here. A program that starts instead prints its version, which is
        // no answer that the host knows.
        let _ = std::process::Command::new("/proc/self/exe")
            .arg("--version")
            .exec();
    }
    Walls {
        files: !makes_folders && !opens_files,
        sockets: !opens_sockets,
        processes: !signals && !starts,
    }
}
