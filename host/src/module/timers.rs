//! `foldstream:module/timers`: what a handler asks to be called for at a time.
//!
//! Timers are checked here, and change with the writes of the batch, whatever the role of the fold:
//! pending timers are part of the state.

use wasmtime::StoreContextMut;
use wasmtime::component::LinkerInstance;

use super::bindings::TimerRecord;
use super::causes::NoPlace;
use super::outbox::Handling;
use super::sandbox::{Access, Host, Refusal};
use crate::effects;
use crate::state::Writer;
use crate::timers::{self, SETS_PER_EVENT_MAX, Timer};

/// Most timers or names in one host call.
const TIMERS_PER_CALL_MAX: usize = 65_536;

type Caller<'a> = StoreContextMut<'a, Host>;

pub(super) fn add_to(interface: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    interface.func_wrap("set", set)?;
    interface.func_wrap("cancel", cancel)?;
    interface.func_wrap("pending", pending)
}

/// `set`.
fn set(mut caller: Caller<'_>, (cause, records): (u32, Vec<TimerRecord>)) -> wasmtime::Result<()> {
    // Checked first, so that nothing is set by a call that may set nothing.
    let (writer, handling) = begin(&mut caller, records.len())?;
    for record in records {
        let TimerRecord { name, at_ns, key } = record;
        timers::check_name(&name).map_err(refused)?;
        if let Some(key) = &key {
            timers::check_key(key).map_err(refused)?;
        }
        // As of messages: the module's own key, or that of the cause.
        let key = key.or_else(|| handling.causes.key_of(cause));
        let depth = handling.causes.depth_of_next(at_ns);
        // Whether it may fire effects is decided by what set it, not by its firing (see outbox.rs).
        // What sets timers from timer to timer is as old as the event with which it began.
        let root = handling.causes.timer_set_by();
        let event = handling
            .causes
            .sets(cause)
            .map_err(|none| no_place(&none, cause))?;
        let mut headers = effects::continued(event);
        if timers::is_at_once(event.time_ns, at_ns) {
            // Otherwise a loop that passes a timer would always begin a new chain.
            headers.extend(effects::chain(event));
        }
        let timer = Timer {
            at_ns,
            set_by: root.unwrap_or(event.sequence),
            set_at: Some(event.sequence),
            key,
            depth,
            headers,
        };
        writer.set_timer(&name, &timer).map_err(Refusal::from)?;
    }
    Ok(())
}

/// `cancel`.
fn cancel(mut caller: Caller<'_>, (cause, names): (u32, Vec<String>)) -> wasmtime::Result<()> {
    let (writer, handling) = begin(&mut caller, names.len())?;
    // Checked although nothing else needs it: the contract names a cause, and a wrong one is a
    // mistake.
    handling
        .causes
        .exists(cause)
        .map_err(|none| no_place(&none, cause))?;
    for name in names {
        timers::check_name(&name).map_err(refused)?;
        writer.remove_timer(&name).map_err(Refusal::from)?;
    }
    Ok(())
}

/// `pending`.
fn pending(mut caller: Caller<'_>, (name,): (String,)) -> wasmtime::Result<(Option<u64>,)> {
    let (writer, _) = begin(&mut caller, 1)?;
    let timer = writer.timer(&name).map_err(Refusal::from)?;
    Ok((timer.map(|timer| timer.at_ns),))
}

/// The state and the causes of the running call, if timers may be used in it.
fn begin<'a>(
    caller: &'a mut Caller<'_>,
    count: usize,
) -> Result<(&'a mut Writer, &'a mut Handling), Refusal> {
    let host = caller.data_mut();
    host.count_call()?;
    // In addition to the limit per event: it bounds what one list takes of the host's memory.
    if count > TIMERS_PER_CALL_MAX {
        let message =
            format!("{count} timers in one call; pass at most {TIMERS_PER_CALL_MAX} at once");
        return Err(Refusal::Limit {
            limit: "timers-per-call",
            message,
        });
    }
    let (Access::Apply(writer), Some(handling)) = (&mut host.access, &mut host.handling) else {
        return Err(Refusal::NO_TIMERS);
    };
    if !handling.sets_timers {
        return Err(Refusal::Limit {
            limit: "sets-timers",
            message: "it uses timers, and its manifest does not say so; set `sets-timers`"
                .to_owned(),
        });
    }
    Ok((writer, handling))
}

fn refused(refused: timers::Refused) -> Refusal {
    Refusal::Limit {
        limit: refused.limit,
        message: refused.message,
    }
}

fn no_place(none: &NoPlace, cause: u32) -> Refusal {
    match none {
        NoPlace::NoEvent { count } => Refusal::Limit {
            limit: "cause",
            message: format!(
                "a timer names event {cause} of a call with {count} events, counted from 0, as its cause"
            ),
        },
        NoPlace::TooMany { sequence } => Refusal::Limit {
            limit: "timers-per-event",
            message: format!(
                "event {sequence} sets more than {SETS_PER_EVENT_MAX} timers; set fewer, or set a timer that sets more"
            ),
        },
    }
}
