//! Sources as they were configured.

use std::collections::BTreeMap;
use std::path::PathBuf;

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
    let default =
        BTreeMap::from([(DEFAULT_SOURCE.to_owned(), config::Source::Embedded(config::EmbeddedSource::default()))]);
    let configured = if config.sources.is_empty() { &default } else { &config.sources };
    let mut shares = Vec::new();
    let mut logs = Vec::new();
    let mut policies = BTreeMap::new();
    let mut sources = BTreeMap::new();
    for (name, source) in configured {
        match source {
            config::Source::Embedded(settings) => {
                let share = caches.share(log::Options::default().cache_bytes as u64);
                let options = settings.options(name, share.bytes());
                logs.push((name, folder.log(name), options));
                policies.insert(name.clone(), settings.missing);
                shares.push(share);
            }
            config::Source::Jetstream(settings) => drop(sources.insert(name.clone(), jetstream(name, settings)?)),
        }
    }
    for (name, log) in open_all(logs) {
        let on_missing = policies.get(name).copied().unwrap_or_default();
        sources.insert(name.clone(), Source::Embedded(Embedded::new(log?).on_missing(on_missing)));
    }
    Ok((sources, shares))
}

type Opening<'a> = (&'a String, PathBuf, log::Options);

/// Opens logs alongside each other: one that has to be repaired takes long.
fn open_all(logs: Vec<Opening<'_>>) -> Vec<(&String, Result<Log, log::Error>)> {
    std::thread::scope(|scope| {
        let opening: Vec<_> = logs
            .into_iter()
            .map(|(name, path, options)| (name, scope.spawn(move || Log::open(&path, options))))
            .collect();
        let opened = opening.into_iter().map(|(name, thread)| {
            let log = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (name, log)
        });
        opened.collect()
    })
}

/// A JetStream source from its settings; reads the files that they name.
pub fn jetstream(name: &str, settings: &config::JetStreamSource) -> Result<Source, Error> {
    let options = settings.options(name).map_err(|error| Error::Source(error.to_string()))?;
    JetStream::new(options).map(Source::JetStream).map_err(|error| Error::Source(error.to_string()))
}
