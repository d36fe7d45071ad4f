//! What to do with events whose times would go back.

use clap::ValueEnum;

use crate::cli::support::output::{Output, grouped};

/// The option for it.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(super) struct TimesOption {
    /// What to do with an event whose time is earlier than that of the previous event: the times of
    /// a log never go back.
    #[arg(long, value_enum, default_value_t)]
    times: Times,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Times {
    /// Store the event with the time of the previous event, and report how many times changed.
    #[default]
    Raise,
    /// Refuse the event.
    Refuse,
    /// Store all events with the time of the append.
    Ignore,
}

impl TimesOption {
    /// The API parameter for it.
    pub(super) fn parameter(self) -> Option<(&'static str, String)> {
        let value = self
            .times
            .to_possible_value()
            .filter(|_| self.times != Times::Raise)?;
        Some(("times", value.get_name().to_owned()))
    }
}

/// Reports how many times were raised, if any.
pub(super) fn warn(output: &Output, raised: u64) {
    if raised > 0 {
        output.warning(&warning_of(raised));
    }
}

fn warning_of(raised: u64) -> String {
    let (asked, got) = match raised {
        1 => (
            "1 event had a time".to_owned(),
            "was stored with the time of that event",
        ),
        count => (
            format!("{} events had times", grouped(count)),
            "were stored with the times of those events",
        ),
    };
    format!(
        "{asked} earlier than that of the previous event and {got}, because the times of a log \
         never go back; --times refuse stops at such an event, --times ignore stores all with the \
         time of the append"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_the_default_is_asked_for() {
        let asked = |times| TimesOption { times }.parameter().map(|(_, value)| value);
        assert_eq!(asked(Times::Raise), None);
        assert_eq!(asked(Times::Refuse).as_deref(), Some("refuse"));
        assert_eq!(asked(Times::Ignore).as_deref(), Some("ignore"));
    }

    #[test]
    fn the_number_of_raised_times_is_reported_with_the_reason() {
        assert!(
            warning_of(1).starts_with("1 event had a time earlier"),
            "{}",
            warning_of(1)
        );
        assert!(
            warning_of(1_234).starts_with("1,234 events had times")
                && warning_of(1_234).contains("never go back")
        );
    }
}
