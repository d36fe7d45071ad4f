//! Which threads get a core first if there are too few: answering requests comes before reading
//! streams, and folding comes last.

use std::sync::OnceLock;

use rustix::process::getpriority_process;

/// By how much threads that fold, and the process that checks uploads, are nicer than the rest. With
/// more, modules would miss their deadlines whenever the machine is busy with something else.
const NICER: i32 = 3;
const NICENESS_MAX: i32 = 19;
/// Slice of a thread that answers, in nanoseconds: the shortest one that Linux takes. A request
/// needs less.
#[cfg(target_os = "linux")]
const SLICE_NS: u64 = 100_000;

/// Gives threads that answer reads precedence over the calling thread, or, on systems other than
/// Linux, over the whole process. Threads that the calling thread starts inherit that and can't
/// undo it without privileges, so it must not start threads that answer reads.
pub(crate) fn give_way() {
    // The host may have been started with a low priority. The first thread that gives way still has
    // that one; its children do not.
    static NORMAL: OnceLock<i32> = OnceLock::new();
    give_way_from(*NORMAL.get_or_init(|| getpriority_process(None).unwrap_or(0)));
}

/// The same for a process that a host has started, no matter which of its threads did.
pub(crate) fn give_way_to_parent() {
    give_way_from(getpriority_process(rustix::process::getppid()).unwrap_or(0));
}

fn give_way_from(normal: i32) {
    let niceness = (normal + NICER).min(NICENESS_MAX);
    if let Err(error) = rustix::process::setpriority_process(None, niceness) {
        tracing::debug!(%error, "work in the background runs with normal priority");
    }
}

/// Lets the calling thread start as soon as it has something to do, before threads of the same
/// priority that have run for a shorter time than their slice: it asks for a slice so short that
/// its own is over first. It gets no larger share of the processor. Linux has this since 6.12
/// (`sched_setattr(2)`, `sched_runtime` of ordinary threads); elsewhere nothing happens.
pub(crate) fn answer_first() {
    #[cfg(target_os = "linux")]
    if let Err(error) = shorten_slice(SLICE_NS) {
        tracing::debug!(%error, "a thread that answers requests has a slice of normal length");
    }
}

/// Changes the slice of the calling thread, and nothing else of its scheduling.
#[cfg(target_os = "linux")]
fn shorten_slice(slice_ns: u64) -> std::io::Result<()> {
    let mut attributes = own_attributes()?;
    attributes.sched_runtime = slice_ns;
    // SAFETY: the kernel reads `size` bytes of the structure and keeps no pointer to it. Thread 0 is
    // the calling one.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if set == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// How the system schedules the calling thread.
#[cfg(target_os = "linux")]
fn own_attributes() -> std::io::Result<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>() as u32;
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes at most `size` bytes, which is the size of the structure. Thread 0
    // is the calling one.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if got == 0 {
        Ok(attributes)
    } else {
        Err(std::io::Error::last_os_error())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_answers_keeps_its_priority_and_gets_a_short_slice() {
        // In a thread of its own, as what it changes stays.
        std::thread::spawn(|| {
            let before = own_attributes().expect("the system tells");
            answer_first();
            let after = own_attributes().expect("the system tells");
            assert_eq!(
                (before.sched_policy, before.sched_nice),
                (after.sched_policy, after.sched_nice)
            );
            // Systems before 6.12 know no slices, and say 0.
            assert!([0, SLICE_NS].contains(&after.sched_runtime));
            if before.sched_runtime != 0 {
                assert_eq!(after.sched_runtime, SLICE_NS);
            }
        })
        .join()
        .expect("the thread does not fail");
    }
}
