//! Keys of the configuration, as the structs declare them.

/// A key, as its struct describes it.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name within its section.
    pub name: &'static str,
    /// Its comment, one line after another.
    pub docs: &'static str,
    rust_type: &'static str,
    form: &'static str,
}

/// The type of a key's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Path,
    Address,
    Duration,
    Size,
    Count,
    Flag,
    List,
    LogFormat,
    Recognition,
    OnMissing,
    Anonymous,
    Lanes,
    Section,
}

impl Key {
    pub(crate) const fn new(
        name: &'static str,
        docs: &'static str,
        rust_type: &'static str,
        form: &'static str,
    ) -> Self {
        Self {
            name,
            docs,
            rust_type,
            form,
        }
    }

    /// Whether its value must not be shown.
    pub fn is_secret(&self) -> bool {
        matches!(self.name, "token" | "password")
    }

    /// Whether it is optional and has no default.
    #[cfg(test)]
    pub(crate) fn is_optional(&self) -> bool {
        self.rust_type.starts_with("Option")
    }

    /// The example in its comment, as TOML.
    pub(crate) fn example(&self) -> Option<String> {
        let joined = self.docs_joined();
        let (_, rest) = joined.split_once("For example `")?;
        rest.split_once('`').map(|(example, _)| example.to_owned())
    }

    /// The comment as one paragraph.
    pub(crate) fn docs_joined(&self) -> String {
        self.docs
            .split('\n')
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join(" ")
    }

    pub(crate) fn kind(&self) -> Kind {
        // The attribute first: a duration and a size have other types in Rust than in the file.
        if self.form.contains("humantime_serde") {
            return Kind::Duration;
        }
        if self.form.contains("size") {
            return Kind::Size;
        }
        let inner = self
            .rust_type
            .strip_prefix("Option<")
            .and_then(|rest| rest.strip_suffix('>'));
        match inner.unwrap_or(self.rust_type) {
            "String" | "Secret" => Kind::Text,
            "PathBuf" => Kind::Path,
            "SocketAddr" => Kind::Address,
            "usize" | "u32" | "u64" => Kind::Count,
            "bool" => Kind::Flag,
            "Vec<String>" => Kind::List,
            "LogFormat" => Kind::LogFormat,
            "Recognition" => Kind::Recognition,
            "OnMissing" => Kind::OnMissing,
            "Anonymous" => Kind::Anonymous,
            "Lanes" => Kind::Lanes,
            _ => Kind::Section,
        }
    }
}

impl Kind {
    /// The expected type, for messages.
    pub(crate) fn expected(self) -> &'static str {
        match self {
            Self::Text => "a string in quotes",
            Self::Path => "a path in quotes",
            Self::Address => "an IP address with a port in quotes, such as \"127.0.0.1:7575\"",
            Self::Duration => "a duration in quotes, such as \"500ms\", \"5s\" or \"2h\"",
            Self::Size => "a size, such as 65536, \"64KiB\" or \"1GiB\"",
            Self::Count => "a whole number, zero or more",
            Self::Flag => "true or false",
            Self::List => "a list of strings, such as [\"one\", \"two\"]",
            Self::LogFormat => "\"text\" or \"json\"",
            Self::Recognition => "\"auto\", \"headers\" or \"off\"",
            Self::OnMissing => "\"stop\" or \"count\"",
            Self::Anonymous => "\"nothing\", \"read\" or \"everything\"",
            Self::Lanes => "\"auto\", or a number from 1 to 64",
            Self::Section => "a section, such as [serve]",
        }
    }

    /// The value of a text in which no quotes distinguish strings from numbers.
    pub(crate) fn value_of(self, text: &str) -> toml::Value {
        let as_toml = || {
            let table: toml::Table = format!("value = {text}").parse().ok()?;
            table.get("value").cloned()
        };
        let as_text = || toml::Value::String(text.to_owned());
        match self {
            Self::Text
            | Self::Path
            | Self::Address
            | Self::Duration
            | Self::LogFormat
            | Self::Recognition
            | Self::OnMissing
            | Self::Anonymous
            | Self::Section => as_text(),
            // What is no number stays text, so that the message shows what was written.
            Self::Count | Self::Flag | Self::Lanes | Self::Size => {
                as_toml().unwrap_or_else(as_text)
            }
            // With brackets as in the file, which is the only way to write an item with a comma.
            Self::List if text.trim_start().starts_with('[') => as_toml().unwrap_or_else(as_text),
            Self::List => {
                let items = text
                    .split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty());
                toml::Value::Array(
                    items
                        .map(|item| toml::Value::String(item.to_owned()))
                        .collect(),
                )
            }
        }
    }
}

/// Declares structs as written and, for each of them, the list of its keys.
macro_rules! settings {
    ($(
        $(#[$attribute:meta])*
        pub struct $name:ident {
            $( $(#[doc = $docs:literal])+ $(#[serde($($form:tt)*)])? pub $field:ident: $type:ty, )*
        }
    )*) => {$(
        $(#[$attribute])*
        pub struct $name {
            $( $(#[doc = $docs])+ $(#[serde($($form)*)])? pub $field: $type, )*
        }

        impl $name {
            /// Its keys, in the order of the struct.
            pub const KEYS: &'static [$crate::settings::Key] = &[
                $( $crate::settings::Key::new(
                    stringify!($field),
                    concat!($($docs, "\n"),+),
                    stringify!($type),
                    concat!($(stringify!($($form)*))?),
                ), )*
            ];
        }
    )*};
}
pub(crate) use settings;
