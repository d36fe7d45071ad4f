//! Plays payment, stock and shipping for the examples of sagas.
//!
//! It does what a participant of a saga must do: the work of a command is done once, by the id of
//! the command, and a command that comes again gets the same answer. A command that undoes is
//! confirmed even if there is nothing to undo.
//!
//! The order says what goes wrong:
//!
//! - card `declined`; `busy` (the first attempt fails, the second succeeds); `silent` (no answer);
//!   `slow` (the answer comes after twelve seconds); `refund-later` (the first refund fails);
//!   `no-refund` (every refund fails);
//! - item `sold-out`;
//! - address `nowhere`.

use std::time::Duration;

use foldstream_sdk::prelude::*;

/// How long a slow card takes: longer than anybody waits for it.
const SLOWNESS: Duration = Duration::from_secs(12);

#[derive(Deserialize)]
struct Command {
    id: String,
    item: String,
    card: String,
    address: String,
}

/// What was done for the id of a command.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Work {
    /// The answer to the command.
    answer: Option<String>,
    /// How often it came.
    times: u32,
    /// How often it was to be undone.
    undone: u32,
}

/// An answer.
#[derive(Serialize)]
struct Answer<'a> {
    payment: &'a str,
}

/// The participants.
pub struct Participants {
    /// `work/<id>`
    work: Table<String, Work>,
}

impl Handler for Participants {
    fn manifest() -> Manifest<Self> {
        Manifest::new("saga-participants")
            .description("Plays payment, stock and shipping")
            .subjects([
                "payment.*.charge",
                "payment.*.refund",
                "stock.*.reserve",
                "stock.*.release",
                "shipping.*.send",
            ])
            .publishes([
                "payment.*.charged",
                "payment.*.declined",
                "payment.*.unavailable",
                "payment.*.refunded",
                "payment.*.refund-failed",
                "stock.*.reserved",
                "stock.*.out-of-stock",
                "stock.*.released",
                "shipping.*.sent",
                "shipping.*.refused",
            ])
            .timers()
            .key(KeyRule::SubjectToken(2))
    }

    fn open(state: &State) -> Self {
        Self {
            work: state.table("work"),
        }
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let command: Command = event.json()?;
        let (to, order) = (event.token(1)?, event.token(2)?);
        let mut work = self.work.get_or_default(&command.id)?;
        let answer = match event.token(3)? {
            "refund" | "release" => Some(undo(&command, &mut work, event.token(3)?).to_owned()),
            _ => carry_out(&command, &mut work, to),
        };
        match answer {
            Some(answer) if answer == "slow" => {
                let name = format!("slow/{order}");
                effects.set_timer(Timer::after(event, SLOWNESS, name));
            }
            Some(answer) => effects.publish(message(to, order, &answer)?),
            None => {}
        }
        Ok(self.work.put(&command.id, work)?)
    }

    fn on_timer(&mut self, timer: &Fired<'_>, effects: &mut Effects) -> Result<(), Failure> {
        effects.publish(message("payment", timer.part(2), "charged")?);
        Ok(())
    }
}

fn message(to: &str, order: &str, answer: &str) -> Result<Message, Failure> {
    let payment = format!("payment-of-{order}");
    Message::to(format!("{to}.{order}.{answer}")).json(&Answer { payment: &payment })
}

/// Does the work of a command once; a command that comes again gets the same answer.
fn carry_out(command: &Command, work: &mut Work, to: &str) -> Option<String> {
    if work.answer.is_some() {
        return work.answer.clone();
    }
    work.times += 1;
    let answer = match (to, command.card.as_str()) {
        ("payment", "declined") => "declined",
        ("payment", "busy") if work.times == 1 => return Some("unavailable".to_owned()),
        ("payment", "silent") => return None,
        ("payment", "slow") if work.times == 1 => return Some("slow".to_owned()),
        ("payment", "slow") => return None,
        ("payment", _) => "charged",
        ("stock", _) if command.item == "sold-out" => "out-of-stock",
        ("stock", _) => "reserved",
        _ if command.address == "nowhere" => "refused",
        _ => "sent",
    };
    work.answer = Some(answer.to_owned());
    work.answer.clone()
}

/// Undoes what was done, if anything was.
fn undo(command: &Command, work: &mut Work, what: &str) -> &'static str {
    work.undone += 1;
    match (what, command.card.as_str()) {
        ("refund", "no-refund") => "refund-failed",
        ("refund", "refund-later") if work.undone == 1 => "refund-failed",
        ("refund", _) => "refunded",
        _ => "released",
    }
}

handler!(Participants);
