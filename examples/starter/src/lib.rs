//! Counts visits per page: the smallest useful projection, to begin from.

use foldstream_sdk::prelude::*;

/// Everything it keeps, in tables. Entries of this one have keys such as `page/home`.
struct Starter {
    pages: Table<String, u64>,
}

impl Projection for Starter {
    /// What it is called, what it reads, and what it answers.
    fn manifest() -> Manifest<Self> {
        Manifest::new("starter")
            .description("Counts visits per page")
            .subjects(["visits.*"])
            .query(
                "visits",
                "How often a page was visited, by its name: \"home\"",
                |starter: &Self, page: String| {
                    starter.pages.get(&page)?.ok_or(QueryError::NotFound)
                },
            )
    }

    fn open(state: &State) -> Self {
        Self {
            pages: state.table("page"),
        }
    }

    /// Applies one event. The page is the second token of the subject, as in `visits.home`.
    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        self.pages.update(event.token(2)?, |visits| *visits += 1)?;
        Ok(())
    }
}

projection!(Starter);

#[cfg(test)]
mod tests {
    use super::*;
    use foldstream_sdk::testing::{Harness, event, json};

    #[test]
    fn visits_are_counted_per_page() {
        let mut starter = Harness::<Starter>::new();
        let visit = |page: &str| event(&format!("visits.{page}"), json!({}));
        starter.given([visit("home"), visit("about"), visit("home")]);

        assert_eq!(starter.query("visits", json!("home")), Ok(json!(2)));
        assert_eq!(starter.get("page/about"), Some(json!(1)));
        starter.assert_same_for_any_batching();
    }
}
