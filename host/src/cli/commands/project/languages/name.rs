//! The name of a project, in its spellings.

use super::Language;
use crate::cli::support::exit::{Exit, Failure};

/// Longest name; it is also the name of the deployment.
const NAME_BYTES_MAX: usize = 63;

/// A name in its three spellings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Name {
    /// `order-totals`: the project and the deployment.
    pub kebab: String,
    /// `order_totals`: variables and files.
    pub snake: String,
    /// `OrderTotals`: the type.
    pub pascal: String,
}

impl Name {
    /// Reads a name as typed.
    pub(crate) fn parse(typed: &str, language: Language) -> Result<Self, Failure> {
        let kebab = typed.replace('_', "-");
        let sound = kebab.len() <= NAME_BYTES_MAX
            && kebab.starts_with(|c: char| c.is_ascii_lowercase())
            && kebab
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && kebab.split('-').all(|part| !part.is_empty());
        if !sound {
            let message = format!(
                "`{typed}` cannot be the name of a project; use 1 to {NAME_BYTES_MAX} lower-case \
                 letters, digits and single hyphens, a letter first"
            );
            return Err(Failure::new(Exit::Usage, message));
        }
        let row = language.row();
        if row.reserved.split_whitespace().any(|word| word == kebab) {
            let message = format!(
                "`{typed}` is reserved in {}; choose another name, such as {kebab}-view",
                row.name
            );
            return Err(Failure::new(Exit::Usage, message));
        }
        let capital = |part: &str| part[..1].to_ascii_uppercase() + &part[1..];
        Ok(Self {
            snake: kebab.replace('-', "_"),
            pascal: kebab.split('-').map(capital).collect(),
            kebab,
        })
    }

    /// A template that is text, for this name.
    pub(crate) fn in_text(&self, template: &str) -> String {
        named(template)
            .replace("Starter", &self.pascal)
            .replace("starter", &self.kebab)
    }

    /// A template that is code: a quoted name is the module's name; anything else is a variable.
    pub(crate) fn in_code(&self, template: &str) -> String {
        let quoted = named(template).replace("\"starter\"", &format!("\"{}\"", self.kebab));
        quoted
            .replace("Starter", &self.pascal)
            .replace("starter", &self.snake)
    }
}

/// A template with the one name that is replaced: two crates of our workspace cannot share it.
fn named(template: &str) -> String {
    template.replace("starter-handler", "starter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_in_three_ways() {
        let parse = |typed| Name::parse(typed, Language::Rust);
        let name = parse("order-totals").expect("is sound");
        assert_eq!(
            (
                name.kebab.as_str(),
                name.snake.as_str(),
                name.pascal.as_str()
            ),
            ("order-totals", "order_totals", "OrderTotals")
        );
        assert_eq!(parse("order_totals").expect("is sound"), name);
        for wrong in [
            "",
            "Order",
            "1st",
            "a--b",
            "a-",
            "-a",
            "a b",
            "ä",
            &"a".repeat(64),
            "self",
            "test",
        ] {
            assert_eq!(
                parse(wrong).expect_err("is unsound").exit,
                Exit::Usage,
                "{wrong}"
            );
        }
    }

    #[test]
    fn each_language_has_words_of_its_own() {
        assert!(Name::parse("json", Language::Rust).is_ok());
        let refused = Name::parse("json", Language::Python).expect_err("hides a module of Python");
        assert!(refused.message.contains("reserved in Python"), "{refused}");
    }
}
