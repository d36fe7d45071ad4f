//! What the embedded log does as a kind of source.

use tokio::task::spawn_blocking;

use super::{Embedded, Reader};
use crate::batch::Batch;
use crate::event::Event;
use crate::log::{self, Log};
use crate::memory::read_ahead::ReadAhead;
use crate::position::Checkpoint;
use crate::source::kind::{Kind, Read};
use crate::source::{
    Error, Had, Info, LookError, Lost, OnMissing, Outlet, Page, Request, StatusSender, Waiting,
    Wanted,
};
use crate::subject::SubjectSet;

impl Kind for Embedded {
    type Reader = Reader;

    /// A log is read only when a batch is wanted, so it needs no budget.
    fn read(&self, request: Request, status: StatusSender, _: Option<&ReadAhead>) -> Reader {
        self.read(request, status)
    }

    fn place(&self) -> String {
        "the data folder".to_owned()
    }

    fn stream(&self) -> String {
        self.stream()
    }

    fn on_missing(&self) -> OnMissing {
        self.what_is_missing()
    }

    async fn time_behind(&self, position: u64, subjects: &SubjectSet) -> Waiting {
        let (source, subjects) = (self.clone(), subjects.clone());
        spawn_blocking(move || source.time_behind(position, &subjects))
            .await
            .unwrap_or(Waiting::Unknown)
    }

    async fn lost(&self, had: &Had<'_>) -> Result<Option<Lost>, LookError> {
        Ok(self.lost(had.after, had.through)?)
    }

    async fn hides_losses(&self) -> Result<bool, LookError> {
        Ok(false)
    }

    async fn contradiction(&self, checkpoint: &Checkpoint) -> Result<Option<Error>, LookError> {
        let (source, checkpoint) = (self.clone(), checkpoint.clone());
        Ok(spawn_blocking(move || source.contradiction(&checkpoint)).await??)
    }

    async fn check_readable(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn event(&self, sequence: u64) -> Result<Result<Event, u64>, LookError> {
        let source = self.clone();
        Ok(spawn_blocking(move || source.event(sequence)).await??)
    }

    async fn page(&self, wanted: Wanted) -> Result<Page, LookError> {
        let source = self.clone();
        Ok(spawn_blocking(move || source.page(&wanted)).await??)
    }

    async fn info(&self) -> Info {
        self.info()
    }

    fn log(&self) -> Option<Result<Log, log::Error>> {
        Some(self.log())
    }

    fn outlet(&self) -> Outlet {
        Outlet::Log(self.clone())
    }

    /// Replies leave over NATS.
    fn takes_replies(&self) -> bool {
        false
    }

    /// A log takes every subject.
    async fn stores(&self, _: &str) -> bool {
        true
    }
}

impl Read for Reader {
    async fn next(&mut self) -> Result<Batch, Error> {
        self.next().await
    }
}
