//! Writes the sample events: `cargo run -p auctions --example auction-samples > events.ndjson`.
//!
//! As in NEXMark, there are many bids for each auction and a few auctions for
//! each person. The same in every run: chance comes from a fixed seed.

use std::fmt::Write as _;

/// How many auctions are opened.
pub const AUCTIONS: u64 = 60;

const PEOPLE: u64 = 24;
const NAMES: [&str; 8] = [
    "Ada", "Barbara", "Edsger", "Frances", "Grace", "Hedy", "Niklaus", "Radia",
];
const CITIES: [&str; 6] = ["Bern", "Lagos", "Lima", "Oslo", "Osaka", "Quebec"];
const ITEMS: [&str; 10] = [
    "lamp", "chair", "clock", "atlas", "radio", "kettle", "globe", "camera", "piano", "rug",
];

const HOUR: u64 = 3_600;

#[allow(dead_code, reason = "the tests use the rest of this file as a module")]
fn main() {
    print!("{}", events());
}

/// All events, one per line, by time.
pub fn events() -> String {
    let mut chance = Chance(20_261_102);
    let mut events = Vec::new();
    for person in 1..=PEOPLE {
        let (name, city) = (
            NAMES[chance.below(8) as usize],
            CITIES[chance.below(6) as usize],
        );
        let data = format!("{{\"name\":\"{name} {person}\",\"city\":\"{city}\"}}");
        events.push(Sample {
            second: chance.below(HOUR),
            subject: format!("{person}.person"),
            data,
        });
    }
    for number in 0..AUCTIONS {
        life_of(1_001 + number, &mut chance, &mut events);
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
        let time = time(*second);
        writeln!(
            lines,
            "{{\"subject\":\"auctions.{subject}\",\"time\":\"{time}\",\"id\":\"sample-{number}\",\"data\":{data}}}"
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

/// An auction and its bids.
fn life_of(auction: u64, chance: &mut Chance, events: &mut Vec<Sample>) {
    let opened = HOUR + chance.below(40 * HOUR);
    let lasts = (1 + chance.below(12)) * HOUR;
    let (item, category) = (chance.below(10), 1 + chance.below(5));
    // A quarter of the people sell; the others bid.
    let (seller, initial) = (1 + chance.below(PEOPLE / 4), 500 + chance.below(50) * 100);
    let reserve = initial + chance.below(20) * 100;
    let data = format!(
        "{{\"item\":\"{}\",\"category\":{category},\"seller\":{seller},\"initial_bid_cents\":{initial},\
         \"reserve_cents\":{reserve},\"expires\":\"{}\"}}",
        ITEMS[item as usize],
        time(opened + lasts)
    );
    events.push(Sample {
        second: opened,
        subject: format!("{auction}.auction"),
        data,
    });
    let mut price = initial;
    for _ in 0..chance.below(10) {
        price += 50 + chance.below(10) * 50;
        let bidder = 1 + PEOPLE / 4 + chance.below(PEOPLE - PEOPLE / 4);
        let data = format!("{{\"bidder\":{bidder},\"price_cents\":{price}}}");
        // One bid in twenty or so comes too late.
        let second = opened + 1 + chance.below(lasts + lasts / 20);
        events.push(Sample {
            second,
            subject: format!("{auction}.bid"),
            data,
        });
    }
}

fn time(second: u64) -> String {
    let (day, hour, minute) = (
        1 + second / (24 * HOUR),
        second / HOUR % 24,
        second / 60 % 60,
    );
    format!("2026-10-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
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
