//! The memory budget of the host, and who uses it.
//!
//! Fixed shares of the budget go to memtables, caches, and batches read ahead. The rest is taken as needed and returned
//! after use: linear memory of instances, writes of running batches, native code. Small requests are granted when large
//! ones are not, so that a greedy module cannot keep its neighbours from applying; and queries never take more than
//! half.

pub mod caches;
pub mod memtables;
pub(crate) mod read_ahead;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Resource, getrlimit};

use crate::api::ProcessInfo;

/// A holder of at most this fraction of the total, and at most this many bytes, may use the reserved part.
const SMALL: (u64, u64) = (32, 8 << 20);
/// Larger holders leave one of this many parts free.
const KEPT_FOR_SMALL: u64 = 4;
/// Small queries leave one of this many parts free, for folds.
const KEPT_FOR_FOLDS: u64 = 8;
/// All queries together, and all native code together, may take one of this many parts.
const PART_OF_ONE_KIND: u64 = 2;
/// The smallest budget, however small the machine.
const TOTAL_MIN: u64 = 32 << 20;

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Applying and migrating: waits for memory if there is none.
    Fold,
    /// A query: is rejected if there is none.
    Query,
    /// Native code of a module, while it is loaded.
    Code,
}

/// Too little memory is left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "host-memory: {wanted} more bytes are needed, and {used} of the {total} for modules are in use; it continues on \
     its own when others end; if this lasts, raise limits.memory_bytes, or ask for less in manifests"
)]
pub struct Shortage {
    wanted: u64,
    used: u64,
    total: u64,
}

/// The memory that is taken as needed. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Memory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    total: u64,
    used: AtomicU64,
    by_queries: AtomicU64,
    by_code: AtomicU64,
}

/// Reserved memory; dropping it releases the memory.
#[derive(Debug)]
pub struct Reservation {
    memory: Memory,
    purpose: Purpose,
    bytes: u64,
}

impl Memory {
    /// A budget of this many bytes.
    pub fn new(total: u64) -> Self {
        let zero = || AtomicU64::new(0);
        Self { inner: Arc::new(Inner { total, used: zero(), by_queries: zero(), by_code: zero() }) }
    }

    /// An unlimited budget.
    pub fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// The total, in bytes.
    pub fn total(&self) -> u64 {
        self.inner.total
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.inner.used.load(Ordering::Relaxed)
    }

    /// The most that one holder can ever get, in bytes.
    pub fn most_of_one(&self) -> u64 {
        self.inner.total - self.inner.total / KEPT_FOR_SMALL
    }

    /// An empty reservation.
    pub fn reservation(&self, purpose: Purpose) -> Reservation {
        Reservation { memory: self.clone(), purpose, bytes: 0 }
    }
}

impl Inner {
    fn of_kind(&self, purpose: Purpose) -> Option<&AtomicU64> {
        match purpose {
            Purpose::Fold => None,
            Purpose::Query => Some(&self.by_queries),
            Purpose::Code => Some(&self.by_code),
        }
    }

    /// The total use up to which one holder may grow to this many bytes.
    fn limit(&self, purpose: Purpose, bytes: u64) -> u64 {
        let (part, most) = SMALL;
        let kept = match purpose {
            _ if bytes > (self.total / part).min(most) => self.total / KEPT_FOR_SMALL,
            Purpose::Query => self.total / KEPT_FOR_FOLDS,
            Purpose::Fold | Purpose::Code => 0,
        };
        self.total - kept
    }
}

/// Adds to a counter, unless it would exceed `most`; returns whether it did.
fn add(counter: &AtomicU64, bytes: u64, most: u64) -> bool {
    let sum = |before: u64| before.checked_add(bytes).filter(|sum| *sum <= most);
    counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, sum).is_ok()
}

