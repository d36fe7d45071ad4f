//! Deployments that were deleted, and whose runners have not ended yet.

use std::collections::BTreeSet;

/// The name of a deleted deployment whose runners are ending; dropping it frees the name.
pub(crate) struct Ending<'a> {
    names: &'a tokio::sync::watch::Sender<BTreeSet<String>>,
    name: String,
}

impl<'a> Ending<'a> {
    pub(crate) fn begin(
        names: &'a tokio::sync::watch::Sender<BTreeSet<String>>,
        name: &str,
    ) -> Self {
        names.send_if_modified(|names| names.insert(name.to_owned()));
        Self {
            names,
            name: name.to_owned(),
        }
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.names
            .send_if_modified(|names| names.remove(&self.name));
    }
}
