//! Changes of something sound: most of it stays as it was, so that what reads it gets far.

use fastrand::Rng;

/// Most changes at once; mostly there are one or two.
const CHANGES_MAX: usize = 12;
/// Most that a text grows by one change.
const GROWTH_MAX: usize = 20_000;

/// A text with some changes: bytes flipped, cut, repeated, moved, or replaced by one of these
/// words.
pub fn changed(rng: &mut Rng, sound: &[u8], words: &[&str]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    let most = if rng.u8(0..4) == 0 { CHANGES_MAX } else { 2 };
    for _ in 0..rng.usize(1..=most) {
        change(rng, &mut bytes, words);
    }
    bytes
}

/// The same, for what has to be text.
pub fn changed_text(rng: &mut Rng, sound: &str, words: &[&str]) -> String {
    String::from_utf8_lossy(&changed(rng, sound.as_bytes(), words)).into_owned()
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, words: &[&str]) {
    let at = rng.usize(0..=bytes.len());
    let length = rng.usize(0..=16).min(bytes.len() - at);
    match rng.u8(0..10) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
        1 if at < bytes.len() => {
            bytes[at] = *rng
                .choice(b"\0\n\r\t \"\\{}[]:,.0%\x7f\x80\xff")
                .expect("some");
        }
        2 => drop(bytes.drain(at..at + length)),
        3 if rng.u8(0..4) == 0 => bytes.truncate(at),
        4 => {
            let part = bytes[at..at + length].to_vec();
            let times = if rng.u8(0..8) == 0 {
                GROWTH_MAX / part.len().max(1)
            } else {
                rng.usize(1..4)
            };
            bytes.splice(at..at, part.repeat(times));
        }
        5 => {
            let part = bytes[at..at + length].to_vec();
            let to = rng.usize(0..=bytes.len());
            bytes.splice(to..to, part);
        }
        _ if words.is_empty() => {}
        6 | 7 => {
            let word = rng.choice(words).expect("some").bytes();
            bytes.splice(at..at + length, word);
        }
        _ => {
            let word = rng.choice(words).expect("some").bytes();
            bytes.splice(at..at, word);
        }
    }
}
