//! Sagas: whatever comes late, twice or not at all, each instance ends with everything done or
//! everything undone.

use std::cell::Cell;
use std::time::Duration;

use foldstream_sdk::prelude::*;
use foldstream_sdk::saga::{Call, Compensation, Pattern, RetryPolicy, Saga, Sagas, Step};
use foldstream_sdk::testing::{GivenEvent, HandlerHarness, Value, event, json};

thread_local! {
    /// The saga that `Orders` runs: tests have their own.
    static SAGA: Cell<fn() -> Saga<Order>> = const { Cell::new(trip) };
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    size: u64,
    #[serde(default)]
    payment: Option<String>,
}

/// A step with a command `do.<key>.<step>`, undone by `undo.<key>.<step>`.
fn step(name: &'static str, retry: RetryPolicy, undo: RetryPolicy) -> Step<Order> {
    Step::new(name)
        .command(move |call| {
            Message::to(format!("do.{}.{name}", call.key()))
                .json(&json!({ "id": call.id(), "attempt": call.attempt() }))
        })
        .succeeds_on(format!("did.*.{name}"))
        .fails_on(format!("refused.*.{name}"))
        .retries_on(format!("busy.*.{name}"))
        .timeout(Duration::from_secs(60))
        .retry(retry)
        .compensation(
            Compensation::new(move |call| {
                Message::to(format!("undo.{}.{name}", call.key()))
                    .json(&json!({ "id": call.id(), "attempt": call.attempt() }))
            })
            .succeeds_on(format!("undid.*.{name}"))
            .fails_on(format!("stays.*.{name}"))
            .timeout(Duration::from_secs(60))
            .retry(undo),
        )
}

