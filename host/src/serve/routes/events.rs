//! Events: append to the embedded log; read and tail any source.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use axum::{Extension, Json};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;
use utoipa::IntoParams;

use super::pages;
use crate::api::{self, PositionMark};
use crate::cloudevents::{BATCH_MEDIA_TYPE, SubjectTemplate, Written};
use crate::event::Event;
use crate::host;
use crate::log::{self, Log};
use crate::serve::append_cloudevents::{self, AppendOptions};
use crate::serve::auth::Holder;
use crate::serve::capacity::{PageRoom, acquire};
use crate::serve::extract::{self, Listener, Parameters};
use crate::serve::problem::{Kind, Problem};
use crate::serve::sse::{self, Ended, HEARTBEAT, Sender};
use crate::serve::wait::Waits;
use crate::serve::{App, append_body, json, position};
use crate::subject::SubjectSet;
use crate::view::{EventView, LookError, Wanted};

/// Size at which a page of events ends, in bytes.
const PAGE_BYTES: usize = 4 << 20;
/// How many times a body of events is in memory while it is appended: as received, parsed, and as
/// stored.
const APPEND_COPIES: u64 = 3;
/// Events that a tail reads at a time.
const TAIL_EVENTS: usize = 256;
/// Size at which a tail's read ends, in bytes: what was read waits in memory for a client that
/// reads slowly.
const TAIL_BYTES: usize = 256 << 10;
/// How often a tail checks a stream that had no more events.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Parameters of an append.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct AppendParameters {
    /// Source to append to; default: the only one.
    source: Option<String>,
    /// Subject of CloudEvents: text with `{name}` for an attribute as one token and `{name:tokens}`
    /// for one whose dots separate tokens. Default: `{type:tokens}`, or the subject that an event
    /// was exported with.
    subject: Option<String>,
    /// What to do with an event whose time is earlier than that of the previous event.
    #[serde(default)]
    #[param(inline, required = false)]
    times: api::Times,
    /// Return when these deployments have applied the events: up to 8 names, separated by commas.
    /// The response says for each what became of them; the events are stored in any case.
    wait: Option<String>,
    /// Longest wait, such as `5s` or `500ms`; default: 5s.
    timeout: Option<String>,
}

impl AppendParameters {
    /// The deployments to wait for.
    fn waits(&self, app: &App) -> Result<Option<Waits>, Problem> {
        let timeout = position::timeout(self.timeout.as_deref(), app.config.wait_max)?;
        let Some(names) = self.wait.as_deref() else {
            return Ok(None);
        };
        let source = app.host.log_name(self.source.as_deref());
        let source = source.unwrap_or_default();
        Waits::of(app.host.all_deployments(), names, source, timeout).map(Some)
    }

    fn options(&self) -> Result<AppendOptions, Problem> {
        let template = self
            .subject
            .as_deref()
            .map(SubjectTemplate::parse)
            .transpose();
        let template = template.map_err(|error| Problem::invalid(error.to_string()))?;
        Ok(AppendOptions {
            template,
            times: self.times,
        })
    }
}

/// Selects a page of events.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct EventsParameters {
    /// Source; default: the only one, or the only embedded log.
    source: Option<String>,
    /// Start after this sequence: `next` of the previous page.
    #[serde(default)]
    #[param(default = 0, required = false)]
    after: u64,
    /// Only subjects that match this pattern, such as `orders.*.placed` or `orders.>`.
    subject: Option<String>,
    /// Most events on the page.
    #[serde(default = "pages::default_limit")]
    #[param(minimum = 1, maximum = 10_000, default = 100, required = false)]
    limit: usize,
    /// Write data so that an append restores them byte for byte: as `{"$bytes": "<base64>"}` also
    /// JSON text that is a string, that looks like this, or that has white space around it or line
    /// breaks.
    #[serde(default)]
    #[param(default = false, required = false)]
    exact: bool,
}

/// Selects the events of a tail.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct TailParameters {
    /// Source; default: the only one, or the only embedded log.
    source: Option<String>,
    /// Start after this sequence; default: now.
    after: Option<u64>,
    /// Only subjects that match this pattern, such as `orders.*.placed` or `orders.>`.
    subject: Option<String>,
}

