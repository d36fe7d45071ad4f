//! Progress: a bar on a terminal, plain lines elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::{Output, grouped, span};

/// Pause between plain lines, so that they do not fill a log file.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// The same for a line that says nothing new.
const LINE_AGAIN: Duration = Duration::from_secs(60);

/// A stage of some work.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Step {
    pub done: u64,
    /// Total units; none if unknown.
    pub total: Option<u64>,
    /// Whether the total is only an estimate.
    pub is_estimate: bool,
    /// Current units per second.
    pub rate: f64,
    /// Estimated seconds until the end.
    pub remaining_seconds: Option<f64>,
}

/// Shows the progress of some work.
#[derive(Debug)]
pub(crate) struct Progress {
    output: Output,
    subject: String,
    bar: Option<ProgressBar>,
    last_line: Instant,
    last_text: String,
    begun: Instant,
}

impl Progress {
    /// Starts; `subject` names the work.
    pub(crate) fn new(subject: &str, output: Output) -> Self {
        let bar = output.draws().then(|| {
            let style = ProgressStyle::with_template("{prefix} [{bar:24}] {msg}")
                .expect("the template is constant");
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            bar.with_style(style.progress_chars("=> "))
                .with_prefix(subject.to_owned())
        });
        let now = Instant::now();
        Self {
            output,
            subject: subject.to_owned(),
            bar,
            last_line: now,
            last_text: String::new(),
            begun: now,
        }
    }

    pub(crate) fn show(&mut self, step: &Step) {
        if let Some(bar) = &self.bar {
            // At least 1, because a bar of length 0 shows as complete.
            bar.set_length(step.total.unwrap_or(step.done).max(1));
            bar.set_position(step.done);
            bar.set_message(describe(step));
            return;
        }
        let (text, age) = (describe(step), self.last_line.elapsed());
        // Nothing new is said seldom, but said: a log must show that it still works.
        if age >= LINE_AGAIN || (age >= LINE_INTERVAL && text != self.last_text) {
            self.last_line = Instant::now();
            self.output.note(&format!("{}: {text}", self.subject));
            self.last_text = text;
        }
    }

    /// Shows what the work waits for; without a bar, prints each such text once.
    pub(crate) fn wait(&mut self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        } else if self.last_text != text {
            text.clone_into(&mut self.last_text);
            self.output.note(&format!("{}: {text}", self.subject));
        }
    }

    /// Shows a message above the bar.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.note(text)),
            None => self.output.note(text),
        }
    }

    /// The name of the work.
    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }

    /// Since the beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Ends, and removes the bar, because the next line says more.
    pub(crate) fn finish(self) {}
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn describe(step: &Step) -> String {
    let mut text = grouped(step.done);
    if let Some(total) = step.total {
        let total = if step.is_estimate {
            format!("about {}", grouped(rounded(total)))
        } else {
            grouped(total)
        };
        text.push_str(&format!(" of {total}"));
    }
    text.push_str(" events");
    if step.rate >= 1.0 {
        text.push_str(&format!(", {}/s", grouped(step.rate as u64)));
    }
    if let Some(remaining) = step.remaining_seconds {
        text.push_str(&format!(", {} left", span(remaining)));
    }
    text
}

/// A number with its first two digits.
fn rounded(number: u64) -> u64 {
    // None below 10, which has no digits to spare.
    let unit = 10_u64.pow(number.checked_ilog10().unwrap_or(0).saturating_sub(1));
    number.saturating_add(unit / 2) / unit * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_reported_with_what_is_known() {
        let step = Step {
            done: 12,
            ..Step::default()
        };
        assert_eq!(describe(&step), "12 events");
        let step = Step {
            done: 340_000,
            total: Some(1_000_000),
            is_estimate: false,
            rate: 212_345.6,
            remaining_seconds: Some(3.1),
        };
        assert_eq!(
            describe(&step),
            "340,000 of 1,000,000 events, 212,345/s, 3.1 s left"
        );
        let guessed = |total| {
            let step = Step {
                done: 41_000,
                total: Some(total),
                is_estimate: true,
                ..Step::default()
            };
            describe(&step)
        };
        assert_eq!(guessed(203_164), "41,000 of about 200,000 events");
        assert_eq!(guessed(99_999), "41,000 of about 100,000 events");
        assert_eq!(guessed(7), "41,000 of about 7 events");
        assert_eq!(guessed(0), "41,000 of about 0 events");
    }
}
