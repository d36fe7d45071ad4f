//! The HTTP API as a stranger sees it: plain requests, and answers with status, headers and body.

use std::time::Duration;

use eventsource_stream::{Event, Eventsource};
use foldstream::api;
use futures_util::{Stream, StreamExt};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::wait;

/// A client of one host.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
}

/// What a host answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body.
    pub body: bytes::Bytes,
}

impl Answer {
    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(name)
            .map(|value| value.to_str().expect("our headers are text"))
    }

    /// The position that the answer reflects.
    pub fn position(&self) -> u64 {
        let text = self
            .header("foldstream-position")
            .expect("every answer about a deployment has a position");
        text.parse().expect("a position is a number")
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, of a shape.
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!(
                "answer {} is not as expected: {error}: {}",
                self.status,
                self.text()
            )
        })
    }

    /// The body as any JSON.
    pub fn value(&self) -> Value {
        self.json()
    }

    /// Itself, once the status is checked.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "answer: {}", self.text());
        self
    }

    /// The problem that it reports, once its status, form and type are checked.
    pub fn problem(&self, status: u16, kind: &str) -> api::Problem {
        assert_eq!(self.status.as_u16(), status, "answer: {}", self.text());
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "answer: {}",
            self.text()
        );
        let problem: api::Problem = self.json();
        assert_eq!(
            (problem.kind.as_str(), problem.status),
            (kind, status),
            "answer: {}",
            self.text()
        );
        assert!(
            !problem.title.is_empty() && !problem.detail.is_empty(),
            "answer: {}",
            self.text()
        );
        problem
    }
}

impl Client {
    /// A client of the host at `url`.
    pub fn new(url: &str) -> Self {
        // Another client of this process may have been first; one provider is as good as the other.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // A test that blocks its thread does not notice that the host closed an idle connection, so
        // none stays idle long.
        let http = reqwest::Client::builder()
            .no_proxy()
            .pool_idle_timeout(Duration::from_secs(5))
            .build()
            .expect("a plain client can be built");
        Self {
            http,
            url: url.trim_end_matches('/').to_owned(),
            token: None,
        }
    }

    /// The same with a token.
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Where the host listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A request to a path that begins with a slash.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .timeout(wait::DEADLINE);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request.
    pub async fn send(&self, request: RequestBuilder) -> Answer {
        self.try_send(request).await.expect("the host answers")
    }

