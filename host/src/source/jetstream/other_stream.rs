//! Answers of other streams. A stream of the same name in another JetStream domain may store the same
//! subjects, for example in that of a leaf node. Both answer to a message, and only one answer
//! arrives.

use std::time::Duration;

use super::publish::{Answer, Confirmed, Outgoing, PublishError, Publisher};

/// The prefix of the API of a source that names neither a domain nor a prefix.
const DEFAULT_PREFIX: &str = "$JS.API";
/// Pauses before looks for a message that another stream has confirmed: this one may get it a little
/// later.
const LOOK_AFTER: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(20),
    Duration::from_millis(80),
    Duration::from_millis(320),
];

impl Publisher {
    /// Which other stream an answer is of, if it is: one of the same name in another JetStream domain
    /// may store the same subjects, and its answer may come before that of the right one.
    pub(super) async fn other_stream(&self, subject: &str, said: &Answer) -> Option<String> {
        let mut is_own = self.is_own(said);
        if !is_own {
            // The servers of the stream may have got another domain.
            drop(self.stream_info().await);
            is_own = self.is_own(said);
        }
        if is_own {
            self.other.lock().take();
            return None;
        }
        let of = |domain: &str| match domain {
            "" => String::new(),
            domain => format!(" of domain {domain}"),
        };
        let verb = match said.error {
            Some(_) => "refused",
            None => "stored",
        };
        let text = format!(
            "subject {subject} is {verb} by stream {}{}, not by {}{}",
            said.stream,
            of(&said.domain),
            self.settings.stream,
            of(self.domain.lock().as_deref().unwrap_or_default())
        );
        *self.other.lock() = Some(text.clone());
        Some(text)
    }

    /// Whether an answer is of the stream, as far as it is known where the stream is.
    fn is_own(&self, said: &Answer) -> bool {
        let is_named = said.stream == self.settings.stream;
        match (&said.error, self.domain.lock().as_deref()) {
            // A refusal names no domain, and outside of domains no other stream has the subject.
            (Some(_), None | Some("")) => true,
            (Some(_), Some(_)) => is_named || said.stream.is_empty(),
            (None, Some(own)) => is_named && said.domain == own,
            (None, None) => is_named && self.settings.api_prefix == DEFAULT_PREFIX,
        }
    }

    /// What became of a message that another stream has answered to: this one may have stored it as
    /// well, and nobody hears of a second answer.
    pub(super) async fn read_back(
        &self,
        message: &Outgoing,
        other: String,
    ) -> Result<Confirmed, PublishError> {
        for pause in LOOK_AFTER {
            tokio::time::sleep(pause).await;
            match self.own_sequence(message).await {
                // New or not: as one that was there, it proves nothing about the end of the stream.
                Ok(Some(sequence)) => {
                    return Ok(Confirmed {
                        is_duplicate: true,
                        sequence,
                    });
                }
                Ok(None) => {}
                Err(away) => return Err(PublishError::Unknown(format!("{other}; {away}"))),
            }
        }
        Err(PublishError::Unknown(other))
    }
}
