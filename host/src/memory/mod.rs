//! The memory budget of the host, and who uses it.
//!
//! Fixed shares of the budget go to memtables, caches, and batches read ahead. The rest is taken as
//! needed and returned after use: linear memory of instances, writes of running batches, buffers of
//! host calls, native code, bodies of requests and answers, data that watches have not read yet.
//! Small requests are granted when large ones are not, so that a greedy module cannot keep its
//! neighbours from applying; and no kind except folds gets more than its part.

#[cfg(target_os = "linux")]
mod allocator;
pub mod caches;
mod freed;
pub mod memtables;
pub(crate) mod read_ahead;
mod releases;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use tokio::sync::watch;

use self::freed::Freed;
pub(crate) use self::releases::Releases;

/// A holder of at most this fraction of the total, and at most this many bytes, may use the
/// reserved part.
const SMALL: (u64, u64) = (32, 8 << 20);
/// Larger holders leave one of this many parts free.
const KEPT_FOR_SMALL: u64 = 4;
/// Small queries, requests, watches and connections leave one of this many parts free, for folds.
const KEPT_FOR_FOLDS: u64 = 8;
/// Folds and code leave one of this many parts, and at most this many bytes, to connections, and the
/// same to requests: an operator and a probe of health must always get an answer.
const KEPT_FOR_ANSWERS: (u64, u64) = (64, 1 << 20);
/// All queries together, all native code together, and all requests together may take one of this
/// many parts.
const PART_OF_ONE_KIND: u64 = 2;
/// The same for watches, which stay longer, and for connections.
const PART_OF_WATCHES: u64 = 4;
/// Most memory for requests, in bytes: clients that read nothing should not fill a large machine.
const REQUESTS_MAX: u64 = 512 << 20;
/// Most memory for connections, in bytes: those that the server allows, each with a buffer of more
/// than the usual size.
const CONNECTIONS_MAX: u64 = 128 << 20;
/// The smallest budget, however small the machine.
const TOTAL_MIN: u64 = 32 << 20;

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Applying and migrating: waits for memory if there is none.
    Fold,
    /// A query: is rejected if there is none.
    Query,
    /// Native code of a module, while it is loaded: its deployment waits.
    Code,
    /// The body of a request until it is processed, or of an answer until it is sent: the client is
    /// asked to retry.
    Request,
    /// Events that watches have not read yet, and keys that changed recently: a watch ends, or
    /// starts again with a reset.
    Watch,
    /// Buffers of connections: idle connections are closed, the longest idle ones first.
    Connection,
}

impl Purpose {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Fold,
        Self::Query,
        Self::Code,
        Self::Request,
        Self::Watch,
        Self::Connection,
    ];

    /// Its name in metrics and in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fold => "folds",
            Self::Query => "queries",
            Self::Code => "code",
            Self::Request => "requests",
            Self::Watch => "watches",
            Self::Connection => "connections",
        }
    }
}

/// Too little memory is left.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "host-memory: {wanted} more bytes are needed for {}, and {used} of the {} that are \
     allocated on demand are in use; it continues on its own when others end; if this lasts, raise \
     limits.memory_bytes, or ask for less in manifests",
    purpose.name(),
    memory.total()
)]
pub struct Shortage {
    memory: Memory,
    purpose: Purpose,
    /// What the holder would have had.
    bytes: u64,
    /// The part of it that was missing.
    wanted: u64,
    used: u64,
}

impl Shortage {
    /// Whether the holder could have the memory by now, if it has released what it had.
    pub(crate) fn is_over(&self) -> bool {
        self.memory.inner.has(self.purpose, self.bytes, self.bytes)
    }

    /// Waits until the holder can have the memory. Cancel-safe: it only observes.
    pub(crate) async fn over(&self) {
        let inner = &self.memory.inner;
        let is_over = || {
            let is_over = self.is_over();
            if !is_over && self.purpose == Purpose::Fold {
                // Each time: who took what was released may be idle by now.
                self.memory.want();
            }
            is_over
        };
        inner.releases.until(is_over).await;
    }
}

