//! Writes the sample events: `cargo run -p order-totals --example order-samples > events.ndjson`.
//!
//! The same in every run: chance comes from a fixed seed.

use std::fmt::Write as _;

/// Who orders. The first ones order most.
pub const CUSTOMERS: [&str; 8] = [
    "ada",
    "grace",
    "edsger",
    "barbara",
    "alan",
    "katherine",
    "donald",
    "hedy",
];

/// How many orders are placed.
const ORDERS: u64 = 120;

#[allow(dead_code, reason = "the tests use the rest of this file as a module")]
fn main() {
    print!("{}", events());
}

/// All events, one per line, by time.
pub fn events() -> String {
    let mut chance = Chance(20_261_101);
    let mut events = Vec::new();
    for order in 1..=ORDERS {
        life_of(order, &mut chance, &mut events);
    }
    events.sort();
    let mut lines = String::new();
    for (
        number,
        Sample {
            second,
            subject,
            data,
        },
    ) in (1..).zip(&events)
    {
        let (day, hour, minute) = (1 + second / 86_400, second / 3_600 % 24, second / 60 % 60);
        writeln!(
            lines,
            "{{\"subject\":\"orders.{subject}\",\"time\":\"2026-10-{day:02}T{hour:02}:{minute:02}:{:02}Z\",\
             \"id\":\"sample-{number}\",\"data\":{data}}}",
            second % 60
        )
        .expect("a string takes all that is written");
    }
    lines
}

/// An event, at a second of October 2026.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Sample {
    second: u64,
    subject: String,
    data: String,
}

/// What happens to one order.
fn life_of(order: u64, chance: &mut Chance, events: &mut Vec<Sample>) {
    let among = 1 + chance.below(8);
    let customer = CUSTOMERS[chance.below(among) as usize];
    let mut second = chance.below(20 * 86_400);
    let total = 500 + chance.below(40) * 250;
    let mut happens = |kind: &str, more: String, pause: u64| {
        let data = format!("{{\"order\":\"{order}\"{more}}}");
        events.push(Sample {
            second,
            subject: format!("{customer}.{kind}"),
            data,
        });
        second += 60 + pause;
    };
    happens(
        "placed",
        format!(",\"total_cents\":{total},\"currency\":\"EUR\""),
        chance.below(3_600),
    );
    if chance.below(10) == 0 {
        happens("cancelled", ",\"reason\":\"changed mind\"".to_owned(), 0);
        return;
    }
    let method = ["card", "invoice", "transfer"][chance.below(3) as usize];
    happens(
        "paid",
        format!(",\"method\":\"{method}\""),
        chance.below(2 * 86_400),
    );
    if chance.below(10) < 8 {
        happens(
            "shipped",
            ",\"carrier\":\"post\"".to_owned(),
            chance.below(5 * 86_400),
        );
        if chance.below(8) == 0 {
            happens("returned", format!(",\"refund_cents\":{}", total / 2), 0);
        }
    }
}

/// A small generator of pseudo-random numbers (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let number = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (number ^ (number >> 31)) % limit
    }
}
