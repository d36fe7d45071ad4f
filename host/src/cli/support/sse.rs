//! Follows a stream of server-sent events, across lost connections and restarts of the host.

use std::time::Duration;

use eventsource_stream::{Event, Eventsource as _};
use futures_util::StreamExt as _;
use reqwest::{Method, Response};

use super::client::{Client, Error};
use super::output::Output;

/// Longest silence: the host sends its position every few seconds.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Pauses between attempts to reconnect.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Subscription<'a> {
    pub client: &'a Client,
    /// Path of the stream.
    pub path: Vec<&'a str>,
    /// Parameters, except the position to start from.
    pub parameters: Vec<(&'static str, String)>,
    /// Position to start from; none starts now.
    pub after: Option<u64>,
    /// The output for messages.
    pub output: Output,
}

impl Subscription<'_> {
    /// Passes each event to `handle`, until an error that waiting cannot cure.
    pub(crate) async fn follow(
        self,
        mut handle: impl FnMut(&Event) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut last = None;
        let mut response = self.connect(last.as_deref()).await?;
        loop {
            let reason = self.drain(response, &mut last, &mut handle).await?;
            self.output.note(&format!("{reason}; reconnecting"));
            response = self.reconnect(last.as_deref()).await?;
            self.output.note("connected");
        }
    }

    async fn connect(&self, last: Option<&str>) -> Result<Response, Error> {
        let mut request = self
            .client
            .request(Method::GET, &self.path)
            .query(&self.parameters);
        if let Some(after) = self.after {
            request = request.query(&[("after", after)]);
        }
        // Takes precedence over `after`, and also says to which state the position belongs.
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        self.client.stream(request).await
    }

    async fn reconnect(&self, last: Option<&str>) -> Result<Response, Error> {
        let mut pause = PAUSE_FIRST;
        loop {
            match self.connect(last).await {
                Ok(response) => return Ok(response),
                Err(error) if error.may_pass() => self.output.detail(&error.to_string()),
                Err(error) => return Err(error),
            }
            // Drawn, so that many clients do not come back at the same moment.
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Reads until the connection ends; returns the reason.
    async fn drain(
        &self,
        response: Response,
        last: &mut Option<String>,
        handle: &mut impl FnMut(&Event) -> anyhow::Result<()>,
    ) -> anyhow::Result<String> {
        let mut events = response.bytes_stream().eventsource();
        loop {
            let event = match tokio::time::timeout(SILENCE_MAX, events.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(error))) => return Ok(format!("the connection broke ({error})")),
                Ok(None) => return Ok("the host closed the connection".to_owned()),
                Err(_) => {
                    return Ok(format!(
                        "the host was silent for {} s",
                        SILENCE_MAX.as_secs()
                    ));
                }
            };
            handle(&event)?;
            if !event.id.is_empty() {
                *last = Some(event.id);
            }
        }
    }
}
