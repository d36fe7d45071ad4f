//! Reads files of scenarios, and says what is wrong with one, and where.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_saphyr::{MessageFormatter as _, UserMessageFormatter};

use super::expand::Unsound;
use super::file::{Action, File, SCENARIOS_MAX, Scenario, TIMES_MAX};
use super::places::{Place, Places};
use crate::spelling::nearest;

/// Deepest nesting: data of events may be as deep as JSON parsers accept.
const DEPTH_MAX: usize = 160;
/// Most values of a file. A file has at most 8 MiB, so this is no limit for what we record.
const NODES_MAX: usize = 4 << 20;
/// Longest key that is written before its value in one line, in characters.
const KEY_CHARS_MAX: usize = 16 << 10;

/// A file of scenarios that was read and checked.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(super) file: File,
    places: Places,
}

/// What is wrong in a file of scenarios, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Mistake {
    /// Where, if that is known.
    pub place: Option<Place>,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Document {
    /// Reads a file of scenarios, in YAML or JSON.
    pub(crate) fn read(text: &str) -> Result<Self, Mistake> {
        if text.trim().is_empty() {
            return Err(Mistake {
                place: Some(Place { line: 1, column: 1 }),
                message: "the file is empty; it needs a list `scenarios`".to_owned(),
            });
        }
        let file: File = parse(text)?;
        let document = Self {
            file,
            // Only for messages: a file whose places are unknown is as good.
            places: parse(text).unwrap_or_default(),
        };
        document.check()?;
        // A reader of YAML takes them for fractions, and loses digits.
        let is_digits = |place: &Place| {
            let number = token(text, *place);
            let digits = number.trim_start_matches(['-', '+']);
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
        };
        if let Some(place) = document.places.large().into_iter().find(is_digits) {
            return Err(Mistake {
                place: Some(place),
                message: "the number has more than 64 bits; write it as a text, in quotes"
                    .to_owned(),
            });
        }
        Ok(document)
    }

    /// A file that a program made.
    pub(crate) fn of(file: File) -> Result<Self, Mistake> {
        let document = Self {
            file,
            places: Places::default(),
        };
        document.check()?;
        Ok(document)
    }

    pub(crate) fn scenarios(&self) -> &[Scenario] {
        &self.file.scenarios
    }

    /// Where a scenario begins, if that is known.
    pub(crate) fn place_of(&self, index: usize) -> Option<Place> {
        self.place(&path_of(index, &[]))
    }

    /// The place of the deepest part on a path that the file has.
    pub(super) fn place(&self, path: &[String]) -> Option<Place> {
        self.places.find(path)
    }

    /// The names of the members at a path.
    pub(super) fn members(&self, path: &[String]) -> Vec<String> {
        self.places.members(path)
    }

    /// A mistake in a scenario.
    pub(super) fn mistake(&self, path: &[String], scenario: &str, unsound: &Unsound) -> Mistake {
        Mistake {
            place: self.place(path),
            message: format!("scenario `{scenario}`: {unsound}"),
        }
    }

    fn check(&self) -> Result<(), Mistake> {
        let count = self.file.scenarios.len();
        if count > SCENARIOS_MAX {
            return Err(Mistake {
                place: None,
                message: format!("{count} scenarios; put at most {SCENARIOS_MAX} into one file"),
            });
        }
        let mut names = BTreeSet::new();
        for (index, scenario) in self.file.scenarios.iter().enumerate() {
            let wrong = |path: &[&str], message: &str| {
                let unsound = Unsound(message.to_owned());
                self.mistake(&path_of(index, path), &scenario.name, &unsound)
            };
            if scenario.name.trim().is_empty() {
                return Err(wrong(&["name"], "it has no name; give it one"));
            }
            // Reports and filters tell scenarios apart by name.
            if !names.insert(&scenario.name) {
                return Err(wrong(&["name"], "there are two of this name; rename one"));
            }
            for list in lists(scenario) {
                for (number, action) in list.actions.iter().enumerate() {
                    let number = number.to_string();
                    let path: Vec<&str> = list
                        .path
                        .iter()
                        .chain([&number])
                        .map(String::as_str)
                        .collect();
                    self.check_action(action)
                        .map_err(|unsound| wrong(&path, &unsound.0))?;
                    if list.is_given && action.query.is_some() {
                        return Err(wrong(&path, "`given` has a query; ask it in `when`"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks that an action is one thing, and complete.
    fn check_action(&self, action: &Action) -> Result<(), Unsound> {
        let wrong = |message: &str| Err(Unsound(message.to_owned()));
        let is_event = action.event.is_some() || action.subject.is_some();
        let things = [
            is_event,
            action.pass.is_some(),
            action.query.is_some(),
            action.fire.is_some(),
            action.others.is_some(),
        ];
        if things.iter().filter(|is_it| **is_it).count() != 1 {
            return wrong(
                "an action is one of: an event (`event` or `subject`), `pass`, `query`, `fire`, \
                 `others`",
            );
        }
        let of_event = action.kind.is_some()
            || action.id.is_some()
            || action.data.is_some()
            || action.times.is_some()
            || !action.headers.is_empty()
            || !action.with.is_empty();
        if of_event && !is_event {
            return wrong("only an event has `type`, `id`, `headers`, `data`, `times` and `with`");
        }
        if action.at.is_some() && !is_event && action.fire.is_none() {
            return wrong("`at` belongs to an event or to `fire`");
        }
        if action.args.is_some() && action.query.is_none() {
            return wrong("`args` belongs to `query`; data of an event is `data`");
        }
        let is_count = |count: u32| (1..=TIMES_MAX).contains(&count);
        if !action.times.is_none_or(is_count) || !action.others.is_none_or(is_count) {
            return Err(Unsound(format!(
                "`times` and `others` are 1 to {TIMES_MAX}"
            )));
        }
        let Some(name) = &action.event else {
            return Ok(());
        };
        let Some(template) = self.file.events.get(name) else {
            return Err(Unsound(self.unknown_event(name)));
        };
        if action.subject.is_none() && template.subject.is_none() {
            return Err(Unsound(format!(
                "event `{name}` has no subject; give it one"
            )));
        }
        Ok(())
    }

    fn unknown_event(&self, name: &str) -> String {
        let known: Vec<_> = self.file.events.keys().map(String::as_str).collect();
        match nearest(name, known.iter().copied()) {
            Some(near) => format!("no event `{name}` under `events`; did you mean `{near}`?"),
            None if known.is_empty() => {
                format!("no event `{name}`; describe it under `events`, or give its `subject`")
            }
            None => format!(
                "no event `{name}` under `events`; there are: {}",
                known.join(", ")
            ),
        }
    }
}

/// A list of actions of a scenario.
struct List<'a> {
    /// Its path in the scenario.
    path: Vec<String>,
    is_given: bool,
    actions: &'a [Action],
}

fn lists(scenario: &Scenario) -> Vec<List<'_>> {
    let list = |path: &[&str], actions| List {
        path: path.iter().map(|&part| part.to_owned()).collect(),
        is_given: path == ["given"],
        actions,
    };
    let mut lists = vec![
        list(&["given"], &*scenario.given),
        list(&["when"], &*scenario.when),
    ];
    lists.extend(
        scenario
            .steps
            .iter()
            .enumerate()
            .map(|(number, step)| list(&["steps", &number.to_string(), "when"], &*step.when)),
    );
    lists
}

/// The path of a part of a scenario.
pub(super) fn path_of(index: usize, rest: &[&str]) -> Vec<String> {
    ["scenarios".to_owned(), index.to_string()]
        .into_iter()
        .chain(rest.iter().map(|&part| part.to_owned()))
        .collect()
}

/// The scalar at a place.
fn token(text: &str, place: Place) -> &str {
    let before = |number: u64| usize::try_from(number - 1).unwrap_or(usize::MAX);
    let text = text.trim_start_matches('\u{feff}');
    let line = text.lines().nth(before(place.line)).unwrap_or_default();
    let begin = line.char_indices().nth(before(place.column));
    let rest = begin.map_or("", |(begin, _)| &line[begin..]);
    let end = rest.find(|character: char| character.is_whitespace() || ",]}".contains(character));
    &rest[..end.unwrap_or(rest.len())]
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Mistake> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: 2 * NODES_MAX,
            simple_key_max_lookahead: KEY_CHARS_MAX,
        },
        // What looks like a word or an identifier is a text: `no`, `007`, `1_000`.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| mistake(&error))
}

fn mistake(error: &serde_saphyr::Error) -> Mistake {
    use serde_saphyr::Error as Yaml;
    let error = error.without_snippet();
    let message = match error {
        Yaml::SerdeUnknownField {
            field, expected, ..
        } => unknown("field", field, expected),
        Yaml::SerdeUnknownVariant {
            variant, expected, ..
        } => unknown("value", variant, expected),
        other => UserMessageFormatter.format_message(other).into_owned(),
    };
    Mistake {
        place: error.location().and_then(Place::of),
        message,
    }
}

fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("unknown {what} `{name}`; did you mean `{near}`?"),
        None => format!("unknown {what} `{name}`; there are: {}", known.join(", ")),
    }
}
