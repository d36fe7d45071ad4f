//! Reads: entries by key, scans, queries. Each is answered from one snapshot,
//! and the response says which position the snapshot reflects.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::pages;
use crate::api;
use crate::deployment::View;
use crate::event::Payload;
use crate::history::Moment;
use crate::serve::App;
use crate::serve::capacity::{BodyRoom, acquire};
use crate::serve::extract::{self, Head, Parameters, Segments};
use crate::serve::json;
use crate::serve::position::{self, Answer, Lacks};
use crate::serve::problem::{self, Problem};
use crate::state::{Direction, KEY_BYTES_MAX, Page, SCAN_BYTES_MAX, Scan, Selection, Snapshot};

/// Most bytes of a value to hash and parse on a thread of the runtime, which takes some tens of
/// microseconds.
const AT_ONCE_BYTES: usize = 64 << 10;

/// Which state to read.
struct Read {
    at_least: Option<u64>,
    timeout: Option<String>,
    generation: Option<u64>,
    as_of: Option<String>,
    accept_missing: bool,
}

/// Declares query parameters that select a state, in addition to parameters of their own. `serde`
/// can't flatten numbers in a query.
macro_rules! read_parameters {
    ($(#[$attribute:meta])* $name:ident { $($own:tt)* }) => {
        $(#[$attribute])*
        #[derive(Deserialize, IntoParams)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        #[into_params(parameter_in = Query)]
        pub(super) struct $name {
            $($own)*
            /// Wait for a state that reflects at least this sequence.
            at_least: Option<u64>,
            /// How long to wait for `at-least`, such as 500ms, 5s or 1m.
            #[param(pattern = "^[0-9]{1,6}(ms|s|m)$", default = "5s")]
            timeout: Option<String>,
            /// Read this generation, even if it is not the active one: a candidate, or the previous
            /// one.
            generation: Option<u64>,
            /// Read the state right after this sequence, or at this time (RFC 3339).
            as_of: Option<String>,
            /// Read the past even if events that were applied are gone from the stream.
            #[serde(default)]
            #[param(required = false)]
            accept_missing: bool,
        }

        impl $name {
            fn read(&self) -> Read {
                Read {
                    at_least: self.at_least,
                    timeout: self.timeout.clone(),
                    generation: self.generation,
                    as_of: self.as_of.clone(),
                    accept_missing: self.accept_missing,
                }
            }
        }
    };
}

read_parameters! {
    /// Which state to read.
    ReadParameters {}
}

/// The order of a scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Order {
    /// From the smallest key up.
    #[default]
    Asc,
    /// From the largest key down.
    Desc,
}

read_parameters! {
    /// Parameters of a scan.
    ScanParameters {
        /// Only keys that begin with this prefix; excludes start and end.
        prefix: Option<String>,
        /// Only this key and later ones, in byte order.
        start: Option<String>,
        /// Only keys before this one (exclusive).
        end: Option<String>,
        /// Start after this key, in the order of the scan: `next` of the previous page.
        after: Option<String>,
        /// The order; default: forwards.
        #[serde(default)]
        #[param(inline, required = false)]
        order: Order,
        /// Most entries on the page.
        #[serde(default = "pages::default_limit")]
        #[param(minimum = 1, maximum = 10_000, default = 100, required = false)]
        limit: usize,
    }
}

read_parameters! {
    /// A query's arguments in the URL.
    QueryParameters {
        /// The arguments, as JSON.
        args: Option<String>,
    }
}

/// The state to read. A wait for it ends when the host stops, which would wait for it otherwise, or
/// when the deployment is deleted.
async fn view(app: &App, name: &str, read: &Read) -> Result<View, Problem> {
    let viewed = tokio::select! {
        // What can be answered at once is answered. All arms only observe.
        biased;
        viewed = wait_for_view(app, name, read) => viewed,
        () = app.shutdown.cancelled() => return Err(Problem::stopping()),
    };
    match viewed {
        Err(_) if app.shutdown.is_cancelled() => Err(Problem::stopping()),
        Err(problem) => {
            // If it was deleted meanwhile, this says so.
            app.host.all_deployments().get(name)?;
            Err(problem)
        }
        Ok(view) => Ok(view),
    }
}

async fn wait_for_view(app: &App, name: &str, read: &Read) -> Result<View, Problem> {
    let timeout = position::timeout(read.timeout.as_deref(), app.config.wait_max)?;
    let deployment = app.host.all_deployments().get(name)?;
    match (read.generation, &read.as_of) {
        (None, None) => Ok(deployment.view(read.at_least, timeout).await?),
        (Some(generation), None) => Ok(app
            .host
            .all_deployments()
            .view_of(&deployment, generation, read.at_least, timeout)
            .await?),
        // A past state never rises, so there is nothing to wait for.
        (None, Some(moment)) if read.at_least.is_none() => Ok(app
            .host
            .history()
            .view_as_of(
                &deployment,
                moment_of(moment)?,
                read.accept_missing.into(),
                timeout,
            )
            .await?),
        _ => Err(Problem::invalid(
            "as-of cannot be combined with generation or at-least; remove them",
        )),
    }
}

/// Parses `as-of`: a sequence, or a time.
fn moment_of(text: &str) -> Result<Moment, Problem> {
    // First a sequence: a time always has other characters.
    if let Ok(sequence) = text.parse() {
        return Ok(Moment::Sequence(sequence));
    }
    let time = text
        .parse::<jiff::Timestamp>()
        .ok()
        .and_then(|time| u64::try_from(time.as_nanosecond()).ok());
    time.map(Moment::Time).ok_or_else(|| {
        Problem::invalid(format!(
            "as-of `{text}` is refused; give a sequence, or a time like 2026-11-24T10:00:00Z"
        ))
    })
}

/// The value of one entry.
///
/// JSON text is returned as application/json, other text as text/plain, bytes
/// as application/octet-stream. The key is the rest of the path, including
/// slashes.
#[utoipa::path(get, path = "/v1/deployments/{name}/entries/{*key}", tag = "reads",
    params(
        ("name" = String, Path, description = "Name of the deployment"),
        ("key" = String, Path, description = "The key, percent-encoded"),
        ReadParameters,
    ),
    responses(
        (status = 200, description = "The value itself", content(
            (Object = "application/json"), (String = "text/plain"), (Vec<u8> = "application/octet-stream"),
        )),
        (status = 404, description = "There is no such deployment, generation or key"),
        (status = 409, description = "The generation no longer runs, or the past could not be \
                                      folded"),
        (status = 422, description = "The moment is in the future"),
    ))]
