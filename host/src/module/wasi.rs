//! The closed WASI: the interfaces that Python, JavaScript and Go expect, without access to the
//! system.
//!
//! Clocks show the time of events and advance by sleeping, randomness is seeded, output goes to the
//! log; there are no files, sockets, arguments or environment. Two instances of one generation that
//! see the same events behave the same.

use std::collections::BTreeMap;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWrite;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceTable};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily};
use wasmtime_wasi::p2::{
    DynPollable, OutputStream, Pollable, StreamError, StreamResult, TcpSocket, UdpSocket, subscribe,
};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx, async_trait};

use super::Identity;
use super::output::{Output, Stream};
use super::sandbox::Host;

/// The version of the interfaces in wasmtime-wasi; the linker serves older 0.2 versions from it.
const VERSION: &str = "0.2.12";
/// How far reading a clock advances it, so that a guest that waits for it to advance will end.
const LOOK: u64 = 1_000;
/// Most resources (streams, pollables) that an instance may hold.
const RESOURCES_MAX: usize = 1_024;
/// Most random bytes in one call.
const RANDOM_BYTES_MAX: u64 = 1 << 20;
/// Most bytes that a guest may write to a stream at once. The deadline of a call is only seen between
/// two writes.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// The closed WASI of one instance.
pub(super) struct Wasi {
    pub(super) context: WasiCtx,
    pub(super) table: ResourceTable,
}

impl Wasi {
    pub(super) fn new(identity: &Identity, clock: &Arc<Clock>, output: &Arc<Output>) -> Self {
        // From the identity alone: a generation that is rebuilt draws the same numbers again. Each
        // purpose has a seed of its own, so that one cannot be told from the other.
        let seed = |purpose: &str| -> [u8; 32] {
            let mut hash = Sha256::new();
            hash.update(purpose);
            hash.update(identity.generation.to_be_bytes());
            hash.update(&identity.deployment);
            hash.finalize().into()
        };
        let hash_seed = seed("hash-seed");
        let hash_seed =
            u128::from_le_bytes(hash_seed[..16].try_into().expect("a digest has 32 bytes"));
        let context = WasiCtx::builder()
            .wall_clock(Reader(Arc::clone(clock)))
            .monotonic_clock(Reader(Arc::clone(clock)))
            .secure_random(StdRng::from_seed(seed("random")))
            .insecure_random(StdRng::from_seed(seed("insecure-random")))
            .insecure_random_seed(hash_seed)
            .max_random_size(RANDOM_BYTES_MAX)
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .stdout(LogStream {
                stream: Stream::Out,
                output: Arc::clone(output),
            })
            .stderr(LogStream {
                stream: Stream::Err,
                output: Arc::clone(output),
            })
            .build();
        let mut table = ResourceTable::new();
        // A guest could otherwise keep the host's memory by making streams and never dropping them.
        table.set_max_capacity(RESOURCES_MAX);
        Self { context, table }
    }
}

/// Defines all WASI 0.2 interfaces that language runtimes import, and closes what wasmtime-wasi
/// leaves open.
pub(super) fn add_to_linker(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_sync(linker)?;
    // The definitions below replace those of wasmtime-wasi.
    linker.allow_shadowing(true);
    // A sleep must not wait: the guest would block its thread, and its clock would not advance.
    let mut clock = linker.instance(&format!("wasi:clocks/monotonic-clock@{VERSION}"))?;
    clock.func_wrap(
        "subscribe-duration",
        |caller: StoreContextMut<'_, Host>, (duration,): (u64,)| {
            sleep(caller, |now| now.saturating_add(duration))
        },
    )?;
    clock.func_wrap(
        "subscribe-instant",
        |caller: StoreContextMut<'_, Host>, (instant,): (u64,)| sleep(caller, |_| instant),
    )?;
    // Sockets could not be connected, but each would cost the host a file descriptor.
    linker
        .instance(&format!("wasi:sockets/tcp-create-socket@{VERSION}"))?
        .func_wrap(
            "create-tcp-socket",
            |_: StoreContextMut<'_, Host>, (_,): (IpAddressFamily,)| {
                Ok((Err::<Resource<TcpSocket>, _>(ErrorCode::AccessDenied),))
            },
        )?;
    linker
        .instance(&format!("wasi:sockets/udp-create-socket@{VERSION}"))?
        .func_wrap(
            "create-udp-socket",
            |_: StoreContextMut<'_, Host>, (_,): (IpAddressFamily,)| {
                Ok((Err::<Resource<UdpSocket>, _>(ErrorCode::AccessDenied),))
            },
        )?;
    linker.allow_shadowing(false);
    Ok(())
}