/// The memory that is taken as needed. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Memory {
    inner: Arc<Counters>,
}

#[derive(Debug)]
struct Counters {
    total: u64,
    /// This and the counters of the purposes are sums and nothing else: no other memory is read on
    /// the strength of them, so each only has to stay within its own limit.
    used: AtomicU64,
    /// Of each purpose, in the order of [`Purpose::ALL`].
    kinds: [Kind; Purpose::ALL.len()],
    /// Released by the purposes that take their memory from the allocator.
    freed: Freed,
    releases: Releases,
    /// Changes whenever a fold or query lacks memory, or a place: idle folds then release theirs.
    wanted: watch::Sender<()>,
}

/// Usage of one purpose.
#[derive(Debug, Default)]
struct Kind {
    used: AtomicU64,
    /// How often memory was refused to it.
    refused: AtomicU64,
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
        Self {
            inner: Arc::new(Counters {
                total,
                used: AtomicU64::new(0),
                kinds: Default::default(),
                freed: Freed::default(),
                releases: Releases::default(),
                wanted: watch::Sender::default(),
            }),
        }
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

    /// Bytes in use for a purpose.
    pub fn used_for(&self, purpose: Purpose) -> u64 {
        self.inner.used_for(purpose)
    }

    /// The most that a purpose may take, in bytes; less while the others leave less.
    pub fn most_for(&self, purpose: Purpose) -> u64 {
        self.inner.most_for(purpose)
    }

    /// How often memory was refused to a purpose.
    pub fn refused_for(&self, purpose: Purpose) -> u64 {
        self.inner.kind(purpose).refused.load(Ordering::Relaxed)
    }

    /// Whether much was freed that the allocator keeps, and next to nothing more is.
    pub fn has_calmed_down(&self) -> bool {
        self.inner.freed.has_calmed_down()
    }

    /// The most that one holder can ever get, in bytes.
    pub fn most_of_one(&self) -> u64 {
        self.inner.total - self.inner.total / KEPT_FOR_SMALL
    }

    /// Asks idle folds to release their instances.
    pub(crate) fn want(&self) {
        self.inner.wanted.send_replace(());
    }

    /// Changes whenever idle folds are asked to release their instances.
    pub(crate) fn wanted(&self) -> watch::Receiver<()> {
        self.inner.wanted.subscribe()
    }

    /// An empty reservation.
    pub fn reservation(&self, purpose: Purpose) -> Reservation {
        Reservation {
            memory: self.clone(),
            purpose,
            bytes: 0,
        }
    }
}

impl Counters {
    fn kind(&self, purpose: Purpose) -> &Kind {
        &self.kinds[purpose as usize]
    }

    /// How much a purpose may take in all.
    fn most_for(&self, purpose: Purpose) -> u64 {
        match purpose {
            Purpose::Fold => self.total,
            Purpose::Query | Purpose::Code => self.total / PART_OF_ONE_KIND,
            Purpose::Request => (self.total / PART_OF_ONE_KIND).min(REQUESTS_MAX),
            // They stay for as long as a client wants, so they get less than what ends by itself.
            Purpose::Watch => self.total / PART_OF_WATCHES,
            Purpose::Connection => (self.total / PART_OF_WATCHES).min(CONNECTIONS_MAX),
        }
    }

    /// Whether a holder of this many bytes is a large one.
    fn is_large(&self, bytes: u64) -> bool {
        let (part, most) = SMALL;
        bytes > (self.total / part).min(most)
    }

    /// The use for a purpose up to which one holder may grow to this many bytes.
    fn limit_of_kind(&self, purpose: Purpose, bytes: u64) -> u64 {
        let most = self.most_for(purpose);
        // Large answers that nobody reads must not keep small ones from being sent.
        if purpose == Purpose::Request && self.is_large(bytes) {
            most - most / KEPT_FOR_SMALL
        } else {
            most
        }
    }