pub(super) async fn entry(
    State(app): State<App>,
    Segments((name, key)): Segments<(String, String)>,
    Parameters(parameters): Parameters<ReadParameters>,
    head: Head,
) -> Result<Response, Problem> {
    let view = view(&app, &name, &parameters.read()).await?;
    let (snapshot, wanted) = (view.snapshot.clone(), key.clone());
    let answer = move |found: Option<Payload>| {
        let position = view.snapshot.position();
        let Some(value) = found else {
            // With the position, because the key may exist in a later state.
            return Err(Problem::not_found(format!("{name} has no entry `{key}`")).at(position));
        };
        let (generation, lacks) = (view.generation, Lacks::of(&view.snapshot));
        Ok(Answer::of(value, position, generation, lacks).respond(&head))
    };
    look_up(snapshot, wanted, answer).await
}

/// Looks up a key, and makes an answer of what was found. The threads of the runtime do not wait for
/// a disk, nor process megabytes.
async fn look_up<T: Send + 'static>(
    snapshot: Snapshot,
    key: String,
    answer: impl FnOnce(Option<Payload>) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    // Such a key cannot exist, and must not be looked up.
    let found = if key.len() > KEY_BYTES_MAX {
        Some(None)
    } else {
        snapshot.get_recent(&key)
    };
    match found {
        Some(found)
            if found
                .as_ref()
                .is_none_or(|value| value.len() <= AT_ONCE_BYTES) =>
        {
            answer(found)
        }
        Some(found) => crate::serve::blocking(move || answer(found)).await?,
        None => crate::serve::in_place(move || answer(snapshot.get(&key)?)).await?,
    }
}

/// A page of entries, by prefix or range, in either order.
#[utoipa::path(get, path = "/v1/deployments/{name}/entries", tag = "reads",
    params(("name" = String, Path, description = "Name of the deployment"), ScanParameters),
    responses(
        (status = 200, description = "A page; the last one has no `next`", body = api::EntryPage),
        (status = 404, description = "There is no such deployment or generation"),
        (status = 409, description = "The generation no longer runs, or the past could not be \
                                      folded"),
        (status = 422, description = "The moment is in the future"),
    ))]
