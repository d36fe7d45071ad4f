//! Lists that the host returns page by page.

use super::output::Output;

/// Which page to show.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PageArgs {
    /// Maximum number of rows.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    limit: u16,
    /// Start after the page that ended with this text.
    #[arg(long, value_name = "NEXT")]
    after: Option<String>,
}

impl PageArgs {
    /// The parameters of the request.
    pub(crate) fn query(self) -> Vec<(&'static str, String)> {
        let mut query = vec![("limit", self.limit.to_string())];
        query.extend(self.after.map(|after| ("after", after)));
        query
    }
}

/// Says how to get the next page, or `nothing` if this one is empty.
pub(crate) fn note_end<T>(output: Output, rows: &[T], next: Option<&str>, nothing: &str) {
    match next {
        Some(next) => output.note(&format!("there may be more: use --after '{next}'")),
        None if rows.is_empty() => output.note(nothing),
        None => {}
    }
}