/// Appends events to the embedded log, all or none.
///
/// CloudEvents 1.0 may be JSON (one, a batch, or one per line), or in binary mode, with attributes
/// in `ce-` headers of the request and data of any content type as the body. A CloudEvent whose
/// source and id were appended recently is not stored again.
#[utoipa::path(post, path = "/v1/events", tag = "events", params(AppendParameters,
        ("ce-specversion" = Option<String>, Header,
            description = "Binary mode of CloudEvents: `1.0`"),
        ("ce-id" = Option<String>, Header,
            description = "Binary mode of CloudEvents: attribute `id`, percent-encoded"),
        ("ce-source" = Option<String>, Header,
            description = "Binary mode of CloudEvents: attribute `source`"),
        ("ce-type" = Option<String>, Header,
            description = "Binary mode of CloudEvents: attribute `type`"),
    ),
    request_body(description = "Up to 10,000 events: with expectations as JSON, one a line as \
                                NDJSON, or CloudEvents",
        content(
            (api::Append = "application/json"),
            (String = "application/x-ndjson"),
            (api::CloudEvent = "application/cloudevents+json"),
            (Vec<api::CloudEvent> = "application/cloudevents-batch+json"),
        )),
    responses(
        (status = 200, description = "Appended and durable", body = api::Appended),
        (status = 409, description = "An expectation failed, or a time would go back and \
                                      `times=refuse` is set"),
        (status = 404, description = "`wait` names a deployment that does not exist; nothing was \
                                      appended"),
        (status = 408, description = "The body arrived too slowly"),
        (status = 413, description = "Larger than serve.body_bytes_max"),
        (status = 415, description = "The body has none of these formats"),
        (status = 422, description = "The source is not an embedded log, `wait` names a \
                                      deployment that reads another one, or a limit was reached"),
    ))]
pub(super) async fn append(
    State(app): State<App>,
    Parameters(parameters): Parameters<AppendParameters>,
    Extension(holder): Extension<Holder>,
    request: Request,
) -> Result<Json<api::Appended>, Problem> {
    let (parts, body) = request.into_parts();
    let form = append_body::Form::of(&parts.headers)?;
    // Before the body is read: a wrong source need not receive it.
    let options = parameters.options()?;
    let log = embedded(&app, parameters.source.as_deref())?;
    let waits = parameters.waits(&app)?;
    let limit = app.config.body_bytes_max;
    let mut room = app.capacity.body(APPEND_COPIES);
    let body = extract::body(&parts.headers, body, limit, &mut room).await?;
    // After the body has arrived, so that slow clients take no place.
    let place = acquire(&app.capacity.appends, "appends").await?;
    let (shutdown, standing) = (app.shutdown.clone(), holder.standing.clone());
    let mut appended = crate::serve::blocking(move || {
        let _places = (room, place);
        let received = Received {
            form,
            body,
            options,
        };
        append_now(&app, &log, &received, &holder)
    })
    .await??;
    if let Some(waits) = waits {
        appended.waited = waits
            .wait(&appended.sequences, (&shutdown, &standing))
            .await;
    }
    Ok(Json(appended))
}

/// Events as they arrived.
struct Received {
    form: append_body::Form,
    body: Bytes,
    options: AppendOptions,
}

fn append_now(
    app: &App,
    log: &Log,
    received: &Received,
    holder: &Holder,
) -> Result<api::Appended, Problem> {
    let (events, expectation) = received.form.read(&received.body, &received.options)?;
    for event in &events {
        holder.may_append(app, event)?;
    }
    // An empty batch of CloudEvents is valid, and appends nothing.
    if events.is_empty() {
        let last_sequence = *log.head().borrow();
        return Ok(api::Appended {
            sequences: Vec::new(),
            duplicates: 0,
            times_raised: 0,
            last_sequence,
            waited: Vec::new(),
        });
    }
    let log::Appended {
        sequences,
        duplicates,
        times_raised,
        last_sequence,
    } = log.append(&events, &expectation)?;
    Ok(api::Appended {
        sequences,
        duplicates,
        times_raised,
        last_sequence,
        waited: Vec::new(),
    })
}

/// A page of the events of a source.
///
/// A stream is read without a consumer. If it is slow to answer, the page may end early, with
/// `next`.
///
/// With `accept: application/cloudevents-batch+json` the events are
/// CloudEvents; `next` and `last_sequence` are then the headers
/// `foldstream-next` and `foldstream-last-sequence`. An event that was not a
/// CloudEvent has its sequence as `id` and its stream as `source`;
/// `foldstreamsubject`, `foldstreamtime` and `foldstreamheaders` carry what no
/// attribute represents.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(EventsParameters),
    responses(
        (status = 200, description = "A page; the last one has no `next`", content(
            (api::EventPage = "application/json"),
            (Vec<api::CloudEvent> = "application/cloudevents-batch+json"),
        )),
    ))]