    /// Sends a request to a host that may be down.
    pub async fn try_send(&self, request: RequestBuilder) -> Result<Answer, reqwest::Error> {
        let response = request.send().await?;
        // Before the body is read, which uses up the response.
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer {
            status,
            headers,
            body: response.bytes().await?,
        })
    }

    /// GET of a path.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    /// POST of a body.
    pub async fn post(
        &self,
        path: &str,
        content_type: &str,
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        self.send(
            self.request(Method::POST, path)
                .header("content-type", content_type)
                .body(body),
        )
        .await
    }

    /// Uploads a module; `query` is the rest of the address, such as `?name=a&source=orders`.
    pub async fn upload(&self, module: Vec<u8>, query: &str) -> Answer {
        self.post(
            &format!("/v1/deployments{query}"),
            "application/wasm",
            module,
        )
        .await
    }

    /// Deploys a module under a name, which must succeed.
    pub async fn deploy(&self, name: &str, module: &[u8]) -> api::Deployed {
        let answer = self.upload(module.to_vec(), &format!("?name={name}")).await;
        assert!(answer.status.is_success(), "deploy: {}", answer.text());
        answer.json()
    }

    /// Deploys a module with further parameters, such as `&strategy=rebuild`, which must succeed.
    pub async fn deploy_with(&self, name: &str, module: &[u8], parameters: &str) -> api::Deployed {
        let answer = self
            .upload(module.to_vec(), &format!("?name={name}{parameters}"))
            .await;
        assert!(answer.status.is_success(), "deploy: {}", answer.text());
        answer.json()
    }

    /// POST of nothing to a deployment, such as `promote`.
    pub async fn act(&self, name: &str, action: &str) -> Answer {
        self.post(
            &format!("/v1/deployments/{name}/{action}"),
            "application/json",
            "",
        )
        .await
    }

    /// The generations of a deployment.
    pub async fn generations(&self, name: &str) -> Vec<api::Generation> {
        self.get(&format!("/v1/deployments/{name}/generations"))
            .await
            .expect(200)
            .json::<api::GenerationList>()
            .generations
    }

    /// Waits until a generation has a status.
    pub async fn becomes(
        &self,
        name: &str,
        number: u64,
        status: api::GenerationStatus,
    ) -> api::Generation {
        wait::until(
            &format!("generation {number} of {name} to be {}", status.name()),
            async || {
                let generations = self.generations(name).await;
                generations
                    .into_iter()
                    .find(|generation| generation.number == number && generation.status == status)
            },
        )
        .await
    }

    /// Waits until a generation has passed its probation.
    pub async fn passed_probation(&self, number: u64) {
        let passed = format!("generation {number}");
        wait::until("the probation to pass", || async {
            let audit = self.get("/v1/audit?limit=10").await.expect(200);
            let entries = audit.value()["entries"].as_array().cloned();
            let is_passed =
                |entry: &Value| entry["action"] == "inherit-passed" && entry["detail"] == *passed;
            entries
                .unwrap_or_default()
                .iter()
                .any(is_passed)
                .then_some(())
        })
        .await;
    }

    /// How a deployment is.
    pub async fn show(&self, name: &str) -> api::Deployment {
        self.get(&format!("/v1/deployments/{name}"))
            .await
            .expect(200)
            .json()
    }

    /// Waits until a deployment satisfies a condition.
    pub async fn show_when(
        &self,
        name: &str,
        what: &str,
        condition: impl Fn(&api::Deployment) -> bool,
    ) -> api::Deployment {
        let last = std::cell::RefCell::new(String::new());
        let observe = async || {
            let answer = self.get(&format!("/v1/deployments/{name}")).await;
            last.replace(answer.text());
            // Its last answer is in the message of a failure, whatever it was.
            (answer.status == 200)
                .then(|| answer.json())
                .filter(&condition)
        };
        let begin = std::time::Instant::now();
        loop {
            if let Some(found) = observe().await {
                return found;
            }
            assert!(
                begin.elapsed() < wait::DEADLINE,
                "waited in vain for {name} to {what}: {}",
                last.borrow()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a deployment has applied everything up to a sequence.
    pub async fn reached(&self, name: &str, sequence: u64) -> api::Deployment {
        self.show_when(name, &format!("reach {sequence}"), |deployment| {
            deployment.position >= sequence
        })
        .await
    }

    /// Waits until a deployment stopped at an error.
    pub async fn failed(&self, name: &str) -> (api::Deployment, api::Failure) {
        let deployment = self
            .show_when(name, "fail", |deployment| {
                deployment.state == api::DeploymentState::Failed && deployment.failure.is_some()
            })
            .await;
        let failure = deployment.failure.clone().expect("checked above");
        (deployment, failure)
    }

    /// The value of a key.
    pub async fn entry(&self, name: &str, key: &str) -> Answer {
        self.get(&format!("/v1/deployments/{name}/entries/{key}"))
            .await
    }

    /// All entries under a prefix, page by page, at one position or later ones.
    pub async fn entries(&self, name: &str, prefix: &str) -> Vec<api::Entry> {
        let mut all = Vec::new();
        // Pages may be of later positions: a test that minds pauses the deployment.
        let mut after = None;
        loop {
            let request = self
                .request(Method::GET, &format!("/v1/deployments/{name}/entries"))
                .query(&[("prefix", prefix), ("limit", "1000")]);
            let request = match &after {
                Some(key) => request.query(&[("after", key)]),
                None => request,
            };
            let page: api::EntryPage = self.send(request).await.expect(200).json();
            all.extend(page.entries);
            match page.next {
                Some(next) => after = Some(next),
                None => return all,
            }
        }
    }

    /// Asks a query with JSON arguments.
    pub async fn query(&self, name: &str, query: &str, args: &Value) -> Answer {
        let path = format!("/v1/deployments/{name}/queries/{query}");
        self.post(&path, "application/json", args.to_string()).await
    }

    /// Appends events to the embedded log, which must succeed.
    pub async fn append(&self, events: &[api::NewEvent]) -> api::Appended {
        let append = api::Append {
            events: events.to_vec(),
            expected_last_sequence: None,
            expected_last_subject_sequence: None,
            expected_subject: None,
        };
        let body = serde_json::to_vec(&append).expect("our types are JSON");
        self.post("/v1/events", "application/json", body)
            .await
            .expect(200)
            .json()
    }

    /// The same of a host that may be down, or not ready yet: none then.
    pub async fn try_events(&self, path: &str, last_event_id: Option<&str>) -> Option<Events> {
        // Without the client's time limit, which would end a stream.
        let request = self.http.get(format!("{}{path}", self.url));
        let request = match last_event_id {
            Some(id) => request.header("last-event-id", id),
            None => request,
        };
        let response = request
            .send()
            .await
            .ok()
            .filter(|response| response.status() == 200)?;
        let stream = response
            .bytes_stream()
            .eventsource()
            .filter_map(async |event| event.ok());
        Some(Events {
            stream: Box::pin(stream),
        })
    }

    /// Opens a stream of server-sent events.
    pub async fn events(&self, path: &str, last_event_id: Option<&str>) -> Events {
        let request = self.http.get(format!("{}{path}", self.url));
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let request = match last_event_id {
            Some(id) => request.header("last-event-id", id),
            None => request,
        };
        let response = request.send().await.expect("the host answers");
        assert_eq!(response.status(), 200, "watch {path}");
        let stream = response
            .bytes_stream()
            .eventsource()
            .filter_map(async |event| event.ok());
        Events {
            stream: Box::pin(stream),
        }
    }
}

/// A stream of server-sent events.
pub struct Events {
    stream: std::pin::Pin<Box<dyn Stream<Item = Event> + Send>>,
}

impl Events {
    /// The next one; none when the stream ended.
    pub async fn next(&mut self) -> Option<Event> {
        tokio::time::timeout(wait::DEADLINE, self.stream.next())
            .await
            .expect("an event or a heartbeat arrives")
    }

    /// The next one of a kind, heartbeats and others left out.
    pub async fn next_of(&mut self, kind: &str) -> Event {
        self.next_of_any(&[kind]).await
    }

    /// The next one of some kinds.
    pub async fn next_of_any(&mut self, kinds: &[&str]) -> Event {
        loop {
            let event = self.next().await.expect("the watch continues");
            if kinds.contains(&event.event.as_str()) {
                return event;
            }
        }
    }

    /// The next change.
    pub async fn change(&mut self) -> api::Change {
        serde_json::from_str(&self.next_of("change").await.data).expect("a change is JSON")
    }
}
