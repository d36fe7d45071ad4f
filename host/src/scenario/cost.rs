//! What the events of a scenario cost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::module::{ApplyError, Instance};
use crate::state::{Trace, Writer};

/// What the events of a scenario cost, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// Events and firings that were applied.
    pub events: u64,
    /// Time in the module per event, in microseconds.
    pub time_us: f64,
    /// Instructions that the module executed per event.
    pub fuel: f64,
    /// Calls of the host per event: reads, writes, scans, messages. None if they were not counted,
    /// as in a run without the properties.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_calls: Option<f64>,
    /// Keys and values that the state has per event, in bytes.
    pub state_bytes: f64,
    /// Most linear memory of an instance, in bytes.
    pub memory_bytes: u64,
}

/// A cost that is larger than in the baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Growth {
    /// Which one: `fuel`, `host_calls`, `state_bytes` or `memory_bytes`.
    pub figure: &'static str,
    /// In the baseline.
    pub before: f64,
    pub now: f64,
}

impl Cost {
    /// What has grown since a baseline: instructions, calls and bytes, because they depend on the
    /// module alone. Time depends on the machine and the moment, and is not compared.
    pub(crate) fn grown(&self, before: &Self) -> Vec<Growth> {
        let calls = |cost: &Self| cost.host_calls.unwrap_or(0.0);
        let figures = [
            ("fuel", before.fuel, self.fuel),
            ("host_calls", calls(before), calls(self)),
            ("state_bytes", before.state_bytes, self.state_bytes),
            (
                "memory_bytes",
                before.memory_bytes as f64,
                self.memory_bytes as f64,
            ),
        ];
        figures
            .into_iter()
            // A little more is none, as averages are rounded in files.
            .filter(|(_, before, now)| *now > before * 1.000_1)
            .map(|(figure, before, now)| Growth {
                figure,
                before,
                now,
            })
            .collect()
    }
}

/// Measures the calls of a run.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// Whether it counts host calls, which takes time.
    counts_calls: bool,
    figures: Mutex<Figures>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    pub(super) events: u64,
    pub(super) time: Duration,
    pub(super) fuel: u64,
    pub(super) calls: u64,
    pub(super) memory_bytes: u64,
}

impl Meter {
    /// One that counts host calls, and therefore shows no true times.
    pub(super) fn of_calls() -> Self {
        Self {
            counts_calls: true,
            ..Self::default()
        }
    }

    /// Applies events, and notes what that took.
    pub(super) fn measure(
        &self,
        events: &[Event],
        mut writer: Writer,
        instance: &mut Instance,
    ) -> (Writer, Result<(), ApplyError>) {
        let trace = self.counts_calls.then(|| Arc::new(Trace::default()));
        if trace.is_some() {
            writer.trace(trace.clone());
        }
        let fuel = instance.fuel();
        let begun = Instant::now();
        let (mut writer, result) = instance.apply(events, writer);
        let took = begun.elapsed();
        if trace.is_some() {
            writer.trace(None);
        }
        if result.is_ok() {
            let mut figures = self.figures.lock();
            figures.events += events.len() as u64;
            figures.time += took;
            let used = fuel.zip(instance.fuel());
            figures.fuel += used.map_or(0, |(before, after)| before.saturating_sub(after));
            figures.calls += trace.map_or(0, |trace| trace.traced().calls.len() as u64);
            figures.memory_bytes = figures.memory_bytes.max(instance.memory_bytes());
        }
        (writer, result)
    }

    pub(super) fn figures(&self) -> Figures {
        *self.figures.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_bytes_may_not_grow_and_time_is_not_compared() {
        let before = Cost {
            events: 3,
            time_us: 1_000.0,
            fuel: 50_000.0,
            host_calls: Some(4.0),
            state_bytes: 100.0,
            memory_bytes: 1 << 20,
        };
        assert_eq!(before.grown(&before), []);
        let figures = |now: Cost| -> Vec<&str> {
            now.grown(&before)
                .iter()
                .map(|grown| grown.figure)
                .collect()
        };
        assert_eq!(
            figures(Cost {
                time_us: 30_000.0,
                ..before
            }),
            [""; 0]
        );
        assert_eq!(
            figures(Cost {
                fuel: 50_100.0,
                ..before
            }),
            ["fuel"]
        );
        assert_eq!(
            figures(Cost {
                host_calls: Some(4.1),
                ..before
            }),
            ["host_calls"]
        );
        assert_eq!(
            figures(Cost {
                host_calls: Some(3.0),
                state_bytes: 101.0,
                ..before
            }),
            ["state_bytes"]
        );
    }
}