pub(super) async fn scan(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<ScanParameters>,
    head: Head,
) -> Result<Response, Problem> {
    pages::check_limit(parameters.limit)?;
    let view = view(&app, &name, &parameters.read()).await?;
    let scan = Scan {
        selection: selection(parameters.prefix, parameters.start, parameters.end)?,
        after: parameters.after,
        direction: match parameters.order {
            Order::Asc => Direction::Forwards,
            Order::Desc => Direction::Backwards,
        },
        limit: parameters.limit,
    };
    // Places first, then memory: who waits for a place must not hold memory.
    let place = acquire(&app.capacity.scans, "scans").await?;
    let room = app.capacity.page(SCAN_BYTES_MAX).await?;
    let is_short = parameters.limit <= pages::default_limit();
    let work = move || {
        let _place = place;
        let (position, generation) = (view.snapshot.position(), view.generation);
        let page = view.snapshot.scan(&scan)?;
        let (body, held) = room.json(&page_of(&page, position, generation))?;
        let lacks = Lacks::of(&view.snapshot);
        let answer = Answer {
            content_type: "application/json",
            body,
            position,
            generation,
            lacks,
        };
        let mut response = answer.respond(&head);
        // Held until the response was sent.
        response.extensions_mut().insert(held);
        Ok(response)
    };
    if is_short {
        crate::serve::in_place(work).await?
    } else {
        crate::serve::blocking(work).await?
    }
}

fn page_of(page: &Page, position: u64, generation: u64) -> json::EntryPage<'_> {
    let entries = page
        .entries
        .iter()
        .map(|(key, value)| json::Entry {
            key,
            value: json::Value(value),
        })
        .collect();
    // The client continues after the last key that it got.
    let last = page.entries.last().map(|(key, _)| &**key);
    // None on the last page, so that clients stop.
    let next = if page.more { last } else { None };
    json::EntryPage {
        entries,
        next,
        position,
        generation,
    }
}

/// The keys that a scan covers.
fn selection(
    prefix: Option<String>,
    start: Option<String>,
    end: Option<String>,
) -> Result<Selection, Problem> {
    match (prefix, start, end) {
        (Some(prefix), None, None) => Ok(Selection::Prefix(prefix)),
        (None, start, end) => Ok(Selection::Range { start, end }),
        (Some(_), _, _) => Err(Problem::invalid(
            "prefix cannot be combined with start or end; use one or the other",
        )),
    }
}

/// Answers a query with its arguments in the URL.
#[utoipa::path(get, path = "/v1/deployments/{name}/queries/{query}", tag = "reads",
    params(
        ("name" = String, Path, description = "Name of the deployment"),
        ("query" = String, Path, description = "Name of the query"),
        QueryParameters,
    ),
    responses(
        (status = 200, description = "The answer itself", content(
            (Object = "application/json"), (String = "text/plain"), (Vec<u8> = "application/octet-stream"),
        )),
        (status = 404, description = "There is no such deployment, generation or query, or the \
                                      query found nothing"),
        (status = 409, description = "The generation no longer runs, or the past could not be \
                                      folded"),
        (status = 422, description = "The module failed to answer, or the moment is in the future"),
    ))]
pub(super) async fn query(
    State(app): State<App>,
    Segments((name, query)): Segments<(String, String)>,
    Parameters(parameters): Parameters<QueryParameters>,
    head: Head,
) -> Result<Response, Problem> {
    let read = parameters.read();
    let args = parameters.args.unwrap_or_default();
    if !args.is_empty() {
        // A URL is too short to take long.
        check_json(args.as_bytes(), "args")?;
    }
    let question = Question {
        name,
        query,
        args: Payload::from(args),
        room: None,
    };
    ask(&app, question, read, head).await
}

