//! The gate options: which differences a candidate may show before it takes over.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::exit::{Exit, Failure};
use crate::api::{Difference, Gate};
use crate::small_file::read_within;

/// Largest gate, in bytes of its JSON. It is part of a request's URL, of which servers accept 64
/// KiB, and escaping may triple each byte.
const GATE_BYTES_MAX: usize = 16 << 10;
/// Largest file of rules to read, in bytes: far more than a gate without comments needs.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Which differences from the active generation are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct GateArgs {
    /// Compare the candidate with the active generation before it takes over and show the
    /// differences; all are allowed.
    #[arg(long)]
    compare: bool,
    /// Compare, and hold the candidate back if anything differs.
    #[arg(long, conflicts_with_all = ["allow", "rules"])]
    require_equal: bool,
    /// Compare, and allow only these differences.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "DIFFERENCES",
        conflicts_with = "rules"
    )]
    allow: Vec<Differing>,
    /// Compare about this many entries instead of all, and say what that proves.
    #[arg(long, value_name = "ENTRIES", value_parser = clap::value_parser!(u64).range(1..))]
    sample: Option<u64>,
    /// Compare by the rules in a TOML file: `allow`, `sample`, and [[rules]] with `prefix`,
    /// `allow`, `ignore`.
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
}

/// How an entry can differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Differing {
    /// Only the new state has the key.
    Added,
    /// Only the old state has the key.
    Removed,
    /// The values differ.
    Changed,
}

impl From<Differing> for Difference {
    fn from(differing: Differing) -> Self {
        match differing {
            Differing::Added => Self::Added,
            Differing::Removed => Self::Removed,
            Differing::Changed => Self::Changed,
        }
    }
}

impl GateArgs {
    /// The gate; none if nothing is to be compared.
    pub(crate) fn gate(&self) -> Result<Option<Gate>, Failure> {
        // `--sample` alone compares, too, and allows everything.
        let is_wanted = self.compare || self.require_equal || self.sample.is_some();
        let mut gate = match &self.rules {
            Some(file) => read(file)?,
            // Only these: everything else holds the candidate back.
            None if !self.allow.is_empty() => Gate {
                allow: self.allow.iter().map(|&one| one.into()).collect(),
                ..Gate::default()
            },
            None if self.require_equal => Gate::default(),
            None if is_wanted => Gate {
                allow: vec![Difference::Added, Difference::Removed, Difference::Changed],
                ..Gate::default()
            },
            None => return Ok(None),
        };
        // The option wins over the file.
        gate.sample = self.sample.or(gate.sample);
        Ok(Some(gate))
    }

    /// The gate as an API parameter.
    pub(crate) fn parameter(&self) -> Result<Option<String>, Failure> {
        let Some(gate) = self.gate()? else {
            return Ok(None);
        };
        let text = super::output::compact(&gate);
        // Here, because a server would only say that the address is too long.
        if text.len() > GATE_BYTES_MAX {
            let message = format!(
                "the rules have {} bytes as JSON, at most {GATE_BYTES_MAX} can be sent; combine \
                 rules under a shorter prefix",
                text.len()
            );
            return Err(Failure::new(Exit::Usage, message));
        }
        Ok(Some(text))
    }
}