fn trip_of(steps: &[&'static str], attempts: u32, undo: RetryPolicy) -> Saga<Order> {
    let saga = Saga::new("trip")
        .starts_on("trips.*.booked", |event| event.json())
        .cancels_on("trips.*.cancelled")
        .resumes_on("trips.*.resume")
        .skips_on("trips.*.skip")
        .on_completed(|call| Ok(Message::to(format!("trips.{}.completed", call.key()))))
        .on_compensated(|call| {
            Ok(Message::to(format!("trips.{}.given-up", call.key())).text(call.reason()))
        })
        .on_stuck(|call| Ok(Message::to(format!("trips.{}.stuck", call.key()))));
    steps.iter().fold(saga, |saga, name| {
        saga.step(step(name, RetryPolicy::attempts(attempts), undo))
    })
}

fn trip() -> Saga<Order> {
    trip_of(&["hotel", "flight", "car"], 2, RetryPolicy::attempts(2))
}

struct Orders {
    sagas: Sagas<Order>,
}

impl Handler for Orders {
    fn manifest() -> Manifest<Self> {
        Manifest::new("orders")
            .saga(&SAGA.get()())
            // Newer versions have other steps.
            .subjects(["*.*.*"])
            .publishes(["do.*.*", "undo.*.*", "trips.*.*"])
            .key(KeyRule::SubjectToken(2))
    }

    fn open(state: &State) -> Self {
        Self {
            sagas: Sagas::open(state, SAGA.get()()),
        }
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        self.sagas.handle(event, effects)?;
        Ok(())
    }

    fn on_timer(&mut self, timer: &Fired<'_>, effects: &mut Effects) -> Result<(), Failure> {
        self.sagas.on_timer(timer, effects)?;
        Ok(())
    }
}

handler!(Orders);

fn runs(saga: fn() -> Saga<Order>) -> HandlerHarness<Orders> {
    SAGA.set(saga);
    HandlerHarness::new()
}

fn happens(what: &str) -> GivenEvent {
    event(what, json!({ "size": 1 }))
}

/// Subjects of what was published since the last call of `published`.
fn subjects(orders: &HandlerHarness<Orders>) -> Vec<String> {
    let published = orders.published().into_iter();
    published.map(|message| message.subject).collect()
}

fn instance(orders: &HandlerHarness<Orders>, key: &str) -> Value {
    orders
        .get(&format!("saga/trip/{key}"))
        .unwrap_or_else(|| panic!("there is no instance {key}"))
}

fn counts(orders: &HandlerHarness<Orders>) -> Value {
    orders.get("saga-count/trip").expect("it counts")
}

#[test]
fn steps_follow_each_other_and_the_saga_completes() {
    let mut orders = runs(trip);
    orders.given([happens("trips.7.booked")]);
    assert_eq!(instance(&orders, "7")["step"], "hotel");
    assert_eq!(orders.timers().len(), 1);
    orders.given(["did.7.hotel", "did.7.flight", "did.7.car"].map(happens));
    assert_eq!(
        subjects(&orders),
        ["do.7.hotel", "do.7.flight", "do.7.car", "trips.7.completed"]
    );
    let ended = instance(&orders, "7");
    assert_eq!(
        (&ended["status"], &ended["step"]),
        (&json!("completed"), &Value::Null)
    );
    orders.assert_same_for_any_batching();
    // It is kept for a day, so that late events are recognised, and then removed.
    orders.given([happens("did.7.car"), happens("trips.7.booked")]);
    assert_eq!(counts(&orders)["ignored"], json!({ "ended": 2 }));
    orders.after(Duration::from_secs(25 * 3_600));
    assert_eq!(orders.entries("saga/"), []);
    assert_eq!(orders.entries("saga-index/"), []);
    assert_eq!((orders.timers().len(), subjects(&orders).len()), (0, 4));
    assert_eq!(counts(&orders)["now"], json!({}));
    assert_eq!(counts(&orders)["ended"], json!({ "completed": 1 }));
}

#[test]
fn a_refusal_undoes_what_was_done_the_last_step_first() {
    let mut orders = runs(trip);
    orders.given(
        [
            "trips.7.booked",
            "did.7.hotel",
            "did.7.flight",
            "refused.7.car",
        ]
        .map(happens),
    );
    let undoing = instance(&orders, "7");
    assert_eq!(
        (&undoing["status"], &undoing["step"], &undoing["reason"]),
        (&json!("compensating"), &json!("flight"), &json!("car: car"))
    );
    orders.given(["undid.7.flight", "undid.7.hotel"].map(happens));
    let published = subjects(&orders);
    assert_eq!(
        published[3..],
        ["undo.7.flight", "undo.7.hotel", "trips.7.given-up"]
    );
    orders.assert_same_for_any_batching();
}

#[test]
fn a_step_that_times_out_is_in_doubt_and_is_undone_too() {
    let mut orders = runs(trip);
    orders.given([happens("trips.7.booked")]);
    orders.after(Duration::from_secs(300));
    assert_eq!(
        subjects(&orders)[..3],
        ["do.7.hotel", "do.7.hotel", "undo.7.hotel"]
    );
    // Its answer comes after all, before and after the confirmation.
    orders.given(["did.7.hotel", "undid.7.hotel", "did.7.hotel"].map(happens));
    assert_eq!(instance(&orders, "7")["status"], "compensated");
    assert_eq!(
        subjects(&orders).last().map(String::as_str),
        Some("trips.7.given-up")
    );
    orders.assert_same_for_any_batching();
}

#[test]
fn an_answer_that_comes_while_the_next_attempt_waits_counts() {
    let mut orders = runs(trip);
    orders.given([
        happens("trips.7.booked"),
        happens("busy.7.hotel"),
        happens("busy.7.hotel"),
    ]);
    assert_eq!(instance(&orders, "7")["wait"], "retry");
    assert_eq!(counts(&orders)["ignored"], json!({ "duplicate": 1 }));
    orders.given([happens("did.7.hotel")]);
    orders.after(Duration::from_secs(30));
    assert_eq!(subjects(&orders), ["do.7.hotel", "do.7.flight"]);
    orders.assert_same_for_any_batching();
}

#[test]
fn answers_that_come_twice_early_or_for_nobody_are_named_and_change_nothing() {
    let mut orders = runs(trip);
    orders.given(
        [
            "trips.7.booked",
            "trips.7.booked",
            "did.7.hotel",
            "did.7.hotel",
        ]
        .map(happens),
    );
    orders.given(
        [
            "did.7.car",
            "undid.7.hotel",
            "refused.7.hotel",
            "did.8.hotel",
        ]
        .map(happens),
    );
    assert_eq!(
        counts(&orders)["ignored"],
        json!({ "duplicate": 2, "early": 2, "late": 1, "unknown": 1 })
    );
    assert_eq!(subjects(&orders), ["do.7.hotel", "do.7.flight"]);
}

#[test]
fn a_compensation_that_fails_is_tried_again_and_then_waits_for_an_operator() {
    let mut orders = runs(trip);
    orders.given(
        [
            "trips.7.booked",
            "did.7.hotel",
            "refused.7.flight",
            "stays.7.hotel",
        ]
        .map(happens),
    );
    assert_eq!(instance(&orders, "7")["status"], "compensating");
    orders.after(Duration::from_secs(5));
    orders.given([happens("stays.7.hotel")]);
    let stuck = instance(&orders, "7");
    assert_eq!(
        (&stuck["status"], &stuck["step"]),
        (&json!("stuck"), &json!("hotel"))
    );
    assert_eq!(orders.timers(), []);
    let why = stuck["reason"].as_str().unwrap_or_default();
    assert!(why.starts_with("hotel could not be undone"), "{why}");
    orders.given([happens("trips.7.resume"), happens("undid.7.hotel")]);
    let ended = instance(&orders, "7");
    assert_eq!(
        (&ended["status"], &ended["reason"]),
        (&json!("compensated"), &json!("flight: flight"))
    );
    assert_eq!(
        subjects(&orders)[2..],
        [
            "undo.7.hotel",
            "undo.7.hotel",
            "trips.7.stuck",
            "undo.7.hotel",
            "trips.7.given-up"
        ]
    );
    orders.assert_same_for_any_batching();
}

#[test]
fn an_operator_may_skip_and_a_late_confirmation_frees_a_stuck_instance() {
    for freed_by in ["trips.7.skip", "undid.7.hotel"] {
        let mut orders = runs(|| trip_of(&["hotel", "flight"], 1, RetryPolicy::none()));
        orders.given(
            [
                "trips.7.booked",
                "did.7.hotel",
                "refused.7.flight",
                "stays.7.hotel",
            ]
            .map(happens),
        );
        assert_eq!(instance(&orders, "7")["status"], "stuck");
        orders.given([happens(freed_by)]);
        assert_eq!(
            instance(&orders, "7")["status"],
            "compensated",
            "{freed_by}"
        );
    }
}

#[test]
fn cancelling_undoes_the_current_step_as_well() {
    let mut orders = runs(trip);
    orders.given(["trips.7.booked", "did.7.hotel", "trips.7.cancelled"].map(happens));
    orders.given(["undid.7.flight", "undid.7.hotel", "trips.7.cancelled"].map(happens));
    assert_eq!(subjects(&orders)[2..4], ["undo.7.flight", "undo.7.hotel"]);
    assert_eq!(instance(&orders, "7")["reason"], "cancelled: cancelled");
    assert_eq!(counts(&orders)["ignored"], json!({ "ended": 1 }));
}

#[test]
fn a_saga_is_not_cancelled_after_its_pivot() {
    let mut orders = runs(|| {
        let last = step("ship", RetryPolicy::forever(), RetryPolicy::none()).pivot();
        trip_of(&["hotel"], 1, RetryPolicy::none()).step(last)
    });
    orders.given(["trips.7.booked", "did.7.hotel", "trips.7.cancelled"].map(happens));
    assert_eq!(counts(&orders)["ignored"], json!({ "late": 1 }));
    orders.after(Duration::from_secs(3_600));
    assert_eq!(instance(&orders, "7")["step"], "ship");
    orders.given(["refused.7.ship", "undid.7.ship", "undid.7.hotel"].map(happens));
    assert_eq!(instance(&orders, "7")["status"], "compensated");
    orders.assert_same_for_any_batching();
}

#[test]
fn a_step_that_refused_and_was_done_after_all_is_undone_or_shown_to_an_operator() {
    let mut orders = runs(trip);
    orders.given(
        [
            "trips.7.booked",
            "did.7.hotel",
            "refused.7.flight",
            "did.7.flight",
        ]
        .map(happens),
    );
    orders.given(["undid.7.hotel", "undid.7.flight"].map(happens));
    assert_eq!(instance(&orders, "7")["status"], "compensated");
    assert!(subjects(&orders).contains(&"undo.7.flight".to_owned()));

    orders.given(["trips.8.booked", "refused.8.hotel", "did.8.hotel"].map(happens));
    let stuck = instance(&orders, "8");
    assert_eq!(
        (&stuck["status"], &stuck["step"]),
        (&json!("stuck"), &json!("hotel"))
    );
    orders.given(["trips.8.resume", "undid.8.hotel"].map(happens));
    assert_eq!(instance(&orders, "8")["status"], "compensated");
    orders.assert_same_for_any_batching();
}

#[test]
fn a_step_without_a_command_waits_for_an_event_that_may_come_before_its_turn() {
    fn saga() -> Saga<Order> {
        let paid = Step::new("paid")
            .succeeds_on(Pattern::from("trips.*.x").of_kind("com.example.paid"))
            .on_success(|order: &mut Order, event| {
                let [payment] = event.json()?;
                order.payment = Some(payment);
                Ok(())
            })
            .compensation(Compensation::new(|call: &Call<'_, Order>| {
                let payment = call.data().payment.clone().unwrap_or_default();
                Ok(Message::to(format!("undo.{}.paid", call.key())).text(payment))
            }));
        let step = step("hotel", RetryPolicy::none(), RetryPolicy::none());
        Saga::new("trip")
            .starts_on("trips.*.booked", |event| event.json())
            .resumes_on("trips.*.resume")
            .step(step)
            .step(paid)
    }
    let paid = |key: &str| event(&format!("trips.{key}.x"), json!(["p1"])).kind("com.example.paid");
    let mut orders = runs(saga);
    // In its turn, before its turn, and twice.
    orders.given([happens("trips.6.booked"), happens("did.6.hotel"), paid("6")]);
    orders.given([
        happens("trips.7.booked"),
        paid("7"),
        paid("7"),
        happens("did.7.hotel"),
    ]);
    for key in ["6", "7"] {
        let ended = instance(&orders, key);
        assert_eq!(
            (&ended["status"], &ended["data"]["payment"]),
            (&json!("completed"), &json!("p1"))
        );
    }
    assert_eq!(counts(&orders)["ignored"], json!({ "duplicate": 1 }));
    // Another type under its subject is not meant.
    orders.given([happens("trips.6.x")]);
    assert_eq!(counts(&orders)["ignored"], json!({ "duplicate": 1 }));

    // What came before its turn is undone as well, and so is what comes after the end.
    orders.given([
        happens("trips.8.booked"),
        paid("8"),
        happens("refused.8.hotel"),
    ]);
    assert_eq!(instance(&orders, "8")["status"], "compensated");
    orders.given([
        happens("trips.9.booked"),
        happens("refused.9.hotel"),
        paid("9"),
    ]);
    assert_eq!(instance(&orders, "9")["status"], "stuck");
    orders.given([happens("trips.9.resume")]);
    assert_eq!(instance(&orders, "9")["status"], "compensated");
    let undone: Vec<_> = orders
        .published()
        .into_iter()
        .filter(|message| message.subject.starts_with("undo."))
        .map(|message| (message.subject, message.data))
        .collect();
    assert_eq!(
        undone,
        [
            ("undo.8.paid".to_owned(), json!("p1")),
            ("undo.9.paid".to_owned(), json!("p1"))
        ]
    );
    assert_eq!(
        counts(&orders)["ended"],
        json!({ "compensated": 2, "completed": 2 })
    );
    orders.assert_same_for_any_batching();
}

