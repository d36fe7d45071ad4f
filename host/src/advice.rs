//! What to do about an error of the system.

use std::io::{self, ErrorKind};

use rustix::io::Errno;

/// Whether a disk, a quota or a limit of the process has no room for a write.
pub(crate) fn is_out_of_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}

/// What helps against an error while a file was used; nothing if that depends on the file.
pub(crate) fn of_file(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE) => {
            return Some(
                "raise the limit of open files (`ulimit -n`, or LimitNOFILE= in systemd), or run \
                 fewer deployments",
            );
        }
        Some(Errno::NFILE) => {
            return Some(
                "the whole machine has too many files open; end what leaks them, or raise \
                 fs.file-max",
            );
        }
        Some(Errno::NOMEM) => {
            return Some(
                "the machine is short of memory; give it more, or lower limits.memory_bytes",
            );
        }
        Some(Errno::IO) => return Some("look for errors of the disk in the log of the kernel"),
        _ => {}
    }
    match error.kind() {
        _ if is_out_of_room(error) => Some("free some space"),
        ErrorKind::PermissionDenied => Some("let the user of this process read and write it"),
        ErrorKind::ReadOnlyFilesystem => Some("mount its file system so that it can be written"),
        _ => None,
    }
}

/// What helps if a process could not be started.
pub(crate) fn of_program(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN) => {
            "this user or container has too many processes and threads; raise the limit (`ulimit \
             -u`, TasksMax= in systemd, or --pids-limit of the container)"
        }
        Some(Errno::MFILE | Errno::NFILE) => {
            "too many files are open; raise the limit (`ulimit -n`, or LimitNOFILE= in systemd)"
        }
        Some(Errno::NOMEM) => "the machine is short of memory; try again later",
        Some(Errno::NOENT) => "check its path, and that /proc is mounted",
        _ => "check its path",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_asked_to_remove_a_state_for_a_limit_of_the_process() {
        let told = of_file(&Errno::MFILE.into()).expect("something helps");
        assert!(
            told.contains("LimitNOFILE") && !told.contains("remove"),
            "{told}"
        );
        assert_eq!(of_file(&io::Error::other("invalid data")), None);
        assert!(of_program(&Errno::AGAIN.into()).contains("TasksMax"));
    }
}