fn read(file: &Path) -> Result<Gate, Failure> {
    let shown = file.display();
    let unreadable = |error: std::io::Error| {
        Failure::new(Exit::Usage, format!("cannot read --rules {shown}: {error}"))
    };
    let content = read_within(file, FILE_BYTES_MAX).map_err(unreadable)?;
    let text =
        String::from_utf8(content).map_err(|error| unreadable(std::io::Error::other(error)))?;
    toml::from_str(&text).map_err(|error| {
        let error = error.to_string();
        let message = format!(
            "--rules {shown} cannot be used: {}\nit may contain `allow` and `sample`, and \
             [[rules]] with `prefix`, `allow`, `ignore`",
            error.trim_end()
        );
        Failure::new(Exit::Usage, message)
    })
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;
    use crate::api::Rule;

    fn parsed(typed: &[&str]) -> GateArgs {
        let command = GateArgs::augment_args(clap::Command::new("test"));
        let matches = command
            .try_get_matches_from([&["test"], typed].concat())
            .expect("is accepted");
        GateArgs::from_arg_matches(&matches).expect("is whole")
    }

    fn gate(typed: &[&str]) -> Option<Gate> {
        parsed(typed).gate().expect("is a gate")
    }

    fn of_file(text: &str) -> Result<Option<Gate>, Failure> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("written");
        parsed(&["--rules", &file.path().display().to_string()]).gate()
    }

    #[test]
    fn nothing_is_compared_unless_asked_for() {
        assert_eq!(gate(&[]), None);
    }

    #[test]
    fn compare_allows_all_and_equality_nothing_and_a_list_what_it_names() {
        let all = vec![Difference::Added, Difference::Removed, Difference::Changed];
        assert_eq!(
            gate(&["--compare"]),
            Some(Gate {
                allow: all.clone(),
                ..Gate::default()
            })
        );
        assert_eq!(gate(&["--require-equal"]), Some(Gate::default()));
        assert_eq!(
            gate(&["--compare", "--require-equal"]),
            Some(Gate::default())
        );
        let some = vec![Difference::Added, Difference::Changed];
        assert_eq!(
            gate(&["--allow", "added,changed"]),
            Some(Gate {
                allow: some,
                ..Gate::default()
            })
        );
        assert_eq!(
            gate(&["--sample", "9"]),
            Some(Gate {
                allow: all,
                sample: Some(9),
                ..Gate::default()
            })
        );
        let sampled = Gate {
            sample: Some(9),
            ..Gate::default()
        };
        assert_eq!(gate(&["--require-equal", "--sample", "9"]), Some(sampled));
    }

    #[test]
    fn rules_come_from_a_file_and_a_sample_of_the_command_line_wins() {
        let text = "allow = [\"added\"]\nsample = 100\n[[rules]]\nprefix = \"day/\"\nallow = \
                    [\"removed\"]\nignore = [\"/at\"]\n";
        let rule = Rule {
            prefix: "day/".to_owned(),
            allow: vec![Difference::Removed],
            ignore: vec!["/at".to_owned()],
        };
        let wanted = Gate {
            allow: vec![Difference::Added],
            sample: Some(100),
            rules: vec![rule],
        };
        assert_eq!(of_file(text).expect("is a gate"), Some(wanted.clone()));
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("written");
        let found = gate(&[
            "--rules",
            &file.path().display().to_string(),
            "--sample",
            "5",
        ]);
        assert_eq!(
            found,
            Some(Gate {
                sample: Some(5),
                ..wanted
            })
        );
        assert_eq!(
            of_file("").expect("nothing is allowed"),
            Some(Gate::default())
        );
    }

    #[test]
    fn mistakes_in_a_file_are_named_with_their_place() {
        for (text, said) in [
            ("alow = []", "unknown field `alow`"),
            (
                "[[rules]]\nprefix = \"a\"\nignored = []",
                "unknown field `ignored`",
            ),
            ("[[rules]]\nallow = []", "missing field `prefix`"),
            ("allow = [\"new\"]", "unknown variant `new`"),
            ("allow = ", "line 1"),
        ] {
            let failure = of_file(text).expect_err("is no gate");
            assert_eq!(failure.exit, Exit::Usage);
            assert!(
                failure.message.contains(said) && failure.message.contains("--rules"),
                "{failure}"
            );
        }
        let failure = parsed(&["--rules", "/nonexistent.toml"])
            .gate()
            .expect_err("is not there");
        assert!(
            failure
                .message
                .starts_with("cannot read --rules /nonexistent.toml: "),
            "{failure}"
        );
    }

    #[test]
    fn rules_that_no_address_can_carry_are_refused_before_they_are_sent() {
        let rule = |number: u32| format!("[[rules]]\nprefix = \"{number:0300}\"\n");
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), (0..60).map(rule).collect::<String>()).expect("written");
        let failure = parsed(&["--rules", &file.path().display().to_string()])
            .parameter()
            .expect_err("is too large");
        assert!(
            failure.message.contains("at most 16384 can be sent"),
            "{failure}"
        );
    }
}
