//! Prints the template, generated from the structs and their comments, and the current
//! configuration.

use std::fmt::Write as _;

use toml::{Table, Value};

use super::load::SECTIONS;
use super::{Config, Key, REDACTED};
use crate::source::SOURCE_KINDS;

/// Width at which comments wrap.
const WIDTH: usize = 110;

const HEADER: &str = "\
# Configuration of Foldstream. Every key is optional: a commented line shows the default, or an example if there is
# none.
#
# The environment overrides this file, and the command line overrides both:
#   serve.listen                FOLDSTREAM_SERVE__LISTEN=…            --set serve.listen=…
#   sources.orders.stream       FOLDSTREAM_SOURCES__ORDERS__STREAM=…  --set sources.orders.stream=…
# Durations are written like \"500ms\", \"5s\" or \"2h\"; sizes like 65536, \"64KiB\" or \"1GiB\".
";

const SOURCES: &str = "
# Sources by name. Without any, there is one embedded log named `events`. Each source has a section of its own, of
# kind \"jetstream\" or \"embedded\".
";

/// A commented file with all keys and their defaults.
pub fn template() -> String {
    let defaults = Table::try_from(Config::default()).expect("the defaults can be written as TOML");
    let mut text = String::from(HEADER);
    for key in Config::KEYS
        .iter()
        .filter(|key| !matches!(defaults.get(key.name), Some(Value::Table(_))))
    {
        add_key(&mut text, key, defaults.get(key.name), "# ");
    }
    for (section, keys) in SECTIONS {
        let docs = Config::KEYS
            .iter()
            .find(|key| key.name == section)
            .map(Key::docs_joined)
            .unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = write!(text, "\n# {docs}\n[{section}]\n");
        let values = defaults.get(section).and_then(Value::as_table);
        for key in keys {
            add_key(
                &mut text,
                key,
                values.and_then(|values| values.get(key.name)),
                "# ",
            );
        }
        // Sources come where readers look for them, next to the address.
        if section == "serve" {
            add_sources(&mut text);
        }
    }
    text
}

fn add_sources(text: &mut String) {
    text.push_str(SOURCES);
    for kind in SOURCE_KINDS {
        let (name, example) = (kind.name, kind.example);
        let _ = write!(text, "\n# [sources.{example}]\n# kind = \"{name}\"\n");
        let defaults = (kind.defaults)().expect("the defaults can be written as TOML");
        for key in kind.keys {
            add_key(text, key, defaults.get(key.name), "# ");
        }
    }
}

fn add_key(text: &mut String, key: &Key, default: Option<&Value>, mark: &str) {
    text.push('\n');
    for line in wrapped(&key.docs_joined()) {
        let _ = writeln!(text, "# {line}");
    }
    // An example says more than a default that is empty.
    let value = key
        .example()
        .or_else(|| default.map(Value::to_string))
        .unwrap_or_default();
    let _ = writeln!(text, "{mark}{} = {value}", key.name);
}

fn wrapped(docs: &str) -> Vec<String> {
    let shown = docs.split(" For example `").next().unwrap_or(docs);
    let mut lines = vec![String::new()];
    for word in shown.split(' ') {
        let line = lines.last_mut().expect("begins with one");
        if !line.is_empty() && line.len() + 1 + word.len() > WIDTH {
            lines.push(word.to_owned());
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines
}

impl Config {
    /// The configuration as TOML for people; secrets are hidden.
    pub fn to_shown(&self) -> Table {
        let mut table =
            Table::try_from(self).expect("what was read as TOML can be written as TOML");
        redact(&mut table);
        table
    }
}

fn redact(table: &mut Table) {
    for (name, value) in table.iter_mut() {
        let secret = SOURCE_KINDS
            .iter()
            .map(|kind| kind.keys)
            .chain([super::Serve::KEYS])
            .any(|keys| keys.iter().any(|key| key.name == name && key.is_secret()));
        match value {
            Value::Table(inner) => redact(inner),
            Value::String(text) if secret => REDACTED.clone_into(text),
            Value::Array(items) if name == "servers" => items.iter_mut().for_each(redact_server),
            _ => {}
        }
    }
}

/// The address of a server may contain a user and a password.
fn redact_server(server: &mut Value) {
    let Value::String(text) = server else { return };
    // Without a scheme it is `nats`.
    let begin = text.find("://").map_or(0, |at| at + 3);
    if let Some((_, host)) = text[begin..].rsplit_once('@') {
        *text = format!("{}{REDACTED}@{host}", &text[..begin]);
    }
}
