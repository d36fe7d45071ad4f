//! Sources as they were configured.

use std::collections::BTreeMap;

use crate::config::{self, Config};
use crate::folder::Folder;
use crate::log::Log;
use crate::source::Source;
use crate::source::embedded::Embedded;
use crate::source::jetstream::JetStream;
use crate::supervisor::Error;

/// Name of the source of a host that configures none: an embedded log.
pub const DEFAULT_SOURCE: &str = "events";

/// Opens every configured source; connecting to servers happens later. Blocking.
pub fn sources(config: &Config, folder: &Folder) -> Result<BTreeMap<String, Source>, Error> {
    if config.sources.is_empty() {
        let source = embedded(DEFAULT_SOURCE, &config::EmbeddedSource::default(), folder)?;
        return Ok(BTreeMap::from([(DEFAULT_SOURCE.to_owned(), source)]));
    }
    let open = |(name, source): (&String, &config::Source)| {
        let source = match source {
            config::Source::Embedded(settings) => embedded(name, settings, folder)?,
            config::Source::Jetstream(settings) => jetstream(name, settings)?,
        };
        Ok((name.clone(), source))
    };
    config.sources.iter().map(open).collect()
}

fn embedded(name: &str, settings: &config::EmbeddedSource, folder: &Folder) -> Result<Source, Error> {
    Ok(Source::Embedded(Embedded::new(Log::open(&folder.log(name), settings.options(name))?)))
}

/// A JetStream source from its settings; reads the files that they name.
pub fn jetstream(name: &str, settings: &config::JetStreamSource) -> Result<Source, Error> {
    let options = settings.options(name).map_err(|error| Error::Source(error.to_string()))?;
    JetStream::new(options).map(Source::JetStream).map_err(|error| Error::Source(error.to_string()))
}