impl Reservation {
    /// What it holds, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Grows to this many bytes; changes nothing if there is too little.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), Shortage> {
        let Some(wanted) = bytes.checked_sub(self.bytes).filter(|wanted| *wanted > 0) else { return Ok(()) };
        let inner = &*self.memory.inner;
        let of_kind = inner.of_kind(self.purpose);
        let shortage = || Shortage { wanted, used: self.memory.used(), total: inner.total };
        if !of_kind.is_none_or(|of_kind| add(of_kind, wanted, inner.total / PART_OF_ONE_KIND)) {
            return Err(shortage());
        }
        if !add(&inner.used, wanted, inner.limit(self.purpose, bytes)) {
            if let Some(of_kind) = of_kind {
                of_kind.fetch_sub(wanted, Ordering::AcqRel);
            }
            return Err(shortage());
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Releases everything beyond this many bytes.
    pub fn shrink_to(&mut self, bytes: u64) {
        let Some(rest) = self.bytes.checked_sub(bytes).filter(|rest| *rest > 0) else { return };
        let inner = &*self.memory.inner;
        inner.used.fetch_sub(rest, Ordering::AcqRel);
        if let Some(of_kind) = inner.of_kind(self.purpose) {
            of_kind.fetch_sub(rest, Ordering::AcqRel);
        }
        self.bytes = bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// How the memory of a host is divided, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// All of it.
    pub total: u64,
    /// Memtables of all deployments.
    pub memtables: u64,
    /// Caches of all files.
    pub caches: u64,
    /// Batches read ahead, of all deployments.
    pub read_ahead: u64,
    /// Instances, writes of running batches, native code.
    pub modules: u64,
}

impl Shares {
    /// Divides a total. Explicit settings for memtables and caches are kept.
    pub fn of(total: u64, memtables: Option<u64>, caches: Option<u64>) -> Self {
        let total = total.max(TOTAL_MIN);
        let memtables = memtables.unwrap_or((total / 8).min(512 << 20));
        let caches = caches.unwrap_or((total / 8).min(256 << 20));
        let read_ahead = (total / 8).min(256 << 20);
        let rest = total.saturating_sub(memtables).saturating_sub(caches).saturating_sub(read_ahead);
        // Modules must be able to run even if a cache is set too large.
        Self { total, memtables, caches, read_ahead, modules: rest.max(total / 4) }
    }
}

impl Shares {
    /// The sum of all shares, in bytes: more than the total if a setting is too high.
    pub fn sum(&self) -> u64 {
        let parts = [self.memtables, self.caches, self.read_ahead, self.modules];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

/// The default budget of a host, in bytes: three quarters of what its control group may use, where the rest is for the
/// program itself; or half of the machine's memory, which others use as well.
pub fn default_total() -> u64 {
    let machine = machine_bytes(Path::new("/proc")).unwrap_or(1 << 30);
    match group_bytes(Path::new("/proc"), Path::new("/sys/fs/cgroup")) {
        Some(group) if group < machine => group / 4 * 3,
        _ => machine / 2,
    }
}

/// Limits and usage of this process.
pub fn process(shares: &Shares, modules: Option<&Memory>) -> ProcessInfo {
    ProcessInfo {
        memory_total_bytes: Some(shares.sum()),
        memory_modules_bytes: Some(shares.modules),
        memory_modules_used_bytes: modules.map(Memory::used),
        memory_available_bytes: available_bytes(),
        resident_bytes: modules.and_then(|_| resident_bytes()),
        open_files_max: getrlimit(Resource::Nofile).current,
        address_space_max_bytes: getrlimit(Resource::As).current,
    }
}

/// Returns freed memory that the allocator keeps to the system. Takes milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and locks what it walks by itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn resident_bytes() -> Option<u64> {
    kibibytes(Path::new("/proc/self/status"), "VmRSS:")
}

/// What this process may use: the machine's memory, or less in a control group, in bytes.
pub fn available_bytes() -> Option<u64> {
    let machine = machine_bytes(Path::new("/proc"))?;
    Some(group_bytes(Path::new("/proc"), Path::new("/sys/fs/cgroup")).map_or(machine, |group| group.min(machine)))
}

fn machine_bytes(proc: &Path) -> Option<u64> {
    kibibytes(&proc.join("meminfo"), "MemTotal:")
}

/// A figure from a file of figures in KiB, in bytes.
fn kibibytes(file: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1_024)
}

/// The lowest limit of the control groups of this process, of either version; none if unlimited.
fn group_bytes(proc: &Path, groups: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(proc.join("self/cgroup")).ok()?;
    let limits = text.lines().filter_map(|line| {
        // `HIERARCHY:CONTROLLERS:PATH`; version 2 names no controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        if controllers.is_empty() {
            lowest(groups, path, "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            lowest(&groups.join("memory"), path, "memory.limit_in_bytes")
        } else {
            None
        }
    });
    limits.min()
}

/// The lowest number in files of this name, from a group up to the root. In a container the path may be that outside of
/// it; then only the root exists.
fn lowest(root: &Path, path: &str, file: &str) -> Option<u64> {
    let group: PathBuf = root.join(path.trim_start_matches('/'));
    let folders = group.ancestors().take_while(|folder| folder.starts_with(root));
    let limits = folders.filter_map(|folder| std::fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok());
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_taken_comes_back() {
        let memory = Memory::new(100 * MIB);
        let mut one = memory.reservation(Purpose::Fold);
        one.grow_to(60 * MIB).expect("there is enough");
        one.grow_to(10 * MIB).expect("less is no growth");
        assert_eq!((one.bytes(), memory.used()), (60 * MIB, 60 * MIB));
        one.shrink_to(20 * MIB);
        assert_eq!(memory.used(), 20 * MIB);
        drop(one);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn who_holds_much_leaves_something_to_those_that_hold_little() {
        let memory = Memory::new(100 * MIB);
        let mut greedy = memory.reservation(Purpose::Fold);
        let refused = greedy.grow_to(76 * MIB).expect_err("a quarter is kept");
        assert!(refused.to_string().contains("host-memory"), "{refused}");
        greedy.grow_to(75 * MIB).expect("the rest may be had");
        let mut small: Vec<_> = (0..8).map(|_| memory.reservation(Purpose::Fold)).collect();
        for reservation in &mut small {
            reservation.grow_to(3 * MIB).expect("little is always let in");
        }
        assert!(small[0].grow_to(4 * MIB).is_err(), "it would hold much then");
    }

    #[test]
    fn queries_take_half_at_most_and_leave_the_last_to_folds() {
        let memory = Memory::new(100 * MIB);
        let mut query = memory.reservation(Purpose::Query);
        assert!(query.grow_to(51 * MIB).is_err());
        query.grow_to(50 * MIB).expect("half may be had");
        assert!(memory.reservation(Purpose::Query).grow_to(1).is_err());
        let mut fold = memory.reservation(Purpose::Fold);
        fold.grow_to(25 * MIB).expect("up to the part that is kept");
        let mut small: Vec<_> = (0..8).map(|_| memory.reservation(Purpose::Fold)).collect();
        assert!(small.iter_mut().all(|small| small.grow_to(3 * MIB).is_ok()), "and the rest in small pieces");
        drop((query, fold, small));
        assert_eq!((memory.used(), memory.inner.by_queries.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn shares_of_a_small_host_fit_into_it_and_those_of_a_large_one_are_what_they_were() {
        let small = Shares::of(192 * MIB, None, None);
        assert!(small.memtables + small.caches + small.read_ahead + small.modules <= 192 * MIB, "{small:?}");
        assert!(small.modules >= 96 * MIB, "{small:?}");
        let large = Shares::of(12 << 30, None, None);
        assert_eq!((large.memtables, large.caches), (512 * MIB, 256 * MIB));
        assert_eq!(Shares::of(12 << 30, Some(MIB), Some(2 * MIB)).memtables, MIB);
    }

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("is created");
        std::fs::write(path, text).expect("is written");
    }

    #[test]
    fn the_lowest_limit_of_all_groups_counts_in_both_versions() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (proc, groups) = (folder.path().join("proc"), folder.path().join("cgroup"));
        assert_eq!(group_bytes(&proc, &groups), None, "there are no groups");
        write(&proc, "self/cgroup", "0::/system.slice/foldstream.service\n");
        write(&groups, "system.slice/foldstream.service/memory.max", "max\n");
        assert_eq!(group_bytes(&proc, &groups), None, "none of them limits");
        write(&groups, "system.slice/memory.max", "268435456\n");
        assert_eq!(group_bytes(&proc, &groups), Some(256 * MIB));
        write(&groups, "system.slice/foldstream.service/memory.max", "134217728\n");
        assert_eq!(group_bytes(&proc, &groups), Some(128 * MIB));
        write(&proc, "self/cgroup", "5:cpu:/a\n4:memory,hugetlb:/docker/0123\n");
        write(&groups, "memory/memory.limit_in_bytes", "1048576\n");
        assert_eq!(group_bytes(&proc, &groups), Some(MIB), "in a container only the root is seen");
    }
}
