//! What a JetStream stream does as a kind of source.

use super::{JetStream, Reader};
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

impl Kind for JetStream {
    type Reader = Reader;

    fn read(&self, request: Request, status: StatusSender, ahead: Option<&ReadAhead>) -> Reader {
        match ahead {
            Some(ahead) => self.read_within(request, status, ahead),
            None => self.read(request, status),
        }
    }

    fn place(&self) -> String {
        self.servers()
    }

    fn stream(&self) -> String {
        self.stream().to_owned()
    }

    fn on_missing(&self) -> OnMissing {
        self.on_missing()
    }

    async fn time_behind(&self, position: u64, subjects: &SubjectSet) -> Waiting {
        self.time_behind(position, subjects.covering().as_str())
            .await
    }

    async fn lost(&self, had: &Had<'_>) -> Result<Option<Lost>, LookError> {
        self.lost(had).await
    }

    async fn hides_losses(&self) -> Result<bool, LookError> {
        self.hides_losses().await
    }

    async fn contradiction(&self, checkpoint: &Checkpoint) -> Result<Option<Error>, LookError> {
        self.contradiction(checkpoint).await
    }

    async fn check_readable(&self) -> Result<(), Error> {
        self.check_readable().await
    }

    async fn event(&self, sequence: u64) -> Result<Result<Event, u64>, LookError> {
        self.event(sequence).await
    }

    async fn page(&self, wanted: Wanted) -> Result<Page, LookError> {
        self.page(&wanted).await
    }

    async fn info(&self) -> Info {
        self.info().await
    }

    fn log(&self) -> Option<Result<Log, log::Error>> {
        None
    }

    fn outlet(&self) -> Outlet {
        Outlet::Stream(Box::new(self.publisher()))
    }

    fn takes_replies(&self) -> bool {
        true
    }

    /// A stream that is away is reported elsewhere.
    async fn stores(&self, subject: &str) -> bool {
        self.publisher().stores(subject).await.unwrap_or(true)
    }
}

impl Read for Reader {
    async fn next(&mut self) -> Result<Batch, Error> {
        self.next().await
    }
}