/// Answers a query with its arguments in the body.
#[utoipa::path(post, path = "/v1/deployments/{name}/queries/{query}", tag = "reads",
    params(
        ("name" = String, Path, description = "Name of the deployment"),
        ("query" = String, Path, description = "Name of the query"),
        ReadParameters,
    ),
    request_body(description = "The arguments; empty if the query needs none", content(
        (Object = "application/json"), (String = "text/plain"), (Vec<u8> = "application/octet-stream"),
    )),
    responses(
        (status = 200, description = "The answer itself", content(
            (Object = "application/json"), (String = "text/plain"), (Vec<u8> = "application/octet-stream"),
        )),
        (status = 404, description = "There is no such deployment, generation or query, or the \
                                      query found nothing"),
        (status = 409, description = "The generation no longer runs, or the past could not be \
                                      folded"),
        (status = 408, description = "The body arrived too slowly"),
        (status = 413, description = "Larger than serve.body_bytes_max"),
        (status = 415, description = "The arguments are neither JSON nor text nor bytes"),
        (status = 422, description = "The module failed to answer, or the moment is in the future"),
    ))]
pub(super) async fn query_with_body(
    State(app): State<App>,
    Segments((name, query)): Segments<(String, String)>,
    Parameters(parameters): Parameters<ReadParameters>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let (args, room) = arguments(&app, &parts.headers, body).await?;
    let question = Question {
        name,
        query,
        args,
        room: Some(room),
    };
    let head = Head {
        method: Method::POST,
        headers: parts.headers,
    };
    ask(&app, question, parameters.read(), head).await
}

async fn arguments(
    app: &App,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Payload, BodyRoom), Problem> {
    let limit = app.config.body_bytes_max;
    let mut room = app.capacity.body(1);
    let body = extract::body(headers, body, limit, &mut room).await?;
    let is_json = match extract::content_type(headers).as_deref() {
        Some("application/json") => true,
        Some(kind) if kind.starts_with("text/") => false,
        Some("application/octet-stream") => return Ok((Payload::Bytes(body), room)),
        // Without a content type it may be JSON or text: the payload is detected.
        None => false,
        found => {
            return Err(extract::unsupported(
                found,
                "arguments as application/json, text/plain or application/octet-stream",
            ));
        }
    };
    let length = body.len();
    let payload = at_once_or_aside(length, move || {
        if is_json {
            check_json(&body, "the body")?;
        }
        Ok::<_, Problem>(Payload::detect(body))
    });
    Ok((payload.await??, room))
}

/// Processes bytes at once if they are few, otherwise on a blocking thread.
async fn at_once_or_aside<T: Send + 'static>(
    bytes: usize,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    if bytes <= AT_ONCE_BYTES {
        Ok(look())
    } else {
        crate::serve::blocking(look).await
    }
}

fn check_json(text: &[u8], what: &str) -> Result<(), Problem> {
    // As raw JSON: nothing is built of it.
    serde_json::from_slice::<&serde_json::value::RawValue>(text)
        .map(|_| ())
        .map_err(|error| Problem::invalid(format!("{what} is not JSON: {error}")))
}

/// A query to run.
struct Question {
    /// The deployment.
    name: String,
    query: String,
    args: Payload,
    /// The memory reserved for arguments in a body.
    room: Option<BodyRoom>,
}

async fn ask(app: &App, question: Question, read: Read, head: Head) -> Result<Response, Problem> {
    // Before the place: waiting for a position must not keep others from asking.
    let Question {
        name,
        query,
        args,
        room,
    } = question;
    let view = view(app, &name, &read).await?;
    let (position, generation, known) = (view.snapshot.position(), view.generation, view.queries());
    let lacks = Lacks::of(&view.snapshot);
    let place = app.capacity.query(&name).await?;
    let asked = query.clone();
    // The room for the arguments is held as long as they are used.
    let answer = to_its_end((place, room), async move { view.query(asked, args).await }).await?;
    match answer {
        Ok(answer) => {
            let respond =
                move |answer| Answer::of(answer, position, generation, lacks).respond(&head);
            at_once_or_aside(answer.len(), move || respond(answer)).await
        }
        Err(error) => Err(problem::from_query(&error, &query, &known).at(position)),
    }
}

