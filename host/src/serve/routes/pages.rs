//! Which page of a list is requested.

use serde::Deserialize;
use utoipa::IntoParams;

use super::reads;
use crate::serve::problem::Problem;

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
    #[serde(default = "reads::page")]
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
