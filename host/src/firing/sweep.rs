//! Passing over the pending timers by time, in parts.
//!
//! One part is enough unless thousands of timers are in loops. They stay pending while they wait
//! for their turns, often before all others, and must not hide timers that are in no loop.

use std::hash::{BuildHasher, RandomState};

use crate::state::Due;

/// Most timers of loops in a part.
pub(super) const LOOPS_MAX: usize = 10_000;

/// Pending timers without a gap, in the order of their times.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) timers: Vec<Due>,
    /// The last timer before it; none if it is the first part.
    after: Option<Due>,
    /// Whether another part follows.
    pub(super) is_cut: bool,
}

impl Part {
    pub(super) fn new(timers: Vec<Due>, after: Option<Due>, loop_depth: u32) -> Self {
        let looping = timers.iter().filter(|due| due.depth >= loop_depth);
        let is_cut = looping.count() >= LOOPS_MAX;
        Self {
            timers,
            after,
            is_cut,
        }
    }

    /// Whether a timer would be in this part if it were pending.
    pub(super) fn covers(&self, due: &Due) -> bool {
        let is_after = self.after.as_ref().is_none_or(|after| due > after);
        is_after && (!self.is_cut || self.timers.last().is_some_and(|last| due <= last))
    }

    pub(super) fn has(&self, due: &Due) -> bool {
        self.timers.binary_search(due).is_ok()
    }
}

/// What the parts so far have shown.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// The last timer of them.
    pub(super) after: Option<Due>,
    /// When the first timer is due that is not parked.
    pub(super) next_ns: Option<u64>,
    /// The timer of the longest row.
    pub(super) longest: Option<Due>,
    /// The timer of a loop whose turn is next, how often it was tried, and how far its turn is.
    turn: Option<(Due, u32, u64)>,
}

impl Sweep {
    pub(super) fn see(&mut self, part: &Part, is_parked: impl Fn(&Due) -> bool) {
        if self.next_ns.is_none() {
            let next = part.timers.iter().find(|due| !is_parked(due));
            self.next_ns = next.map(|due| due.at_ns);
        }
        for due in &part.timers {
            let is_longer = |longest: &Due| due.depth > longest.depth;
            if self.longest.as_ref().is_none_or(is_longer) && !is_parked(due) {
                self.longest = Some(due.clone());
            }
        }
    }

    /// Whether a timer of a loop waits for its turn.
    pub(super) fn has_turn(&self) -> bool {
        self.turn.is_some()
    }
}

/// Whose turn it is among the timers of loops.
///
/// Neither times nor names give each its turn: a timer may be set for the same past time again and
/// again, and each of a loop may have a new name that comes before those of others. So turns pass
/// over the hashes of the names, which no module knows, from the smallest to the largest and from
/// the start again.
#[derive(Debug, Default)]
pub(super) struct Turns {
    hasher: RandomState,
    /// The hash of the last one that had its turn.
    last: u64,
}

impl Turns {
    /// Takes a timer of a loop for the turn if its turn is before that of the one which the sweep
    /// has; `attempt` says how often it was tried, or declines it.
    pub(super) fn offer(
        &self,
        sweep: &mut Sweep,
        due: &Due,
        attempt: impl FnOnce() -> Option<u32>,
    ) {
        let hash = self.hasher.hash_one(&due.name);
        // One that has just had its turn is the last of all.
        let distance = hash.wrapping_sub(self.last).wrapping_sub(1);
        if let Some((_, _, best)) = &sweep.turn
            && *best <= distance
        {
            return;
        }
        if let Some(attempt) = attempt() {
            sweep.turn = Some((due.clone(), attempt, distance));
        }
    }

    /// The timer whose turn it is.
    pub(super) fn take(&mut self, sweep: &mut Sweep) -> Option<(Due, u32)> {
        let (due, attempt, _) = sweep.turn.take()?;
        self.last = self.hasher.hash_one(&due.name);
        Some((due, attempt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(at_ns: u64, name: &str) -> Due {
        Due {
            at_ns,
            name: name.to_owned(),
            depth: 1,
        }
    }

    /// The names in the order of their turns; each timer is set again as `next` says.
    fn turns(mut timers: Vec<Due>, count: u32, next: impl Fn(u32, Due) -> Due) -> Vec<String> {
        let mut turns = Turns::default();
        let mut names = Vec::new();
        for number in 0..count {
            let mut sweep = Sweep::default();
            for due in &timers {
                turns.offer(&mut sweep, due, || Some(0));
            }
            let (taken, _) = turns.take(&mut sweep).expect("there are some");
            names.push(taken.name.clone());
            timers.retain(|due| *due != taken);
            timers.push(next(number, taken));
        }
        names
    }

    #[test]
    fn each_timer_of_a_loop_has_its_turn_although_others_are_set_for_the_past() {
        let all: Vec<Due> = (0..50).map(|at| due(at, &format!("t{at}"))).collect();
        let mut first = turns(all.clone(), 100, |_, due| due);
        let second = first.split_off(50);
        assert_eq!(first, second);
        first.sort();
        first.dedup();
        assert_eq!(first.len(), 50);
    }

    #[test]
    fn a_loop_whose_timers_have_new_names_leaves_others_their_turns() {
        let all = vec![due(1, "a/0"), due(1, "b")];
        let names = turns(all, 1_000, |number, taken| match taken.name.as_str() {
            "b" => taken,
            // Before the other one in each order but that of hashes.
            _ => due(0, &format!("a/{number}")),
        });
        let others = names.iter().filter(|name| *name == "b").count();
        assert!(others > 100, "{others} of 1000");
    }
}