    /// The total use up to which one holder may grow to this many bytes.
    fn limit(&self, purpose: Purpose, bytes: u64) -> u64 {
        self.limit_at(purpose, bytes, self.used_for(purpose))
    }

    /// The same once this much is in use for the purpose.
    fn limit_at(&self, purpose: Purpose, bytes: u64, used_for_purpose: u64) -> u64 {
        let for_answers = self.kept_for_answers();
        let kept = match purpose {
            // Large is large, whatever it is for: a greedy module must leave something for small
            // batches.
            _ if self.is_large(bytes) => self.total / KEPT_FOR_SMALL,
            // What is kept for them, whatever others have taken.
            Purpose::Request | Purpose::Connection if used_for_purpose <= for_answers => 0,
            Purpose::Query | Purpose::Request | Purpose::Watch | Purpose::Connection => {
                self.total / KEPT_FOR_FOLDS
            }
            Purpose::Fold | Purpose::Code => 2 * for_answers,
        };
        self.total - kept
    }

    /// How much is kept for connections, and the same again for requests, in bytes.
    fn kept_for_answers(&self) -> u64 {
        let (part, most) = KEPT_FOR_ANSWERS;
        (self.total / part).min(most)
    }

    fn used_for(&self, purpose: Purpose) -> u64 {
        self.kind(purpose).used.load(Ordering::Relaxed)
    }

    /// Whether there are bytes for a holder that has this many with them.
    fn has(&self, purpose: Purpose, wanted: u64, bytes: u64) -> bool {
        let fits = |used: u64, most: u64| used.checked_add(wanted).is_some_and(|sum| sum <= most);
        let used_for = self.used_for(purpose);
        let limit = self.limit_at(purpose, bytes, used_for.saturating_add(wanted));
        fits(used_for, self.limit_of_kind(purpose, bytes))
            && fits(self.used.load(Ordering::Acquire), limit)
    }

    /// Takes bytes for a holder that has this many with them; returns whether there were enough.
    fn take(&self, purpose: Purpose, wanted: u64, bytes: u64) -> bool {
        // Asked first, so that a refusal adds nothing that others would see for a moment.
        if !self.has(purpose, wanted, bytes) {
            return false;
        }
        let kind = self.kind(purpose);
        // First its own limit, then that of all, which depends on its own use, with this.
        if !add(&kind.used, wanted, self.limit_of_kind(purpose, bytes)) {
            return false;
        }
        if !add(&self.used, wanted, self.limit(purpose, bytes)) {
            // Another holder was faster: give back what nobody got. Somebody may have been refused
            // because of it, and waits.
            kind.used.fetch_sub(wanted, Ordering::AcqRel);
            self.releases.announce();
            return false;
        }
        true
    }
}

/// Adds to a counter, unless it would exceed `most`; returns whether it did.
fn add(counter: &AtomicU64, bytes: u64, most: u64) -> bool {
    let sum = |before: u64| before.checked_add(bytes).filter(|sum| *sum <= most);
    counter
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, sum)
        .is_ok()
}

impl Reservation {
    /// An empty reservation of the same budget and for the same purpose.
    pub fn another(&self) -> Self {
        self.memory.reservation(self.purpose)
    }

    /// The most that it can ever hold, in bytes.
    pub fn most(&self) -> u64 {
        let inner = &*self.memory.inner;
        inner
            .limit_of_kind(self.purpose, u64::MAX)
            .min(inner.limit(self.purpose, u64::MAX))
    }