pub(super) async fn read(
    State(app): State<App>,
    Parameters(parameters): Parameters<EventsParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    pages::check_limit(parameters.limit)?;
    let subjects = subjects(parameters.subject.as_deref())?;
    let source = app.host.source(parameters.source.as_deref())?;
    let _place = acquire(&app.capacity.scans, "scans").await?;
    let (after, limit) = (parameters.after, parameters.limit);
    let room = app.capacity.page(PAGE_BYTES).await?;
    let wanted = Wanted {
        after,
        subjects,
        limit,
        bytes_max: room.bytes_max,
    };
    let found = source.page(wanted).await.map_err(unreachable)?;
    // At the end there is no next page, so a client knows when to stop.
    let next = (found.through < found.head).then_some(found.through);
    let page = Page {
        events: found.events,
        next,
        last_sequence: found.head,
    };
    if append_cloudevents::is_wanted(&headers) {
        return page.into_batch(&source.stream(), room);
    }
    let form = if parameters.exact {
        json::Form::Exact
    } else {
        json::Form::Shown
    };
    page.into_json(form, room)
}

/// The source can't be read at the moment.
fn unreachable(why: LookError) -> Problem {
    Problem::new(
        Kind::NotReady,
        format!("cannot read the events: {why}; try again"),
    )
}

/// Some events of a stream.
struct Page {
    events: Vec<Event>,
    /// Where the next page begins; none at the end.
    next: Option<u64>,
    last_sequence: u64,
}

impl Page {
    fn into_json(self, form: json::Form, room: PageRoom) -> Result<Response, Problem> {
        let shown = |event| json::StoredEvent::of(event, form);
        let events = self.events.iter().map(shown).collect();
        let page = json::EventPage {
            events,
            next: self.next,
            last_sequence: self.last_sequence,
        };
        let (body, held) = room.json(&page)?;
        let mut response = crate::serve::json_response(body);
        response.extensions_mut().insert(held);
        Ok(response)
    }

    fn into_batch(self, stream: &str, room: PageRoom) -> Result<Response, Problem> {
        let events: Vec<Written<'_>> = self
            .events
            .iter()
            .map(|event| Written::of(event, stream))
            .collect();
        let (body, held) = room.json(&events)?;
        let mut response = crate::serve::json_response(body);
        response.extensions_mut().insert(held);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(BATCH_MEDIA_TYPE),
        );
        headers.insert("foldstream-last-sequence", self.last_sequence.into());
        headers.extend(
            self.next
                .map(|next| (HeaderName::from_static("foldstream-next"), next.into())),
        );
        Ok(response)
    }
}

/// New events, as server-sent events.
///
/// `event` carries one event, and its id is the event's sequence; every few
/// seconds, `position` says how far the tail has read. `end` says why the host closes it, as for
/// changes.
#[utoipa::path(get, path = "/v1/events/tail", tag = "events",
    params(
        TailParameters,
        ("access_token" = Option<String>, Query,
            description = "A token, for a browser's EventSource, which cannot send headers; other \
                           routes do not accept it here"),
    ),
    responses(
        (status = 200, description = "Events `event` (StoredEvent), `position` (PositionMark) and \
                                      `end` (EndMark)",
            body = String, content_type = "text/event-stream"),
    ))]
pub(super) async fn tail(
    State(app): State<App>,
    Parameters(parameters): Parameters<TailParameters>,
    listener: Listener,
) -> Result<Response, Problem> {
    let Listener { holder, headers } = listener;
    let after = sse::resume(&headers, parameters.after)?;
    let subjects = subjects(parameters.subject.as_deref())?;
    let source = app.host.source(parameters.source.as_deref())?;
    let log_head = source.log_head();
    let seen = match (after, &log_head) {
        (Some(after), _) => after.position,
        (None, Some(head)) => *head.borrow(),
        (None, None) => {
            // Nothing is after this position, so only the head is asked for.
            let none = Wanted {
                after: u64::MAX,
                subjects: None,
                limit: 1,
                bytes_max: 1,
            };
            // Before it is opened: what can't be read gets a problem, and not a stream that ends.
            source.page(none).await.map_err(unreachable)?.head
        }
    };
    let (sender, response) = sse::open(super::watch::seat(&app, holder)?, app.shutdown.clone());
    let heartbeat = Instant::now() + HEARTBEAT;
    tokio::spawn(
        Tail {
            source,
            log_head,
            subjects,
            seen,
            has_more: true,
            heartbeat,
            sender,
        }
        .run(),
    );
    Ok(response)
}

