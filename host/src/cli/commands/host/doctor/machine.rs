//! Checks of this machine: clock, disk, memory, limits of the process.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::Check;
use crate::api::{MemoryPart, ProcessInfo};
use crate::cli::support::output::bytes;
use crate::config::Config;
use crate::memory::Memory;
use crate::module;

/// Free space below which a host will soon stop, and below which an operator should act.
const DISK_FREE_FAIL: u64 = 256 << 20;
const DISK_FREE_WARN: u64 = 2 << 30;
/// Each deployment holds a state file and a connection; a watch or a request one socket.
const FILES_FAIL: u64 = 256;
const FILES_WARN: u64 = 4_096;
/// Pooled instances reserve address space, not memory; with less than this the host allocates on
/// demand, slower.
const ADDRESS_SPACE_WARN: u64 = 256 << 30;
/// Smallest difference between clocks worth a warning; the host reports whole seconds.
const SKEW_WARN: Duration = Duration::from_secs(3);
/// How far the wall clock and the monotonic clock may drift apart while the checks run.
const STEP_WARN: Duration = Duration::from_millis(250);
/// A clock before this was never set: 2024-01-01.
const PLAUSIBLE_SINCE: Duration = Duration::from_secs(1_704_067_200);

/// Network file systems, whose locks and fsync are unreliable, and file systems in memory; by their
/// numbers in statfs(2).
const NETWORK_FILE_SYSTEMS: [(u32, &str); 4] = [
    (0x6969, "NFS"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB"),
    (0x6573_5546, "FUSE"),
];
const MEMORY_FILE_SYSTEMS: [(u32, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58F6, "ramfs")];

/// Checks the disk, and the limits of the host's process: those that a running host reports,
/// otherwise those of a host that would be started here.
pub(super) fn checks(config: &Config, process: &ProcessInfo) -> Vec<Check> {
    let mut checks = vec![
        check_disk(&config.data_dir),
        check_file_system(&config.data_dir),
    ];
    checks.push(judge_files(process.open_files_max));
    checks.push(judge_address_space(process.address_space_max_bytes));
    checks.push(check_walls(config));
    checks.extend(judge_memory(process));
    checks
}

/// Starts the process that checks uploads, and lets it try what it should not be able to do.
fn check_walls(config: &Config) -> Check {
    const NAME: &str = "checking process";
    let walls = module::this_program()
        .map_err(|error| error.to_string())
        .and_then(|program| {
            module::walls(&config.module_options(PathBuf::new(), program, &Memory::unlimited()))
                .map_err(|error| error.to_string())
        });
    match walls.map(|walls| walls.gaps()) {
        Ok(gaps) if gaps.is_empty() => Check::ok(
            NAME,
            "the process that checks uploads reaches no files, sockets or other processes",
        ),
        Ok(gaps) => Check::warn(
            NAME,
            format!(
                "the process that checks uploads can reach {}; use a kernel with seccomp and \
                 Landlock, or allow them in the container's profile",
                gaps.join(", ")
            ),
        ),
        Err(error) => Check::fail(NAME, format!("uploads cannot be checked: {error}")),
    }
}

/// The folder itself, or the nearest one above it that exists.
fn existing(folder: &Path) -> PathBuf {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    // A host that was never started has no folder yet; it will be on the disk of this one.
    absolute
        .ancestors()
        .find(|path| path.is_dir())
        .map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

fn check_disk(folder: &Path) -> Check {
    match rustix::fs::statvfs(existing(folder)) {
        // What users without privileges can fill, in units of `f_frsize` (statvfs(3)).
        Ok(found) => judge_disk(folder, found.f_bavail.saturating_mul(found.f_frsize)),
        Err(error) => Check::warn(
            "disk",
            format!(
                "cannot read the free space of {}: {error}",
                folder.display()
            ),
        ),
    }
}

fn judge_disk(folder: &Path, free: u64) -> Check {
    let finding = format!("{} free for {}", bytes(free), folder.display());
    if free < DISK_FREE_FAIL {
        return Check::fail(
            "disk",
            format!("only {finding}; make room, or move data_dir"),
        );
    }
    if free < DISK_FREE_WARN {
        return Check::warn(
            "disk",
            format!("only {finding}; make room before states grow"),
        );
    }
    Check::ok("disk", finding)
}

fn check_file_system(folder: &Path) -> Check {
    let Ok(found) = rustix::fs::statfs(existing(folder)) else {
        return Check::warn(
            "file system",
            format!("cannot read the file system of {}", folder.display()),
        );
    };
    // The number has 32 bits even if it is stored in more.
    judge_file_system(folder, found.f_type as u32)
}

fn judge_file_system(folder: &Path, number: u32) -> Check {
    let find = |list: &[(u32, &'static str)]| {
        list.iter()
            .find(|(known, _)| *known == number)
            .map(|(_, name)| *name)
    };
    let shown = folder.display();
    if let Some(name) = find(&NETWORK_FILE_SYSTEMS) {
        let finding =
            format!("{shown} is on {name}, whose locks and fsync are unreliable; use a local disk");
        return Check::warn("file system", finding);
    }
    if let Some(name) = find(&MEMORY_FILE_SYSTEMS) {
        return Check::warn(
            "file system",
            format!("{shown} is on {name}, which loses it when the machine restarts"),
        );
    }
    Check::ok("file system", format!("{shown} is on a local disk"))
}

fn judge_files(limit: Option<u64>) -> Check {
    let Some(limit) = limit else {
        return Check::ok("open files", "unlimited");
    };
    if limit < FILES_FAIL {
        return Check::fail(
            "open files",
            format!("at most {limit}; raise it: ulimit -n 65536, or LimitNOFILE= in systemd"),
        );
    }
    if limit < FILES_WARN {
        return Check::warn(
            "open files",
            format!(
                "at most {limit}, too few for many deployments and watches; ulimit -n 65536, or \
                 LimitNOFILE="
            ),
        );
    }
    Check::ok("open files", format!("at most {limit}"))
}

fn judge_address_space(limit: Option<u64>) -> Check {
    match limit {
        Some(limit) if limit < ADDRESS_SPACE_WARN => Check::warn(
            "address space",
            format!(
                "limited to {}, which slows down the creation of instances; ulimit -v unlimited",
                bytes(limit)
            ),
        ),
        Some(limit) => Check::ok("address space", bytes(limit)),
        None => Check::ok("address space", "unlimited"),
    }
}

/// None if the host does not report it.
fn judge_memory(process: &ProcessInfo) -> Option<Check> {
    let (total, available) = (process.memory_total_bytes?, process.memory_available_bytes?);
    let mut finding = format!("{} of {} are budgeted", bytes(total), bytes(available));
    if let Some(resident) = process.resident_bytes {
        finding.push_str(&format!(", {} are in use", bytes(resident)));
    }
    // The rest is for the program itself, and for the system's file cache.
    if total > available / 8 * 7 {
        let advice =
            "lower limits.memory_bytes, state.memtable_bytes_total or state.cache_bytes_total";
        return Some(Check::warn(
            "memory",
            format!("{finding}: too much; {advice}"),
        ));
    }
    let refused = process.memory_parts.iter().filter(|part| part.refused > 0);
    let refused: Vec<String> = refused
        .map(|MemoryPart { name, refused, .. }| format!("{refused} to {name}"))
        .collect();
    if refused.is_empty() {
        return Some(Check::ok("memory", finding));
    }
    Some(Check::warn(
        "memory",
        format!(
            "{finding}; since the host started, memory was refused when it was asked for (times: \
             {}); if it happens again, raise limits.memory_bytes, or ask for less in manifests",
            refused.join(", ")
        ),
    ))
}

/// Compares the host's clock with the local one, in whole seconds.
pub(super) fn judge_skew(seconds: i64) -> Check {
    let apart = Duration::from_secs(seconds.unsigned_abs());
    if apart >= SKEW_WARN {
        let way = if seconds > 0 { "ahead of" } else { "behind" };
        let finding = format!(
            "is {} s {way} ours, and lag and retention depend on it; run NTP on both",
            apart.as_secs()
        );
        return Check::warn("clock of the host", finding);
    }
    Check::ok("clock of the host", "agrees with ours")
}

/// Compares wall clock and monotonic clock while the other checks run.
#[derive(Debug)]
pub(super) struct ClockWatch {
    monotonic: Instant,
    wall: SystemTime,
}

impl ClockWatch {
    pub(super) fn begin() -> Self {
        Self {
            monotonic: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    pub(super) fn end(self) -> Check {
        judge_clock(self.monotonic.elapsed(), self.wall, SystemTime::now())
    }
}

fn judge_clock(elapsed: Duration, begun: SystemTime, ended: SystemTime) -> Check {
    // A clock before 1970 is implausible as well.
    let since_epoch = ended
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    if since_epoch < PLAUSIBLE_SINCE {
        return Check::fail(
            "clock",
            "was never set (it shows a year before 2024); run NTP, or set it with `date`",
        );
    }
    let apart = match ended.duration_since(begun) {
        Ok(wall) => wall.abs_diff(elapsed),
        // It was set back, while time passed.
        Err(backwards) => backwards.duration() + elapsed,
    };
    if apart > STEP_WARN {
        let finding = format!(
            "the wall clock jumped by {} ms during the checks; let NTP slew it",
            apart.as_millis()
        );
        return Check::warn("clock", finding);
    }
    Check::ok("clock", "plausible and steady")
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn little_room_is_a_warning_and_hardly_any_a_failure() {
        let folder = Path::new("data");
        assert_eq!(
            judge_disk(folder, 10 << 30),
            Check::ok("disk", "10.0 GiB free for data")
        );
        assert_eq!(judge_disk(folder, 1 << 30).status, Status::Warn);
        assert_eq!(judge_disk(folder, 1 << 20).status, Status::Fail);
    }

    #[test]
    fn folder_that_is_not_there_yet_is_judged_by_the_one_above() {
        assert_eq!(
            existing(Path::new("/tmp/surely/not/there")),
            Path::new("/tmp")
        );
        assert!(existing(Path::new("not-there")).is_absolute());
    }

    #[test]
    fn file_systems_that_lose_data_are_named() {
        let folder = Path::new("data");
        assert_eq!(judge_file_system(folder, 0xEF53).status, Status::Ok);
        let check = judge_file_system(folder, 0x6969);
        assert_eq!(check.status, Status::Warn);
        assert!(check.finding.contains("is on NFS"), "{check:?}");
        assert_eq!(judge_file_system(folder, 0x0102_1994).status, Status::Warn);
    }

    #[test]
    fn limits_of_the_process_are_judged() {
        assert_eq!(judge_files(None).status, Status::Ok);
        assert_eq!(judge_files(Some(65_536)).status, Status::Ok);
        assert_eq!(judge_files(Some(1_024)).status, Status::Warn);
        assert_eq!(judge_files(Some(64)).status, Status::Fail);
        assert_eq!(judge_address_space(None).status, Status::Ok);
        assert_eq!(judge_address_space(Some(8 << 30)).status, Status::Warn);
    }

    #[test]
    fn budgets_beyond_memory_are_a_warning() {
        let process = |available| ProcessInfo {
            memory_total_bytes: Some(1 << 30),
            memory_available_bytes: Some(available),
            resident_bytes: Some(100 << 20),
            ..ProcessInfo::default()
        };
        assert_eq!(
            judge_memory(&process(2 << 30)).map(|check| check.status),
            Some(Status::Ok)
        );
        let check = judge_memory(&process(1 << 30)).expect("it is known");
        assert_eq!(check.status, Status::Warn);
        assert!(
            check
                .finding
                .starts_with("1.0 GiB of 1.0 GiB are budgeted, 100.0 MiB are in use"),
            "{check:?}"
        );
        let part = |refused| MemoryPart {
            name: "queries".to_owned(),
            refused,
            ..MemoryPart::default()
        };
        let with = |refused| ProcessInfo {
            memory_parts: vec![part(refused)],
            ..process(2 << 30)
        };
        assert_eq!(
            judge_memory(&with(0)).map(|check| check.status),
            Some(Status::Ok)
        );
        let check = judge_memory(&with(7)).expect("it is known");
        assert!(
            check.status == Status::Warn && check.finding.contains("7 to queries"),
            "{check:?}"
        );
        assert_eq!(
            judge_memory(&ProcessInfo::default()),
            None,
            "an older host does not say"
        );
    }

    #[test]
    fn clocks_that_jump_or_disagree_are_a_warning() {
        let now = SystemTime::UNIX_EPOCH + PLAUSIBLE_SINCE + Duration::from_secs(1_000);
        let second = Duration::from_secs(1);
        assert_eq!(judge_clock(second, now, now + second).status, Status::Ok);
        assert_eq!(
            judge_clock(second, now, now + 3 * second).status,
            Status::Warn
        );
        assert_eq!(judge_clock(second, now, now - second).status, Status::Warn);
        assert_eq!(
            judge_clock(
                second,
                SystemTime::UNIX_EPOCH,
                SystemTime::UNIX_EPOCH + second
            )
            .status,
            Status::Fail
        );
        assert_eq!(judge_skew(1).status, Status::Ok);
        assert_eq!(
            judge_skew(5).finding,
            "is 5 s ahead of ours, and lag and retention depend on it; run NTP on both"
        );
        assert_eq!(judge_skew(-5).status, Status::Warn);
    }
}
