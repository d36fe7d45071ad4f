//! Opens the configured sources.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Error;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::memory::caches::{Caches, Share};
use crate::room::Room;
use crate::source::{HostParts, NotBegun, Source, SourceSettings};

/// Name of the default source, an embedded log, if none is configured.
pub(crate) const DEFAULT_SOURCE: &str = "events";

/// How long a host waits for its logs before it answers without them: most open at once, and a log
/// that cannot be opened at all is an error at the start. A log that needs repair takes longer.
const OPEN_WAIT: Duration = Duration::from_secs(2);

/// Number of configured embedded logs.
pub(crate) fn logs(config: &Config) -> usize {
    if config.sources.is_empty() {
        1
    } else {
        let logs = config.sources.values().filter(|source| source.is_log());
        logs.count()
    }
}

/// The sources of a host, and the shares of the cache budget that its logs hold.
pub(crate) type Opened = (BTreeMap<String, Source>, Vec<Share>);

/// Opens every configured source, and the logs in parallel; connections to servers are made later.
/// Blocking.
pub(crate) fn sources(
    config: &Config,
    (folder, room): (&DataDir, &Room),
    caches: &Caches,
) -> Result<Opened, Error> {
    let default = BTreeMap::from([(
        DEFAULT_SOURCE.to_owned(),
        SourceSettings::Embedded(Box::default()),
    )]);
    let configured = if config.sources.is_empty() {
        &default
    } else {
        &config.sources
    };
    let mut shares = Vec::new();
    let mut logs = Vec::new();
    let mut sources = BTreeMap::new();
    // In the order of names, so that each start gives a log the same share.
    for (name, settings) in configured {
        let parts = HostParts {
            log_file: folder.log(name),
            room,
            caches,
        };
        let begun = settings.begin(name, parts).map_err(|error| match error {
            NotBegun::Log(error) => Error::from(error),
            NotBegun::Unusable(error) => Error::Source(error.to_string()),
        })?;
        if let Some((opening, share)) = begun.opening {
            logs.push(opening);
            shares.push(share);
        }
        sources.insert(name.clone(), begun.source);
    }
    // One time for all: they open at the same time.
    let until = Instant::now() + OPEN_WAIT;
    let mut failed = None;
    let mut can_read = sources.len() > logs.len();
    for opening in logs {
        match opening.wait(until) {
            Ok(()) => can_read = true,
            // One error is enough to explain why nothing can be read.
            Err(error) => failed = Some(error),
        }
    }
    // One log that is damaged does not stop the sources next to it. If there is no other source,
    // the host could do nothing, so its start fails where an operator sees it.
    match failed.filter(|_| !can_read) {
        Some(error) => Err(error.into()),
        None => Ok((sources, shares)),
    }
}
