//! Options that `deploy` and `rebuild` share: how to build a candidate.

use super::exit::Failure;
use super::gate::GateArgs;

/// How a candidate is built, and when it takes over.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Options for building a new generation alongside the active one")]
pub(crate) struct CandidateArgs {
    /// Let the candidate take over as soon as it has caught up and passed its gate, if it has one
    /// (the default).
    #[arg(long, conflicts_with = "manual")]
    auto: bool,
    /// Let the candidate take over only on `foldstream promote`.
    #[arg(long)]
    manual: bool,
    #[command(flatten)]
    gate: GateArgs,
    #[command(flatten)]
    throttle: ThrottleArgs,
}

impl CandidateArgs {
    /// The API parameters for these options.
    pub(crate) fn parameters(&self) -> Result<Vec<(&'static str, String)>, Failure> {
        let mut parameters = Vec::new();
        if self.manual {
            parameters.push(("promote", "manual".to_owned()));
        }
        parameters.extend(self.gate.parameter()?.map(|gate| ("gate", gate)));
        parameters.extend(self.throttle.parameters());
        Ok(parameters)
    }
}

/// Limits on the speed of a build.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct ThrottleArgs {
    /// Maximum events per second while the candidate is built.
    #[arg(long, value_name = "EVENTS", value_parser = clap::value_parser!(u64).range(1..))]
    max_rate: Option<u64>,
    /// Maximum share of one core that the candidate may use while it is built, in percent.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    cpu: Option<u8>,
}

impl ThrottleArgs {
    /// The API parameters for these options.
    pub(crate) fn parameters(self) -> Vec<(&'static str, String)> {
        let mut parameters = Vec::new();
        parameters.extend(self.max_rate.map(|rate| ("max-rate", rate.to_string())));
        parameters.extend(self.cpu.map(|percent| ("cpu-percent", percent.to_string())));
        parameters
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn parameters(typed: &[&str]) -> Vec<(&'static str, String)> {
        let command = CandidateArgs::augment_args(clap::Command::new("test"));
        let matches = command
            .try_get_matches_from([&["test"], typed].concat())
            .expect("is accepted");
        CandidateArgs::from_arg_matches(&matches)
            .expect("is whole")
            .parameters()
            .expect("are sound")
    }

    #[test]
    fn only_what_was_asked_for_is_sent() {
        assert_eq!(parameters(&[]), []);
        assert_eq!(parameters(&["--auto"]), []);
        let all = parameters(&[
            "--manual",
            "--require-equal",
            "--max-rate",
            "5000",
            "--cpu",
            "20",
        ]);
        let wanted = [
            ("promote", "manual"),
            ("gate", "{\"allow\":[]}"),
            ("max-rate", "5000"),
            ("cpu-percent", "20"),
        ];
        assert_eq!(all, wanted.map(|(name, value)| (name, value.to_owned())));
    }
}