fn sleep(
    mut caller: StoreContextMut<'_, Host>,
    until: impl FnOnce(u64) -> u64,
) -> wasmtime::Result<(Resource<DynPollable>,)> {
    let host = caller.data_mut();
    // Each sleep costs the host an entry of the table, so it counts like any host call.
    host.count_call()?;
    let clock = Arc::clone(&host.clock);
    let until = until(clock.now());
    let wasi = host
        .wasi
        .as_mut()
        .expect("a component that imports WASI gets it when its store is made");
    let timer = wasi.table.push(Timer { clock, until })?;
    Ok((subscribe(&mut wasi.table, timer)?,))
}

/// The time that a guest sees, in nanoseconds since the Unix epoch. It never goes back, and
/// advances only by events, by sleeping and, very little, by reading it.
#[derive(Debug, Default)]
pub(super) struct Clock {
    now: AtomicU64,
    /// When the timers of the running call of `poll` end, and how many end then.
    timers: Mutex<BTreeMap<u64, u32>>,
}

impl Clock {
    /// Advances to a time, if it is later.
    pub(super) fn advance(&self, to: u64) {
        self.now.fetch_max(to, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.now.fetch_add(LOOK, Ordering::Relaxed)
    }
}

struct Reader(Arc<Clock>);

impl HostWallClock for Reader {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(LOOK)
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.now())
    }
}

impl HostMonotonicClock for Reader {
    fn resolution(&self) -> u64 {
        LOOK
    }

    fn now(&self) -> u64 {
        self.0.now()
    }
}

/// A sleep: it ends at once, and advances the clock.
struct Timer {
    clock: Arc<Clock>,
    until: u64,
}

#[async_trait]
impl Pollable for Timer {
    /// Other ready items come first, then the earliest timer; the others stay unchanged.
    async fn ready(&mut self) {
        // Reading advances it a little, so that a guest that polls in a loop comes to its end.
        if self.clock.now() >= self.until {
            return;
        }
        let _waiting = Waiting::register(&self.clock, self.until);
        // All timers of one `poll` are registered before any of them looks for the earliest.
        yield_once().await;
        let earliest = self.clock.timers.lock().keys().next().copied();
        if earliest.is_some_and(|earliest| earliest < self.until) {
            // Never: `poll` ends with the earliest, and drops this future.
            pending::<()>().await;
        }
        self.clock.advance(self.until);
    }
}

/// A timer that is being waited for; it is removed when the wait ends, also if another timer ended
/// it.
struct Waiting<'a> {
    clock: &'a Clock,
    until: u64,
}

impl<'a> Waiting<'a> {
    fn register(clock: &'a Clock, until: u64) -> Self {
        // Several timers may end at the same time; each counts.
        *clock.timers.lock().entry(until).or_default() += 1;
        Self { clock, until }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut timers = self.clock.timers.lock();
        if let Some(count) = timers.get_mut(&self.until) {
            *count -= 1;
            if *count == 0 {
                timers.remove(&self.until);
            }
        }
    }
}

async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Standard output or standard error: lines of the log.
#[derive(Clone)]
struct LogStream {
    stream: Stream,
    output: Arc<Output>,
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > WRITE_BYTES_MAX {
            return Err(StreamError::trap(&format!(
                "{} bytes were written to a stream at once, {WRITE_BYTES_MAX} are allowed",
                bytes.len()
            )));
        }
        self.output.write_stream(self.stream, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {}
}

impl AsyncWrite for LogStream {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.output.write_stream(self.stream, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
