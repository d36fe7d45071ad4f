//! Which page of a list is requested, and how long it may be.

use serde::Deserialize;
use utoipa::IntoParams;

use crate::serve::problem::Problem;
use crate::state::SCAN_ENTRIES_MAX;

/// Most entries of one page.
const PAGE_MAX: usize = 1_000;

/// Which page.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct PageParameters {
    /// What the page before returned as `next`.
    pub(super) after: Option<String>,
    /// Maximum number of entries.
    #[serde(default = "default_limit")]
    #[param(minimum = 1, maximum = 1_000, default = 100, required = false)]
    pub(super) limit: usize,
}

impl PageParameters {
    /// The same, if the limit is allowed.
    pub(super) fn checked(self) -> Result<Self, Problem> {
        if (1..=PAGE_MAX).contains(&self.limit) {
            return Ok(self);
        }
        let limit = self.limit;
        Err(Problem::invalid(format!(
            "limit {limit} is refused; give 1 to {PAGE_MAX}"
        )))
    }
}

/// Default number of entries or events per page.
pub(super) fn default_limit() -> usize {
    100
}

/// Checks the size of a page.
pub(super) fn check_limit(limit: usize) -> Result<(), Problem> {
    if (1..=SCAN_ENTRIES_MAX).contains(&limit) {
        return Ok(());
    }
    Err(Problem::invalid(format!(
        "limit {limit} is refused; ask for 1 to {SCAN_ENTRIES_MAX} a page"
    )))
}
