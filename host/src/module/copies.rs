//! Copies of what a query returns, charged to the host before they are made.
//!
//! The length of an answer is known once the guest has written it, and the guest frees it when the
//! call ends. In between, the lifting of the result is the only place that can charge it, and it
//! has no access to the store. The room is therefore passed through the thread, on which the whole
//! call runs.

use std::cell::RefCell;

use wasmtime::component::__internal::{CanonicalAbiInfo, InstanceType, InterfaceType, LiftContext};
use wasmtime::component::{ComponentType, Lift};

use super::sandbox::Refusal;
use crate::memory::Reservation;

thread_local! {
    static ROOM: RefCell<Option<Room>> = const { RefCell::new(None) };
}

/// Memory for the copies of one call.
pub(super) struct Room {
    memory: Reservation,
    /// Longest copy, in bytes.
    bytes_max: usize,
}

impl Room {
    pub(super) fn new(memory: Reservation, bytes_max: usize) -> Self {
        Self { memory, bytes_max }
    }

    /// Runs a call whose result is charged to this room. The room holds the memory until it is
    /// dropped.
    pub(super) fn charge<T>(self, call: impl FnOnce() -> T) -> (T, Option<Self>) {
        // A call that panicked leaves its room; this one replaces it.
        ROOM.set(Some(self));
        let result = call();
        // Taken, so that no later call on this thread is charged to it.
        (result, ROOM.take())
    }

    fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        if bytes > self.bytes_max {
            let message = format!(
                "the answer has {bytes} bytes, {} are allowed; answer in pages",
                self.bytes_max
            );
            return Err(Refusal::Limit {
                limit: "answer-bytes",
                message,
            });
        }
        // One answer has several copies (its text, its bytes), which are charged together.
        let wanted = self.memory.bytes().saturating_add(bytes as u64);
        Ok(self.memory.grow_to(wanted)?)
    }
}

/// Charges a copy of this length, if the call has a room. A length beyond the guest's memory is
/// left to the lifting, which rejects it.
fn charge(cx: &LiftContext<'_>, bytes: usize) -> wasmtime::Result<()> {
    if bytes > cx.memory().len() {
        return Ok(());
    }
    ROOM.with_borrow_mut(|room| room.as_mut().map_or(Ok(()), |room| room.take(bytes)))?;
    Ok(())
}

/// A copied `string`. In encodings other than UTF-8, which no known guest uses, the length counts
/// units of two bytes.
pub(super) struct CopiedText(pub(super) String);

/// A copied `list<u8>`.
pub(super) struct CopiedBytes(pub(super) Vec<u8>);

macro_rules! lift_charged {
    ($outer:ident => $inner:ty) => {
        // SAFETY: every item forwards to the implementation for the inner type, so the layout and
        // the type check are those of the inner type.
        unsafe impl ComponentType for $outer {
            type Lower = <$inner as ComponentType>::Lower;
            const ABI: CanonicalAbiInfo = <$inner as ComponentType>::ABI;

            fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> wasmtime::Result<()> {
                <$inner as ComponentType>::typecheck(ty, types)
            }
        }

        // SAFETY: the inner implementation lifts, and checks everything that it reads. The length
        // is only compared.
        unsafe impl Lift for $outer {
            fn linear_lift_from_flat(
                cx: &mut LiftContext<'_>,
                ty: InterfaceType,
                source: &Self::Lower,
            ) -> wasmtime::Result<Self> {
                // A pointer and a length.
                charge(cx, source[1].get_u32() as usize)?;
                <$inner as Lift>::linear_lift_from_flat(cx, ty, source).map(Self)
            }

            fn linear_lift_from_memory(
                cx: &mut LiftContext<'_>,
                ty: InterfaceType,
                source: &[u8],
            ) -> wasmtime::Result<Self> {
                // A pointer and a length, each four bytes in little-endian order.
                let length = source
                    .get(4..8)
                    .and_then(|length| length.try_into().ok())
                    .map_or(0, u32::from_le_bytes);
                charge(cx, length as usize)?;
                <$inner as Lift>::linear_lift_from_memory(cx, ty, source).map(Self)
            }
        }
    };
}

lift_charged!(CopiedText => String);
lift_charged!(CopiedBytes => Vec<u8>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Memory, Purpose};

    #[test]
    fn copies_of_one_call_add_up_and_are_released_with_their_room() {
        let memory = Memory::new(64 << 20);
        let room = Room::new(memory.reservation(Purpose::Query), 8 << 20);
        let take =
            |bytes| ROOM.with_borrow_mut(|room| room.as_mut().expect("it is set").take(bytes));
        let (results, room) = room.charge(|| [take(5 << 20), take(4 << 20), take(9 << 20)]);
        assert!(results[0].is_ok() && results[1].is_ok());
        assert!(
            matches!(
                results[2],
                Err(Refusal::Limit {
                    limit: "answer-bytes",
                    ..
                })
            ),
            "{results:?}"
        );
        assert_eq!(memory.used(), 9 << 20);
        drop(room);
        assert_eq!(memory.used(), 0);
        assert!(
            ROOM.take().is_none(),
            "a later call has no room of this one"
        );
    }
}
