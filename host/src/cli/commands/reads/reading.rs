//! Which state a read is of, as options of commands.

use crate::api::EntryPage;
use crate::cli::support::client::{Client, Error};
use crate::cli::support::output::Output;
use crate::cli::support::progress::Progress;
use crate::cli::support::wait_until_live::Patience;

/// Which state to read.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Reading {
    /// Wait until the state reflects this sequence.
    #[arg(long, value_name = "SEQUENCE")]
    at_least: Option<u64>,
    /// How long to wait for --at-least, such as `500ms` or `5s`.
    #[arg(
        long,
        value_name = "DURATION",
        requires = "at_least",
        conflicts_with = "as_of"
    )]
    timeout: Option<humantime::Duration>,
    /// Read this generation, even if it is not the active one: a candidate, or the previous one.
    #[arg(long, value_name = "NUMBER")]
    generation: Option<u64>,
    /// Read the state right after this sequence, or at this time. The host folds it separately,
    /// which takes a while the first time.
    #[arg(long, value_name = "SEQUENCE|TIME", conflicts_with_all = ["at_least", "generation"])]
    as_of: Option<String>,
    /// Read it even if events that were applied are gone from the stream.
    #[arg(long, requires = "as_of", conflicts_with_all = ["at_least", "generation"])]
    accept_missing: bool,
}

impl Reading {
    /// The API parameters for these options.
    pub(crate) fn parameters(&self) -> Vec<(&'static str, String)> {
        let mut parameters = Vec::new();
        parameters.extend(
            self.at_least
                .map(|sequence| ("at-least", sequence.to_string())),
        );
        parameters.extend(
            self.timeout
                .map(|timeout| ("timeout", timeout.to_string().replace(' ', ""))),
        );
        parameters.extend(
            self.generation
                .map(|generation| ("generation", generation.to_string())),
        );
        if let Some(moment) = &self.as_of {
            parameters.push(("as-of", moment.clone()));
        }
        parameters.extend(
            self.accept_missing
                .then(crate::cli::commands::deployments::deploy::accept_missing),
        );
        parameters
    }

    /// Continues with the generation that answered. An as-of read has one generation anyway, and a
    /// host without generations names none.
    pub(crate) fn pin(&mut self, generation: u64) {
        if generation > 0 && self.as_of.is_none() {
            self.generation = Some(generation);
        }
    }

    /// Waits until the past state is prepared; the current state needs no such wait.
    pub(crate) async fn prepared(
        &self,
        client: &Client,
        name: &str,
        output: Output,
    ) -> anyhow::Result<()> {
        let Some(moment) = &self.as_of else {
            return Ok(());
        };
        let mut progress = Progress::new(&format!("{name} as of {moment}"), output);
        let mut patience = Patience::new(None);
        loop {
            let mut parameters = vec![
                ("as-of", moment.clone()),
                ("limit", "1".to_owned()),
                ("timeout", "500ms".to_owned()),
            ];
            parameters.extend(
                self.accept_missing
                    .then(crate::cli::commands::deployments::deploy::accept_missing),
            );
            match client
                .get::<EntryPage>(&["v1", "deployments", name, "entries"], &parameters)
                .await
            {
                Ok(_) => return Ok(()),
                Err(Error::Problem(problem)) if problem.kind == "not-ready" => {
                    patience.heard();
                    progress.wait(&problem.detail);
                }
                Err(error) => patience.bear(error, &progress)?,
            }
            patience.pause().await;
        }
    }
}
