//! Where schemas come from: files, folders, modules, and the modules on a host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context as _;

use crate::api::{DeploymentList, Direction, ModuleSchemas};
use crate::cli::commands::deployments::deploy;
use crate::cli::commands::project::inspect;
use crate::cli::support::client::Client;
use crate::schemas::{self, EventSchema, FileError, Schema};

/// Schemas that are compared, from one place.
pub(super) struct Side {
    /// The file, folder, module or deployment.
    pub(super) name: String,
    /// The versions of each event, by direction and type.
    pub(super) events: BTreeMap<(Direction, String), Vec<Version>>,
    /// Whether it is one file, which is compared whatever its name is.
    pub(super) is_file: bool,
}

/// A version of an event.
pub(super) struct Version {
    pub(super) name: String,
    pub(super) number: u32,
    pub(super) schema: Schema,
}

impl Side {
    /// Reads a file, folder or module.
    pub(super) async fn read(path: &Path) -> anyhow::Result<Self> {
        let path = path.to_owned();
        // The check of a module takes a while, in which Ctrl-C must end the command.
        tokio::task::spawn_blocking(move || Self::read_now(&path))
            .await
            .context("the check panicked")?
    }

    fn read_now(path: &Path) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        if path.is_dir() {
            return Self::of(name, &schemas::of_folder(path)?);
        }
        if path.extension().is_some_and(|ending| ending == "wasm") {
            let carried = inspect::carried(deploy::read_module(path)?)?;
            return Self::of(name, &carried);
        }
        let schema = schemas::of_file(path)?;
        Ok(Self {
            is_file: true,
            ..Self::of(name, &[schema])?
        })
    }

    fn of(name: String, all: &[EventSchema]) -> anyhow::Result<Self> {
        let mut events = BTreeMap::new();
        for ((direction, event), versions) in schemas::by_event(all) {
            let versions = versions.into_iter().map(|version| {
                let schema = Schema::check(&version.schema);
                let schema = schema.map_err(|unsound| FileError::Unsound {
                    path: name.clone().into(),
                    source: unsound.of(&version.name()),
                })?;
                Ok(Version {
                    name: version.name(),
                    number: version.version,
                    schema,
                })
            });
            let versions = versions.collect::<Result<Vec<_>, FileError>>()?;
            events.insert((direction, event.to_owned()), versions);
        }
        Ok(Self {
            name,
            events,
            is_file: false,
        })
    }

    /// The events that it writes: what it publishes, or all if nothing says which.
    pub(super) fn written_events(&self) -> BTreeSet<&str> {
        let published = |key: &&(Direction, String)| key.0 == Direction::Publishes;
        let knows = self.events.keys().any(|key| published(&key));
        let all = self.events.keys().filter(|key| !knows || published(key));
        all.map(|(_, event)| event.as_str()).collect()
    }

    /// The versions of an event that it writes.
    pub(super) fn written(&self, event: &str) -> &[Version] {
        let of = |direction| self.events.get(&(direction, event.to_owned()));
        let versions = of(Direction::Publishes).or_else(|| of(Direction::Reads));
        versions.map_or(&[], Vec::as_slice)
    }
}

/// What is deployed on a host.
pub(super) struct Deployed {
    /// The deployments whose modules carry schemas of some events that they read.
    pub(super) consumers: Vec<Side>,
    /// All others: nothing is known of what they read.
    pub(super) unknown: Vec<String>,
}

/// Reads which deployments read some events.
pub(super) async fn deployed(client: &Client, events: &BTreeSet<&str>) -> anyhow::Result<Deployed> {
    let list: DeploymentList = client.get(&["v1", "deployments"], &[]).await?;
    let (mut consumers, mut unknown) = (Vec::new(), Vec::new());
    for deployment in list.deployments {
        let mut carried = deployment.module.events.iter();
        let reads = carried.any(|carried| {
            carried.direction == Direction::Reads && events.contains(carried.event.as_str())
        });
        if !reads {
            unknown.push(deployment.name);
            continue;
        }
        let path = ["v1", "deployments", &deployment.name, "schemas"];
        let carried: ModuleSchemas = client.get(&path, &[]).await?;
        let carried: Vec<EventSchema> = carried.schemas.into_iter().map(Into::into).collect();
        consumers.push(Side::of(deployment.name, &carried)?);
    }
    Ok(Deployed { consumers, unknown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_not_there_are_missing() {
        let Err(error) = Side::read_now(Path::new("none.json")) else {
            panic!("there is none")
        };
        let exit = crate::cli::support::exit::exit_of(&error);
        assert_eq!(exit, crate::cli::support::exit::Exit::NotFound);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("a.json");
        std::fs::write(&file, "[]").expect("write");
        let Err(error) = Side::read_now(&file) else {
            panic!("is no schema")
        };
        let exit = crate::cli::support::exit::exit_of(&error);
        assert_eq!(exit, crate::cli::support::exit::Exit::Refused);
    }
}