#[test]
fn a_step_without_a_command_that_fails_before_its_turn_fails_at_its_turn() {
    fn saga() -> Saga<Order> {
        let weather = Step::new("weather")
            .succeeds_on("did.*.weather")
            .fails_on("refused.*.weather");
        trip_of(&["hotel"], 1, RetryPolicy::none()).step(weather)
    }
    let mut orders = runs(saga);
    orders.given(["trips.6.booked", "refused.6.weather", "refused.6.weather"].map(happens));
    let waiting = instance(&orders, "6");
    assert_eq!(
        (&waiting["step"], &waiting["early_failures"]),
        (
            &json!("hotel"),
            &json!([{ "step": "weather", "why": "weather" }])
        )
    );
    orders.given(["did.6.hotel", "undid.6.hotel"].map(happens));
    let ended = instance(&orders, "6");
    assert_eq!(
        (&ended["status"], &ended["reason"], &ended["early_failures"]),
        (
            &json!("compensated"),
            &json!("weather: weather"),
            &Value::Null
        )
    );
    // A success counts, before the failure and after it.
    for (key, first, second) in [("7", "did", "refused"), ("8", "refused", "did")] {
        orders.given(
            [
                format!("trips.{key}.booked"),
                format!("{first}.{key}.weather"),
                format!("{second}.{key}.weather"),
                format!("did.{key}.hotel"),
            ]
            .each_ref()
            .map(|what| happens(what)),
        );
        assert_eq!(instance(&orders, key)["status"], "completed", "{key}");
    }
    // Another step may fail first.
    orders.given(
        [
            "trips.9.booked",
            "refused.9.weather",
            "refused.9.hotel",
            "refused.9.weather",
        ]
        .map(happens),
    );
    assert_eq!(instance(&orders, "9")["reason"], "hotel: hotel");
    assert_eq!(
        counts(&orders)["ignored"],
        json!({ "duplicate": 1, "late": 1, "ended": 1 })
    );
    orders.assert_same_for_any_batching();
}

