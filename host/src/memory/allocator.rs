//! The allocator: jemalloc, because folds allocate on one thread what another one frees, and because
//! it gives memory back that nobody uses.

use std::ffi::c_char;
use std::ptr;

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Freed pages go back to the system after about a second of further allocations; by default jemalloc
/// keeps them for ten. Each thread keeps fewer and smaller pieces for itself than by default, because
/// each deployment has a thread: an idle one takes 0.1 MiB less, and folding no more processor time.
const OPTIONS: &[u8] =
    b"dirty_decay_ms:1000,muzzy_decay_ms:0,tcache_nslots_small_max:20,tcache_max:4096\0";

/// Where jemalloc looks for its options: <https://jemalloc.net/jemalloc.3.html#tuning>.
// SAFETY: jemalloc declares the symbol as a pointer to a text that ends with a zero, as this is.
#[unsafe(export_name = "_rjem_malloc_conf")]
#[used]
static MALLOC_CONF: Option<&'static c_char> = Some(
    // SAFETY: `OPTIONS` is static, and `c_char` has the layout of `u8`.
    unsafe { &*OPTIONS.as_ptr().cast::<c_char>() },
);

/// All arenas, as `MALLCTL_ARENAS_ALL` in jemalloc's header.
const PURGE_ALL: &[u8] = b"arena.4096.purge\0";

/// Returns freed memory that the allocator keeps to the system. Takes milliseconds.
pub(super) fn give_back() {
    // SAFETY: the name ends with a zero; the operation has neither an old nor a new value.
    let code = unsafe {
        tikv_jemalloc_sys::mallctl(
            PURGE_ALL.as_ptr().cast(),
            ptr::null_mut(),
            ptr::null_mut(),
            ptr::null_mut(),
            0,
        )
    };
    debug_assert_eq!(code, 0, "jemalloc knows the operation");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(name: &[u8]) -> isize {
        let mut value = 0_isize;
        let mut length = size_of_val(&value);
        // SAFETY: the name ends with a zero, and the value is as long as `length` says.
        let code = unsafe {
            tikv_jemalloc_sys::mallctl(
                name.as_ptr().cast(),
                (&raw mut value).cast(),
                &raw mut length,
                ptr::null_mut(),
                0,
            )
        };
        assert_eq!(code, 0, "the option exists");
        value
    }

    #[test]
    fn jemalloc_has_our_options() {
        assert_eq!(option(b"opt.dirty_decay_ms\0"), 1_000);
        assert_eq!(option(b"opt.muzzy_decay_ms\0"), 0);
        give_back();
    }
}