struct Tail {
    source: EventView,
    /// Tails an embedded log, which notifies readers of new events.
    log_head: Option<watch::Receiver<u64>>,
    subjects: Option<SubjectSet>,
    /// Everything up to this sequence was read.
    seen: u64,
    /// The last page did not reach the end.
    has_more: bool,
    /// When to send the position next, whether or not there were events.
    heartbeat: Instant,
    sender: Sender,
}

impl Tail {
    async fn run(mut self) {
        self.sender.event(
            "position",
            self.seen,
            &PositionMark {
                position: self.seen,
            },
        );
        while self.step().await.is_ok() {}
    }

    async fn step(&mut self) -> Result<(), Ended> {
        self.sender.flush().await?;
        // Copied, because the sender is borrowed below.
        let (seen, has_more) = (self.seen, self.has_more);
        let log_head = &mut self.log_head;
        let more = async {
            match log_head {
                _ if has_more => Ok(()),
                // The log is gone if nobody can report its head any more.
                Some(head) => head
                    .wait_for(|head| *head > seen)
                    .await
                    .map(drop)
                    .map_err(|_| Ended),
                // A stream notifies only its consumers, and this reader creates none.
                None => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    Ok(())
                }
            }
        };
        // Dropping a waiting arm loses nothing: each arm only observes, and takes nothing away.
        tokio::select! {
            biased;
            ended = self.sender.ended() => return Err(ended),
            more = more => more?,
            () = tokio::time::sleep_until(self.heartbeat) => {}
        }
        // Charged before it is read, as much as it may be.
        self.sender.hold(TAIL_BYTES)?;
        let events = self.read().await?;
        // And then as much as it is.
        self.sender.hold(events.iter().map(Event::size).sum())?;
        for event in events {
            let shown = json::StoredEvent::of(&event, json::Form::Shown);
            self.sender.event("event", event.sequence, &shown);
            if self.sender.is_full() {
                self.sender.flush().await?;
            }
        }
        // Everything is in the buffer, which charges itself.
        self.sender.hold(0)?;
        // Also if events came: the position may be far behind the last one.
        if self.heartbeat <= Instant::now() {
            self.heartbeat = Instant::now() + HEARTBEAT;
            self.sender.event(
                "position",
                self.seen,
                &PositionMark {
                    position: self.seen,
                },
            );
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<Vec<Event>, Ended> {
        let subjects = self.subjects.clone();
        let wanted = Wanted {
            after: self.seen,
            subjects,
            limit: TAIL_EVENTS,
            bytes_max: TAIL_BYTES,
        };
        match self.source.page(wanted).await {
            Ok(page) => {
                // A page may end before what was seen, if the end of the stream is not known at the
                // moment.
                self.seen = page.through.max(self.seen);
                self.has_more = page.through < page.head;
                Ok(page.events)
            }
            Err(error) if self.log_head.is_some() => {
                tracing::warn!(%error, "a tail ended because it could not read the log");
                Err(Ended)
            }
            // The server is unreachable, and may come back.
            Err(error) => {
                tracing::debug!(%error, "a tail can't read its stream at the moment");
                self.has_more = false;
                Ok(Vec::new())
            }
        }
    }
}

fn subjects(pattern: Option<&str>) -> Result<Option<SubjectSet>, Problem> {
    Ok(pattern
        .map(|pattern| SubjectSet::parse(&[pattern]))
        .transpose()?)
}

/// The embedded log of a source.
fn embedded(app: &App, source: Option<&str>) -> Result<Log, Problem> {
    // Without a name it is about the only source, if there is just one.
    let is_stream = source.map_or(app.only_streams, |name| app.streams.contains(name));
    app.host.log(source).map_err(|error| match error {
        error @ host::Error::Source(_) if is_stream => Problem::new(
            Kind::Refused,
            format!("{error}; events are appended to embedded logs only"),
        ),
        error => error.into(),
    })
}
