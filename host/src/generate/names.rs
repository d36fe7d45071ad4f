//! Identifiers: ASCII, valid and unique, whatever the names in a schema are.

use std::collections::{HashMap, HashSet};

use heck::{ToShoutySnakeCase as _, ToSnakeCase as _, ToUpperCamelCase as _};

/// Longest identifier, in bytes, without the number that makes it unique: names of nested types grow
/// with their depth.
const BYTES_MAX: usize = 60;

/// Identifiers of one scope.
#[derive(Default)]
pub(super) struct Names {
    taken: HashSet<String>,
    /// The number to try next after a name that was taken.
    next: HashMap<String, usize>,
}

impl Names {
    /// A scope in which some names have another meaning.
    pub(super) fn without(reserved: &[&str]) -> Self {
        Self {
            taken: reserved.iter().map(|name| (*name).to_owned()).collect(),
            next: HashMap::new(),
        }
    }

    /// The name if it is free, otherwise with a number behind it.
    pub(super) fn unique(&mut self, wanted: &str) -> String {
        if self.taken.insert(wanted.to_owned()) {
            return wanted.to_owned();
        }
        let next = self.next.entry(wanted.to_owned()).or_insert(2);
        loop {
            // A letter at the end keeps the digits apart from those of the name.
            let joint = if wanted.ends_with(|c: char| c.is_ascii_digit()) {
                "_"
            } else {
                ""
            };
            let name = format!("{wanted}{joint}{next}");
            *next += 1;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
}

/// The ASCII letters and digits of a text, with spaces for everything else.
fn plain(text: &str) -> String {
    let letters = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { ' ' });
    letters.collect()
}

fn sound(name: String, otherwise: &str, before_digits: &str) -> String {
    let name = match name.chars().next() {
        None => otherwise.to_owned(),
        Some(first) if first.is_ascii_digit() => format!("{before_digits}{name}"),
        Some(_) => name,
    };
    // What is cut off is ASCII.
    name[..name.len().min(BYTES_MAX)]
        .trim_end_matches('_')
        .to_owned()
}

/// `OrderPlaced`.
pub(super) fn upper_camel(text: &str, otherwise: &str) -> String {
    sound(plain(text).to_upper_camel_case(), otherwise, "N")
}

/// `order_placed`.
pub(super) fn snake(text: &str, otherwise: &str) -> String {
    sound(plain(text).to_snake_case(), otherwise, "n_")
}

/// `ORDER_PLACED`.
pub(super) fn shouty_snake(text: &str, otherwise: &str) -> String {
    sound(plain(text).to_shouty_snake_case(), otherwise, "N_")
}

/// Whether a text is an identifier of ASCII letters, digits and underscores.
pub(super) fn is_identifier(text: &str) -> bool {
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.starts_with(is_first) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_becomes_an_identifier() {
        for (text, camel, snake_case) in [
            ("total_cents", "TotalCents", "total_cents"),
            ("totalCents", "TotalCents", "total_cents"),
            (
                "com.example.order-placed",
                "ComExampleOrderPlaced",
                "com_example_order_placed",
            ),
            ("1st", "N1st", "n_1st"),
            ("größe", "GrE", "gr_e"),
            ("", "Field", "field"),
            ("注文", "Field", "field"),
            ("a\"; drop\n//", "ADrop", "a_drop"),
        ] {
            assert_eq!(upper_camel(text, "Field"), camel);
            assert_eq!(snake(text, "field"), snake_case);
            assert!(is_identifier(&upper_camel(text, "Field")));
        }
        assert_eq!(snake(&"a_".repeat(500), "field").len(), BYTES_MAX - 1);
    }

    #[test]
    fn names_that_collide_get_numbers() {
        let mut names = Names::without(&["Option"]);
        let all = ["A", "A", "A2", "Option", "A", "B1", "B1"].map(|name| names.unique(name));
        assert_eq!(all, ["A", "A2", "A2_2", "Option2", "A3", "B1", "B1_2"]);
    }
}
