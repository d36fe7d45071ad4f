//! A projection that takes for granted what not every event has, and panics without it, as modules
//! under development do.

use foldstream_sdk::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Item {
    category: Option<String>,
}

/// The projection.
#[derive(Debug)]
pub struct Stumbling {
    counts: Table<String, u64>,
}

impl Projection for Stumbling {
    fn manifest() -> Manifest<Self> {
        Manifest::new("stumbling")
            .description("Counts items by category")
            .subjects(["items.>"])
    }

    fn open(state: &State) -> Self {
        Self {
            counts: state.table("category"),
        }
    }

    #[expect(clippy::expect_used, reason = "that is what it is for")]
    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let item: Item = event.json()?;
        let category = item.category.expect("an item has a category");
        self.counts.update(&category, |count| *count += 1)?;
        Ok(())
    }
}

projection!(Stumbling);