/// Runs work that nothing can interrupt, and keeps its places until the end even if its client
/// disconnects, because an abandoned query still occupies a thread.
async fn to_its_end<T: Send + 'static>(
    places: impl Send + 'static,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Problem> {
    crate::serve::finish(async move {
        let done = work.await;
        drop(places);
        done
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Checkpoint, StreamIdentity};
    use crate::state;
    use crate::state::SCAN_ENTRIES_MAX;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn scan_covers_a_prefix_or_a_range() {
        assert_eq!(
            selection(some("a/"), None, None).expect("sound"),
            Selection::Prefix("a/".to_owned())
        );
        let range = |start, end| Selection::Range { start, end };
        assert_eq!(
            selection(None, some("a"), None).expect("sound"),
            range(some("a"), None)
        );
        assert_eq!(
            selection(None, None, None).expect("sound"),
            range(None, None)
        );
        assert!(
            selection(some("a/"), some("a/5"), None).is_err()
                && selection(some("a"), None, some("b")).is_err()
        );
    }

    #[test]
    fn page_that_is_not_the_last_names_its_last_key() {
        let entries = vec![
            ("a".into(), Payload::from("1")),
            ("b".into(), Payload::from("two")),
        ];
        let text = |more| {
            let page = Page {
                entries: entries.clone(),
                more,
            };
            serde_json::to_string(&page_of(&page, 9, 2)).expect("plain data")
        };
        let all = r#"{"entries":[{"key":"a","value":1},{"key":"b","value":"two"}]"#;
        assert_eq!(
            text(true),
            format!(r#"{all},"next":"b","position":9,"generation":2}}"#)
        );
        assert_eq!(
            text(false),
            format!(r#"{all},"position":9,"generation":2}}"#)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn work_keeps_its_place_when_its_client_leaves() {
        let places = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
        let place = acquire(&places, "queries").await.expect("a place");
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let mut asked = Box::pin(to_its_end(place, ended));
        assert!(
            tokio::time::timeout(std::time::Duration::ZERO, &mut asked)
                .await
                .is_err(),
            "there are more"
        );
        drop(asked);
        assert_eq!(
            acquire(&places, "queries")
                .await
                .expect_err("it runs on")
                .kind(),
            problem::Kind::Busy
        );
        end.send(()).expect("the work waits for it");
        drop(acquire(&places, "queries").await.expect("the work ended"));
    }

    /// A state with one entry, which is only in its file.
    fn stored(folder: &std::path::Path) -> state::Store {
        let opened = state::Store::open(
            &folder.join("state.redb"),
            state::Options::default(),
            |_| (),
        );
        let (store, mut writer) = opened.expect("the state opens");
        writer.begin();
        writer
            .put("key", Some(Payload::from("value")))
            .expect("within limits");
        let stream = StreamIdentity {
            name: "events".to_owned(),
            created_ns: 1,
        };
        writer.publish(Checkpoint::at(1, stream));
        store.flush().expect("commits");
        store
    }

    #[test]
    fn a_read_that_waits_for_the_disk_keeps_no_other_request_waiting() {
        use tokio::runtime::Builder;

        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = stored(folder.path());
        let mut one_worker = Builder::new_multi_thread();
        for runtime in [
            Builder::new_current_thread().build(),
            one_worker.worker_threads(1).build(),
        ] {
            let runtime = runtime.expect("a runtime");
            let disk = store.hang();
            let read = look_up(store.snapshot(), "key".to_owned(), Ok);
            let reading = runtime.spawn(read);
            // The only thread takes one after the other.
            let other = runtime.spawn(async {});
            runtime.block_on(other).expect("no panic");
            assert!(!reading.is_finished(), "the disk still hangs");
            drop(disk);
            let found = runtime.block_on(reading).expect("no panic");
            assert_eq!(found.expect("readable"), Some(Payload::from("value")));
        }
    }

    #[test]
    fn moments_are_sequences_or_times() {
        assert_eq!(moment_of("42").expect("sound"), Moment::Sequence(42));
        assert_eq!(
            moment_of("1970-01-01T00:00:01Z").expect("sound"),
            Moment::Time(1_000_000_000)
        );
        for text in ["", "-1", "yesterday", "1969-12-31T00:00:00Z"] {
            assert!(moment_of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn page_sizes_have_a_limit() {
        assert!(pages::check_limit(1).is_ok() && pages::check_limit(SCAN_ENTRIES_MAX).is_ok());
        assert!(pages::check_limit(0).is_err());
        assert!(pages::check_limit(SCAN_ENTRIES_MAX + 1).is_err());
    }
}
