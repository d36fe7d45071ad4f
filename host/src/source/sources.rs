//! The configured sources, by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Source;

/// No source of a name is configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no source {name}; the configuration has: {configured}")]
pub struct Unknown {
    /// The name.
    pub name: String,
    /// The names of the configured sources.
    pub configured: String,
}

/// Why no source can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotChosen {
    /// None has that name.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// No name was given, and these are configured.
    #[error("this host has several sources; choose one with --source: {0}")]
    Several(String),
}

/// The configured sources, by name. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Sources(Arc<BTreeMap<String, Source>>);

impl From<BTreeMap<String, Source>> for Sources {
    fn from(sources: BTreeMap<String, Source>) -> Self {
        Self(Arc::new(sources))
    }
}

impl Sources {
    /// A source, if it is configured.
    pub fn get(&self, name: &str) -> Option<&Source> {
        self.0.get(name)
    }

    /// A source; an error that names the others if it is not configured.
    pub fn known(&self, name: &str) -> Result<&Source, Unknown> {
        self.get(name).ok_or_else(|| Unknown {
            name: name.to_owned(),
            configured: self.names_listed(),
        })
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Source)> {
        self.0.iter().map(|(name, source)| (name.as_str(), source))
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> impl Iterator<Item = &Source> {
        self.0.values()
    }

    /// All of them, for a runner.
    pub(crate) fn by_name(&self) -> Arc<BTreeMap<String, Source>> {
        Arc::clone(&self.0)
    }

    /// The name of a source; without one, that of the only source.
    pub fn choose(&self, name: Option<&str>) -> Result<String, NotChosen> {
        match name {
            Some(name) => Ok(self.known(name).map(|_| name.to_owned())?),
            None if self.0.len() == 1 => Ok(self.0.keys().next().expect("there is one").clone()),
            None => Err(NotChosen::Several(self.names_listed())),
        }
    }

    fn names_listed(&self) -> String {
        let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
        names.join(", ")
    }
}
