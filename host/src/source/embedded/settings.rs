//! Settings of an embedded log, and the log that a host opens by them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Embedded;
use crate::log::{self, Opening};
use crate::settings::{Findings, settings, size};
use crate::source::kind::{Begun, HostParts, KindSettings, NotBegun, UnusableSource};
use crate::source::{OnMissing, Source};

settings! {
    /// An event log in the data folder.
    #[derive(Clone, Debug, Default, Serialize, Deserialize)]
    #[serde(default)]
    pub struct EmbeddedSettings {
        /// Remove events older than this. For example `"30days"`.
        #[serde(with = "humantime_serde")]
        pub max_age: Option<Duration>,
        /// Remove the oldest events beyond this many bytes. For example `"10GiB"`.
        #[serde(with = "size::optional")]
        pub max_bytes: Option<u64>,
        /// How long message ids are remembered; the default is 2 minutes. For example `"1h"`.
        #[serde(with = "humantime_serde")]
        pub duplicate_window: Option<Duration>,
        /// What to do if events are gone that were not applied: `stop` stops the deployment until
        /// an operator accepts it, `count` counts them and continues. For example `"stop"`.
        pub missing: OnMissing,
    }
}

impl EmbeddedSettings {
    /// Options of the log, with a cache of this many bytes.
    fn options(&self, name: &str, cache_bytes: u64) -> log::Options {
        let defaults = log::Options::default();
        log::Options {
            name: name.to_owned(),
            max_age: self.max_age,
            max_bytes: self.max_bytes,
            duplicate_window: self.duplicate_window.unwrap_or(defaults.duplicate_window),
            cache_bytes: usize::try_from(cache_bytes).unwrap_or(usize::MAX),
            ..defaults
        }
    }
}

impl KindSettings for EmbeddedSettings {
    fn check(&self, findings: &mut Findings, name: &str) {
        if let Some(age) = self.max_age {
            findings.positive(&format!("sources.{name}.max_age"), age);
        }
        if let Some(bytes) = self.max_bytes {
            findings.positive(&format!("sources.{name}.max_bytes"), bytes);
        }
    }

    fn is_log(&self) -> bool {
        true
    }

    fn without_host(&self, _: &str) -> Option<Result<Source, UnusableSource>> {
        None
    }

    /// The log opens on a thread of its own.
    fn begin(&self, name: &str, parts: HostParts<'_>) -> Result<Begun, NotBegun> {
        let share = parts
            .caches
            .share(log::Options::default().cache_bytes as u64);
        let options = log::Options {
            room: Some(parts.room.clone()),
            ..self.options(name, share.bytes())
        };
        let opening = Opening::begin(parts.log_file, options)?;
        let source = Embedded::over(opening.clone()).on_missing(self.missing);
        Ok(Begun {
            source: Source::Embedded(source),
            opening: Some((opening, share)),
        })
    }
}
