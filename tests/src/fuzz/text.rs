//! Texts of all kinds: most are as they should be, some are what a careless or hostile sender
//! writes.

use std::fmt::Write as _;

use fastrand::Rng;

/// Pieces of texts that somebody may stumble over.
const PIECES: &[&str] = &[
    "",
    " ",
    ".",
    "..",
    "*",
    ">",
    "/",
    "\\",
    "\"",
    "'",
    "%",
    "%2E",
    "%00",
    "%ff",
    "%zz",
    "{",
    "}",
    "{type}",
    "$",
    "\0",
    "\n",
    "\r\n",
    "\t",
    "\x1b[2J",
    "\u{7f}",
    "\u{85}",
    "\u{2028}",
    "\u{feff}",
    "\u{fffd}",
    "\u{fdd0}",
    "\u{10ffff}",
    "é",
    "e\u{301}",
    "ß",
    "İ",
    "😀",
    "中",
    "\u{202e}",
    "null",
    "true",
    "-1",
    "0",
    "18446744073709551616",
    "1e999",
];

/// A short plain word.
pub fn word(rng: &mut Rng) -> String {
    (0..rng.usize(1..8))
        .map(|_| char::from(rng.u8(b'a'..=b'z')))
        .collect()
}

/// Mostly a plain word, sometimes any text.
pub fn any(rng: &mut Rng) -> String {
    match rng.u8(0..6) {
        0..=2 => word(rng),
        3 => format!("{}{}", word(rng), rng.choice(PIECES).expect("some")),
        4 => (0..rng.usize(0..6))
            .map(|_| *rng.choice(PIECES).expect("some"))
            .collect(),
        _ if rng.u8(0..8) == 0 => {
            let piece = *rng
                .choice(&["a", "a.", "é", "%41", "{a}", "\""])
                .expect("some");
            piece.repeat(
                *rng.choice(&[63, 64, 128, 255, 256, 600, 1_024, 1_025, 9_000])
                    .expect("some"),
            )
        }
        _ => (0..rng.usize(0..12)).map(|_| rng.char(..)).collect(),
    }
}

/// A number as text, near a limit as often as not.
pub fn number(rng: &mut Rng) -> String {
    let limit = 1_i128
        << *rng
            .choice(&[0, 7, 8, 15, 16, 31, 32, 53, 63, 64])
            .expect("some");
    match rng.u8(0..8) {
        0 => (limit - 1).to_string(),
        1 => limit.to_string(),
        2 => (-limit).to_string(),
        3 => format!("{}.{}", rng.u8(..), rng.u8(..)),
        4 => format!("1e{}", rng.i16(-400..400)),
        _ => rng.u16(..).to_string(),
    }
}

/// A JSON text, mostly valid and shallow.
pub fn json(rng: &mut Rng, depth: usize) -> String {
    match rng.u8(0..if depth == 0 { 6 } else { 10 }) {
        0 => "null".to_owned(),
        1 => rng.bool().to_string(),
        2 => number(rng),
        3..=5 => quoted(rng),
        6 => {
            let bytes = *rng
                .choice(&["", "AP8=", "YQ==", "YQ", "?", "/w=="])
                .expect("some");
            format!("{{\"$bytes\":\"{bytes}\"}}")
        }
        7 => {
            let members: Vec<_> = (0..rng.usize(0..4)).map(|_| json(rng, depth - 1)).collect();
            format!("[{}]", members.join(space(rng, ",")))
        }
        8 if rng.u8(0..16) == 0 => {
            let levels = *rng
                .choice(&[100, 120, 121, 127, 128, 129, 2_000])
                .expect("some");
            format!("{}{}", "[".repeat(levels), "]".repeat(levels))
        }
        _ => {
            let members: Vec<_> = (0..rng.usize(0..4))
                .map(|_| format!("{}:{}", quoted(rng), json(rng, depth - 1)))
                .collect();
            format!("{{{}}}", members.join(space(rng, ",")))
        }
    }
}

/// A string of JSON, with escapes of all kinds.
pub fn quoted(rng: &mut Rng) -> String {
    let text = any(rng);
    if rng.u8(0..4) > 0 {
        return serde_json::to_string(&text).expect("a text");
    }
    let mut quoted = "\"".to_owned();
    for unit in text.encode_utf16().take(40) {
        write!(quoted, "\\u{unit:04x}").expect("a string takes text");
    }
    if rng.u8(0..8) == 0 {
        quoted.push_str("\\ud800");
    }
    quoted + "\""
}

fn space(rng: &mut Rng, separator: &'static str) -> &'static str {
    if rng.u8(0..4) == 0 {
        rng.choice(&[" ,", ", ", ",\t", ",\n"]).expect("some")
    } else {
        separator
    }
}

/// A time, mostly one in RFC 3339.
pub fn time(rng: &mut Rng) -> String {
    let second = rng.choice(&["00", "59", "60", "61"]).expect("some");
    let fraction = rng
        .choice(&["", ".5", ".000000001", ".9999999999999", ".", ",5"])
        .expect("some");
    let offset = rng
        .choice(&[
            "Z", "z", "+00:00", "-23:59", "+24:00", "", "+0100", "Z[UTC]", "+01:0é",
        ])
        .expect("some");
    let year = rng
        .choice(&[
            "1969", "1970", "2018", "2026", "2554", "2555", "9999", "0000", "+2018", "20é8",
        ])
        .expect("some");
    match rng.u8(0..6) {
        0 => any(rng),
        1 => format!(
            "{year}-{:02}-{:02}T{:02}:00:{second}{fraction}{offset}",
            rng.u8(0..14),
            rng.u8(0..33),
            rng.u8(0..26)
        ),
        _ => format!("2018-04-05T17:{:02}:00{fraction}{offset}", rng.u8(0..60)),
    }
}