#[test]
fn hostile_keys_are_kept_apart_and_impossible_ones_are_rejected() {
    let mut orders = runs(trip);
    let odd = ["a/b", "%2F", "saga", "\u{85}", "ключ", "-"];
    for key in odd {
        orders.given([happens(&format!("trips.{key}.booked"))]);
    }
    assert_eq!(orders.entries("saga/trip/").len(), odd.len());
    orders.after(Duration::from_secs(600));
    for key in odd {
        orders.given([happens(&format!("undid.{key}.hotel"))]);
    }
    assert_eq!(
        counts(&orders)["ended"],
        json!({ "compensated": odd.len() })
    );
    let huge = format!("trips.{}.booked", "k".repeat(1_000));
    let refused = orders
        .apply([happens(&huge)])
        .expect_err("the key fits no entry");
    assert!(refused.to_string().contains("correlation key"), "{refused}");
    orders.assert_same_for_any_batching();
}

#[test]
fn instances_of_an_older_definition_continue_or_say_what_is_missing() {
    let old = || trip_of(&["hotel", "flight", "car"], 1, RetryPolicy::none());
    let mut orders = runs(old);
    orders.given(["trips.1.booked", "trips.2.booked", "did.2.hotel"].map(happens));
    orders.given(["trips.3.booked", "did.3.hotel", "did.3.flight"].map(happens));

    // The flight is gone, there is a train before it, and insurance at the end.
    SAGA.set(|| {
        trip_of(
            &["hotel", "train", "car", "insurance"],
            1,
            RetryPolicy::none(),
        )
    });
    orders.restart();
    orders.given([happens("did.1.hotel")]);
    assert_eq!(instance(&orders, "1")["step"], "train");
    orders.given([happens("trips.2.cancelled")]);
    let lost = instance(&orders, "2");
    assert_eq!(
        (&lost["status"], &lost["step"]),
        (&json!("stuck"), &json!("flight"))
    );
    assert!(
        lost["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("not in this version"))
    );
    // The cancellation is not lost: what was done before is undone.
    orders.given([happens("trips.2.skip")]);
    let cancelled = instance(&orders, "2");
    assert_eq!(
        (&cancelled["status"], &cancelled["step"]),
        (&json!("compensating"), &json!("hotel"))
    );
    // What is behind the furthest step is done; a step that nobody can undo gets stuck.
    orders.given(["did.3.car", "refused.3.insurance", "undid.3.car"].map(happens));
    let lost = instance(&orders, "3");
    assert_eq!(
        (&lost["status"], &lost["step"]),
        (&json!("stuck"), &json!("flight"))
    );
    orders.given(["trips.3.skip", "undid.3.hotel"].map(happens));
    assert_eq!(instance(&orders, "3")["status"], "compensated");

    // The older version again: what it knows continues.
    SAGA.set(old);
    orders.restart();
    orders.given([happens("did.1.train")]);
    assert_eq!(instance(&orders, "1")["status"], "running");
}

#[test]
fn a_newer_format_is_not_touched() {
    let mut orders = runs(trip);
    orders.given([happens("trips.7.booked")]);
    let mut newer = instance(&orders, "7");
    newer["format"] = json!(2);
    SAGA.set(trip);
    let read: Result<foldstream_sdk::saga::Instance<Order>, _> = serde_json::from_value(newer);
    assert!(
        read.is_ok(),
        "fields may be added, and the format says whether to touch it"
    );
}

#[test]
fn index_and_counts_agree_with_the_instances() {
    let mut orders = runs(trip);
    for key in 1..=9 {
        orders.given([happens(&format!("trips.{key}.booked"))]);
    }
    orders.given(
        [
            "did.2.hotel",
            "did.3.hotel",
            "refused.4.hotel",
            "trips.5.cancelled",
        ]
        .map(happens),
    );
    assert_eq!(
        counts(&orders)["now"],
        json!({ "running/hotel": 5, "running/flight": 2, "compensated/-": 1, "compensating/hotel": 1 })
    );
    let waiting = orders.entries("saga-index/trip/running/hotel/");
    let keys: Vec<_> = waiting
        .iter()
        .filter_map(|(key, _)| key.rsplit('/').next())
        .collect();
    assert_eq!(
        keys,
        ["1", "6", "7", "8", "9"],
        "those that have waited longest come first"
    );
}

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % limit as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// A participant: does each piece of work once, by its id, and undoes it if asked.
#[derive(Default)]
struct Participant {
    works: std::collections::BTreeMap<String, Work>,
}

#[derive(Default)]
struct Work {
    is_refused: Option<bool>,
    is_done: bool,
    is_undone: bool,
}

impl Participant {
    /// Its answer to a command; none if it is lost.
    fn serve(&mut self, subject: &str, id: &str, random: &mut Random) -> Option<String> {
        let parts: Vec<_> = subject.split('.').collect();
        let (verb, key, step) = (parts[0], parts[1], parts[2]);
        let work = self.works.entry(id.to_owned()).or_default();
        let answer = if verb == "undo" {
            if random.one_in(4) {
                "stays"
            } else {
                work.is_undone = true;
                "undid"
            }
        } else if work.is_refused.is_none() && random.one_in(5) {
            "busy"
        } else {
            assert!(!work.is_undone, "{id} is asked for after it was undone");
            let is_refused = *work.is_refused.get_or_insert_with(|| random.one_in(8));
            work.is_done |= !is_refused;
            if is_refused { "refused" } else { "did" }
        };
        (!random.one_in(10)).then(|| format!("{answer}.{key}.{step}"))
    }
}

fn patient() -> Saga<Order> {
    trip_of(&["hotel", "flight", "car"], 3, RetryPolicy::forever())
}

/// Runs sagas over a network that loses, repeats and reorders, until nothing is left to do.
fn run_over_a_bad_network(seed: u64) {
    let mut random = Random(seed);
    let mut orders = runs(patient);
    let mut participant = Participant::default();
    // Commands arrive in their order; answers in any.
    let (mut served, mut answers) = (0, Vec::new());
    let keys = 5;
    for key in 0..keys {
        orders.given([happens(&format!("trips.{key}.booked"))]);
    }
    for round in 0.. {
        assert!(round < 5_000, "seed {seed}: it never ends");
        let published = orders.published();
        let open = counts(&orders)["now"]
            .as_object()
            .is_some_and(|now| now.keys().any(|group| !group.ends_with("/-")));
        if !open && served == published.len() && answers.is_empty() {
            break;
        }
        match random.below(4) {
            0 | 1 if served < published.len() => {
                let message = &published[served];
                served += 1;
                if let Some(id) = message.data["id"].as_str() {
                    answers.extend(participant.serve(&message.subject, id, &mut random));
                }
            }
            2 if !answers.is_empty() => {
                let mut batch = Vec::new();
                for _ in 0..=random.below(3).min(answers.len() - 1) {
                    let place = random.below(answers.len());
                    let twice = random.one_in(4);
                    let answer = if twice {
                        answers[place].clone()
                    } else {
                        answers.remove(place)
                    };
                    batch.push(happens(&answer));
                    if answers.is_empty() {
                        break;
                    }
                }
                orders.given(batch);
            }
            3 if random.one_in(3) => {
                orders.after(Duration::from_secs(random.below(90) as u64));
            }
            3 if random.one_in(20) => {
                let key = random.below(keys);
                orders.given([happens(&format!("trips.{key}.cancelled"))]);
            }
            3 if random.one_in(10) => {
                orders.restart();
            }
            _ => {}
        }
    }
    check(seed, &orders, &participant, keys);
}

fn check(seed: u64, orders: &HandlerHarness<Orders>, participant: &Participant, keys: usize) {
    let published = orders.published();
    let mut asked = std::collections::BTreeSet::new();
    for message in published
        .iter()
        .filter(|message| message.data["id"].is_string())
    {
        let attempt = (message.subject.clone(), message.data["attempt"].to_string());
        assert!(asked.insert(attempt), "seed {seed}: twice: {message:?}");
    }
    for key in 0..keys {
        let status = instance(orders, &key.to_string())["status"].clone();
        let is_completed = status == "completed";
        assert!(
            is_completed || status == "compensated",
            "seed {seed}: {key} is {status}"
        );
        let about = |verb: &str| {
            let start = format!("{verb}.{key}.");
            let mut steps: Vec<String> = published
                .iter()
                .filter_map(|message| message.subject.strip_prefix(&start))
                .map(str::to_owned)
                .collect();
            steps.dedup();
            steps
        };
        let (done, undone) = (about("do"), about("undo"));
        assert!(
            !is_completed || undone.is_empty(),
            "seed {seed}: {key}: {undone:?}"
        );
        let mut reverse: Vec<_> = done.iter().filter(|step| undone.contains(step)).collect();
        reverse.reverse();
        assert_eq!(
            undone.iter().collect::<Vec<_>>(),
            reverse,
            "seed {seed}: {key}"
        );
        let ends = ["completed", "given-up"].map(|end| format!("trips.{key}.{end}"));
        let ends = published
            .iter()
            .filter(|message| ends.contains(&message.subject))
            .count();
        assert_eq!(ends, 1, "seed {seed}: {key}");
        for step in ["hotel", "flight", "car"] {
            let (begin, end) = (format!("trip/{key}/"), format!("/{step}"));
            let mut works = participant.works.iter();
            let is_of_step = |id: &String| id.starts_with(&begin) && id.ends_with(&end);
            let work = works.find_map(|(id, work)| is_of_step(id).then_some(work));
            let is_done = work.is_some_and(|work| work.is_done && !work.is_undone);
            assert_eq!(
                is_done, is_completed,
                "seed {seed}: {step} of {key}, which is {status}"
            );
        }
    }
    orders.assert_same_for_any_batching();
}

#[test]
fn over_a_bad_network_everything_is_done_or_undone_once() {
    for seed in 0..25 {
        run_over_a_bad_network(seed);
    }
}
