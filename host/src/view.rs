//! Reads the events of a source independently of any deployment.

use tokio::sync::watch;

pub(crate) use crate::source::{LookError, Page, Wanted};

use crate::source::Source;

/// A view of the events of a source. Leaves no consumer behind.
#[derive(Clone, Debug)]
pub struct EventView(Source);

impl EventView {
    /// Over a source.
    pub(crate) fn new(source: Source) -> Self {
        Self(source)
    }

    /// Name of the stream.
    pub fn stream(&self) -> String {
        self.0.stream()
    }

    /// The last sequence of an embedded log, as it rises; none for a stream, or a log that is not
    /// open yet, which must be polled.
    pub fn log_head(&self) -> Option<watch::Receiver<u64>> {
        Some(self.0.open_log()?.head())
    }

    /// Some of its events; an error if it can't be reached.
    pub async fn page(&self, wanted: Wanted) -> Result<Page, LookError> {
        self.0.page(wanted).await
    }
}
