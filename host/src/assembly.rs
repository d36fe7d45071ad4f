//! Sources as they were configured.

use std::collections::BTreeMap;

use crate::caches::{Caches, Share};
use crate::config::{self, Config};
use crate::folder::Folder;
use crate::log::{self, Log};
use crate::source::Source;
use crate::source::embedded::Embedded;
use crate::source::jetstream::JetStream;
use crate::supervisor::Error;

/// Name of the source of a host that configures none: an embedded log.
pub const DEFAULT_SOURCE: &str = "events";

/// Number of the embedded logs that are configured.
pub fn logs(config: &Config) -> usize {
    let embedded = |source: &&config::Source| matches!(source, config::Source::Embedded(_));
    if config.sources.is_empty() { 1 } else { config.sources.values().filter(embedded).count() }
}

/// The sources of a host, and what the caches of its logs hold of the budget.
pub type Opened = (BTreeMap<String, Source>, Vec<Share>);

/// Opens every configured source; connecting to servers happens later. Blocking.
pub fn sources(config: &Config, folder: &Folder, caches: &Caches) -> Result<Opened, Error> {
    let mut shares = Vec::new();
    let mut embedded = |name: &str, settings: &config::EmbeddedSource| {
        let share = caches.share(log::Options::default().cache_bytes as u64);
        let options = settings.options(name, share.bytes());
        shares.push(share);
        Ok::<_, Error>(Source::Embedded(Embedded::new(Log::open(&folder.log(name), options)?)))
    };
    if config.sources.is_empty() {
        let source = embedded(DEFAULT_SOURCE, &config::EmbeddedSource::default())?;
        return Ok((BTreeMap::from([(DEFAULT_SOURCE.to_owned(), source)]), shares));
    }
    let open = |(name, source): (&String, &config::Source)| {
        let source = match source {
            config::Source::Embedded(settings) => embedded(name, settings)?,
            config::Source::Jetstream(settings) => jetstream(name, settings)?,
        };
        Ok((name.clone(), source))
    };
    let sources = config.sources.iter().map(open).collect::<Result<_, Error>>()?;
    Ok((sources, shares))
}

/// A JetStream source from its settings; reads the files that they name.
pub fn jetstream(name: &str, settings: &config::JetStreamSource) -> Result<Source, Error> {
    let options = settings.options(name).map_err(|error| Error::Source(error.to_string()))?;
    JetStream::new(options).map(Source::JetStream).map_err(|error| Error::Source(error.to_string()))
}