    /// The budget that it is part of.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// What it holds, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Grows to this many bytes; changes nothing if there is too little.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), Shortage> {
        if self.try_grow_to(bytes) {
            return Ok(());
        }
        // Counted where it is reported: callers that try again in a loop do not report.
        let inner = &*self.memory.inner;
        inner
            .kind(self.purpose)
            .refused
            .fetch_add(1, Ordering::Relaxed);
        Err(Shortage {
            memory: self.memory.clone(),
            purpose: self.purpose,
            bytes,
            wanted: bytes.saturating_sub(self.bytes),
            used: self.memory.used(),
        })
    }

    /// The same, but waits at most this long for it. Cancel-safe: it keeps what it has.
    pub(crate) async fn grow_within(
        &mut self,
        at_most: Duration,
        bytes: u64,
    ) -> Result<(), Shortage> {
        let memory = self.memory.clone();
        let grown = memory.inner.releases.until(|| self.try_grow_to(bytes));
        // The last look is the one that counts, and gives the reason.
        if tokio::time::timeout(at_most, grown).await.is_ok() {
            return Ok(());
        }
        self.grow_to(bytes)
    }

    /// The same for a caller that has another way, or waits: a failure does not count as refused.
    /// Returns whether it grew.
    pub fn try_grow_to(&mut self, bytes: u64) -> bool {
        let wanted = bytes.saturating_sub(self.bytes);
        if wanted > 0 && !self.memory.inner.take(self.purpose, wanted, bytes) {
            return false;
        }
        self.bytes = self.bytes.max(bytes);
        true
    }

    /// Releases everything beyond this many bytes.
    pub fn shrink_to(&mut self, bytes: u64) {
        let Some(rest) = self.bytes.checked_sub(bytes).filter(|rest| *rest > 0) else {
            return;
        };
        let inner = &*self.memory.inner;
        inner.used.fetch_sub(rest, Ordering::AcqRel);
        inner
            .kind(self.purpose)
            .used
            .fetch_sub(rest, Ordering::AcqRel);
        inner.releases.announce();
        // Linear memory and native code go back to the system at once.
        if matches!(
            self.purpose,
            Purpose::Query | Purpose::Request | Purpose::Watch | Purpose::Connection
        ) {
            inner.freed.add(rest);
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
    /// Memory on demand: for instances, running batches, native code, requests, watches and
    /// connections.
    pub modules: u64,
}

impl Shares {
    /// Divides a total. Explicit settings for memtables and caches are kept.
    pub fn of(total: u64, memtables: Option<u64>, caches: Option<u64>) -> Self {
        let total = total.max(TOTAL_MIN);
        // An eighth each, so that more than half is left for modules.
        let memtables = memtables.unwrap_or((total / 8).min(512 << 20));
        let caches = caches.unwrap_or((total / 8).min(256 << 20));
        let read_ahead = (total / 8).min(256 << 20);
        let rest = total
            .saturating_sub(memtables)
            .saturating_sub(caches)
            .saturating_sub(read_ahead);
        // Modules must be able to run even if a cache is set too large.
        Self {
            total,
            memtables,
            caches,
            read_ahead,
            modules: rest.max(total / 4),
        }
    }
}

impl Shares {
    /// The sum of all shares, in bytes: more than the total if a setting is too high.
    pub fn sum(&self) -> u64 {
        let parts = [self.memtables, self.caches, self.read_ahead, self.modules];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

/// The default budget of a host, in bytes: three quarters of what its control group may use, which
/// leaves the rest to the program itself; or half of the machine's memory, which others use as
/// well.
pub fn default_total() -> u64 {
    let machine = machine_bytes(Path::new("/proc")).unwrap_or(1 << 30);
    match group_bytes(Path::new("/proc"), Path::new("/sys/fs/cgroup")) {
        // A group that may use as much as the machine is no limit.
        Some(group) if group < machine => group / 4 * 3,
        _ => machine / 2,
    }
}

/// Limits and usage of this process, as far as they are known. What is unlimited or unknown is
/// none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessUsage {
    /// Memory budget of the host (`limits.memory_bytes`), in bytes.
    pub memory_total_bytes: Option<u64>,
    /// The part of it that is allocated on demand, in bytes.
    pub memory_modules_bytes: Option<u64>,
    /// How much of that is in use, in bytes.
    pub memory_modules_used_bytes: Option<u64>,
    /// Usage of each part of the budget; empty if no host runs.
    pub memory_parts: Vec<PartUsage>,
    /// Memory that the process may use: its control group's limit, or the whole machine, in bytes.
    pub memory_available_bytes: Option<u64>,
    /// Memory in use by the process, in bytes.
    pub resident_bytes: Option<u64>,
    /// Most open files.
    pub open_files_max: Option<u64>,
    /// Most address space, in bytes.
    pub address_space_max_bytes: Option<u64>,
}

/// Usage of a part of the budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartUsage {
    /// `memtables`, `read-ahead` or `caches`, or the name of a [`Purpose`].
    pub name: &'static str,
    /// What it takes now, in bytes; none if that is not known.
    pub used_bytes: Option<u64>,
    /// The most that it may take, in bytes.
    pub limit_bytes: u64,
    /// How often more was refused since the host started.
    pub refused: u64,
}

/// Limits and usage of this process; `parts` is the usage of a running host's budget.
pub fn process(shares: &Shares, modules: Option<&Memory>, parts: Vec<PartUsage>) -> ProcessUsage {
    ProcessUsage {
        memory_total_bytes: Some(shares.sum()),
        memory_modules_bytes: Some(shares.modules),
        memory_modules_used_bytes: modules.map(Memory::used),
        memory_parts: parts,
        memory_available_bytes: available_bytes(),
        resident_bytes: modules.and_then(|_| resident_bytes()),
        open_files_max: getrlimit(Resource::Nofile).current,
        address_space_max_bytes: getrlimit(Resource::As).current,
    }
}

/// Usage of each part of the budget: the fixed shares, and the purposes that allocate on demand.
pub fn parts(
    shares: &Shares,
    memory: &Memory,
    (memtables, read_ahead): (u64, u64),
) -> Vec<PartUsage> {
    let fixed = |name, used_bytes, limit_bytes| PartUsage {
        name,
        used_bytes,
        limit_bytes,
        refused: 0,
    };
    let mut parts = vec![
        fixed("memtables", Some(memtables), shares.memtables),
        fixed("read-ahead", Some(read_ahead), shares.read_ahead),
        // Nobody knows how full they are.
        fixed("caches", None, shares.caches),
    ];
    parts.extend(Purpose::ALL.map(|purpose| PartUsage {
        name: purpose.name(),
        used_bytes: Some(memory.used_for(purpose)),
        limit_bytes: memory.most_for(purpose),
        refused: memory.refused_for(purpose),
    }));
    parts
}

/// Keeps the C library from reserving 64 MiB of addresses for each thread, although it allocates only
/// some bytes there: with little address space, that leaves none for modules. Before other threads
/// start.
pub fn save_addresses() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer, and no other thread allocates yet.
    unsafe {
        // One arena; on Linux this program's own allocations are jemalloc's anyway.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns freed memory that the allocator keeps to the system. Takes milliseconds.
pub(crate) fn give_back() {
    #[cfg(target_os = "linux")]
    allocator::give_back();
}

fn resident_bytes() -> Option<u64> {
    kibibytes(Path::new("/proc/self/status"), "VmRSS:")
}

/// What this process may use: the machine's memory, or less in a control group, in bytes.
pub fn available_bytes() -> Option<u64> {
    let machine = machine_bytes(Path::new("/proc"))?;
    Some(
        // A group's limit above the machine's memory limits nothing.
        group_bytes(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
            .map_or(machine, |group| group.min(machine)),
    )
}

fn machine_bytes(proc: &Path) -> Option<u64> {
    kibibytes(&proc.join("meminfo"), "MemTotal:")
}

/// A figure from a file of figures in KiB, in bytes.
fn kibibytes(file: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace()
        .nth(1)?
        .parse::<u64>()
        .ok()?
        .checked_mul(1_024)
}

/// The lowest limit of the control groups of this process, of either version; none if unlimited.
fn group_bytes(proc: &Path, groups: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(proc.join("self/cgroup")).ok()?;
    let limits = text.lines().filter_map(|line| {
        // `HIERARCHY:CONTROLLERS:PATH`; version 2 names no controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        // Version 2 has one hierarchy with all controllers; hosts may have both versions mounted.
        if controllers.is_empty() {
            lowest(groups, path, "memory.max")
        } else if controllers
            .split(',')
            .any(|controller| controller == "memory")
        {
            lowest(&groups.join("memory"), path, "memory.limit_in_bytes")
        } else {
            None
        }
    });
    limits.min()
}

/// The lowest number in files of this name, from a group up to the root. In a container the path
/// may be that outside of it; then only the root exists.
fn lowest(root: &Path, path: &str, file: &str) -> Option<u64> {
    let group: PathBuf = root.join(path.trim_start_matches('/'));
    let folders = group
        .ancestors()
        .take_while(|folder| folder.starts_with(root));
    // `max`, and the huge number of version 1, count as none and as more than any machine.
    let limits = folders.filter_map(|folder| {
        std::fs::read_to_string(folder.join(file))
            .ok()?
            .trim()
            .parse()
            .ok()
    });
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
        let mut small: Vec<_> = (0..7).map(|_| memory.reservation(Purpose::Fold)).collect();
        for reservation in &mut small {
            reservation
                .grow_to(3 * MIB)
                .expect("little is always let in");
        }
        assert!(
            small[0].grow_to(4 * MIB).is_err(),
            "it would hold much then"
        );
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
        let mut small: Vec<_> = (0..7).map(|_| memory.reservation(Purpose::Fold)).collect();
        assert!(
            small.iter_mut().all(|small| small.grow_to(3 * MIB).is_ok()),
            "and the rest in small pieces"
        );
        drop((query, fold, small));
        assert_eq!((memory.used(), memory.used_for(Purpose::Query)), (0, 0));
    }

    #[test]
    fn what_others_than_folds_take_has_a_limit_of_its_own_and_refusals_are_counted() {
        let memory = Memory::new(800 * MIB);
        let fill = |purpose| {
            let mut taken: Vec<Reservation> = Vec::new();
            loop {
                let mut next = memory.reservation(purpose);
                if next.grow_to(MIB).is_err() {
                    return taken;
                }
                taken.push(next);
            }
        };
        let watches = fill(Purpose::Watch);
        assert_eq!(
            (watches.len(), memory.refused_for(Purpose::Watch)),
            (200, 1)
        );
        let requests = fill(Purpose::Request);
        assert_eq!(
            (requests.len(), memory.used_for(Purpose::Request)),
            (400, 400 * MIB)
        );
        let queries = fill(Purpose::Query);
        assert_eq!(queries.len(), 100, "an eighth is kept for folds");
        let folds = fill(Purpose::Fold);
        assert_eq!((folds.len(), memory.used()), (98, 798 * MIB));
        let connections = fill(Purpose::Connection);
        assert_eq!(connections.len(), 1, "what is kept for them");
        drop((watches, requests, queries, folds, connections));
        let left: u64 = Purpose::ALL
            .iter()
            .map(|purpose| memory.used_for(*purpose))
            .sum();
        assert_eq!((left, memory.used()), (0, 0));
    }

    #[test]
    fn however_much_folds_and_code_take_clients_get_a_connection_and_an_answer() {
        for purpose in [Purpose::Fold, Purpose::Code] {
            let memory = Memory::new(64 * MIB);
            let mut others = memory.reservation(Purpose::Fold);
            others.grow_to(48 * MIB).expect("three quarters may be had");
            let mut taken: Vec<Reservation> = Vec::new();
            loop {
                let mut next = memory.reservation(purpose);
                if next.grow_to(MIB).is_err() {
                    break;
                }
                taken.push(next);
            }
            assert_eq!(memory.used(), 62 * MIB, "{purpose:?}");
            for answering in [Purpose::Connection, Purpose::Request] {
                let mut held: Vec<_> = (0..64).map(|_| memory.reservation(answering)).collect();
                for reservation in &mut held {
                    reservation.grow_to(16 << 10).expect("it is kept for them");
                }
                assert!(memory.reservation(answering).grow_to(16 << 10).is_err());
                assert!(memory.reservation(Purpose::Query).grow_to(1).is_err());
            }
        }
    }

    #[test]
    fn shares_of_a_small_host_fit_into_it_and_those_of_a_large_one_are_what_they_were() {
        let small = Shares::of(192 * MIB, None, None);
        assert!(
            small.memtables + small.caches + small.read_ahead + small.modules <= 192 * MIB,
            "{small:?}"
        );
        assert!(small.modules >= 96 * MIB, "{small:?}");
        let large = Shares::of(12 << 30, None, None);
        assert_eq!((large.memtables, large.caches), (512 * MIB, 256 * MIB));
        assert_eq!(
            Shares::of(12 << 30, Some(MIB), Some(2 * MIB)).memtables,
            MIB
        );
    }

    #[test]
    fn no_release_is_missed_by_those_who_wait_for_memory() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let memory = Memory::new(100 * MIB);
        // Again and again, because a release may come before, during or after the first look.
        for _ in 0..500 {
            let mut held = memory.reservation(Purpose::Fold);
            held.grow_to(75 * MIB).expect("all that one may have");
            let mut waiting = memory.reservation(Purpose::Fold);
            let shortage = waiting.grow_to(75 * MIB).expect_err("it is taken");
            let begun = std::time::Instant::now();
            let releasing = std::thread::spawn(move || drop(held));
            runtime.block_on(async {
                tokio::time::timeout(Duration::from_secs(20), shortage.over())
                    .await
                    .expect("the release is announced");
                let grown = waiting.grow_within(Duration::from_secs(20), 75 * MIB);
                grown.await.expect("it was released");
            });
            assert!(begun.elapsed() < Duration::from_secs(20));
            releasing.join().expect("no panic");
        }
    }

    #[test]
    fn idle_folds_are_asked_again_while_another_waits_for_memory() {
        let memory = Memory::new(100 * MIB);
        let [mut first, mut second] = [(), ()].map(|()| memory.reservation(Purpose::Fold));
        first.grow_to(75 * MIB).expect("all that one may have");
        let shortage = memory
            .reservation(Purpose::Fold)
            .grow_to(75 * MIB)
            .expect_err("it is taken");
        let mut waiting = std::pin::pin!(shortage.over());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        // Another one is faster. It looks for requests from before it took anything.
        let wanted = memory.wanted();
        first.shrink_to(0);
        second.grow_to(75 * MIB).expect("it was released");
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        assert!(wanted.has_changed().expect("the budget is there"));
        drop(second);
        assert!(waiting.as_mut().poll(&mut context).is_ready());
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
        write(
            &proc,
            "self/cgroup",
            "0::/system.slice/foldstream.service\n",
        );
        write(
            &groups,
            "system.slice/foldstream.service/memory.max",
            "max\n",
        );
        assert_eq!(group_bytes(&proc, &groups), None, "none of them limits");
        write(&groups, "system.slice/memory.max", "268435456\n");
        assert_eq!(group_bytes(&proc, &groups), Some(256 * MIB));
        write(
            &groups,
            "system.slice/foldstream.service/memory.max",
            "134217728\n",
        );
        assert_eq!(group_bytes(&proc, &groups), Some(128 * MIB));
        write(
            &proc,
            "self/cgroup",
            "5:cpu:/a\n4:memory,hugetlb:/docker/0123\n",
        );
        write(&groups, "memory/memory.limit_in_bytes", "1048576\n");
        assert_eq!(
            group_bytes(&proc, &groups),
            Some(MIB),
            "in a container only the root is seen"
        );
    }
}
