//! Uploads drawn by a seed: the same number gives the same bytes, so that each failure can be seen
//! again.

use fastrand::Rng;

use super::smith::{Drawn, Smith};
use super::strange;
use crate::hostile;

/// Random bytes from which one module is made.
const RANDOM_BYTES: usize = 4_096;
/// Most changes to a sound module.
const CHANGES_MAX: usize = 16;
/// Deepest nesting and most members of a shape: most of them are small, so that many can be checked
/// in a minute.
const SHAPE_MAX: usize = 200_000;

/// One upload made of sound components, and what kind of upload it is.
pub fn upload(seed: u64, sound: &[Vec<u8>], smith: &mut Smith) -> (&'static str, Vec<u8>) {
    let mut rng = Rng::with_seed(seed);
    match rng.u8(0..12) {
        0 | 1 => (
            "random sections of a component",
            sections(&mut rng, hostile::COMPONENT, 12),
        ),
        2 => (
            "random sections of a core module",
            sections(&mut rng, hostile::CORE, 13),
        ),
        3 | 4 => ("a sound module with changes", changed(&mut rng, sound)),
        5 => ("random bytes", noise(&mut rng, sound)),
        6 => (
            "a random core module that names its world",
            described(&mut rng, sound),
        ),
        7 => ("a hostile shape", shape(&mut rng)),
        8 | 9 => drawn(&mut rng, sound, smith),
        _ => (
            "a sound module with strange sections behind it",
            with_sections(&mut rng, sound),
        ),
    }
}

fn random(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; rng.usize(64..RANDOM_BYTES)];
    rng.fill(&mut bytes);
    bytes
}

/// A component of sections with plausible numbers and random contents.
fn sections(rng: &mut Rng, first: &[u8], ids: u8) -> Vec<u8> {
    let mut bytes = first.to_vec();
    for _ in 0..rng.usize(1..20) {
        let content: Vec<u8> = (0..rng.usize(0..60)).map(|_| plausible(rng)).collect();
        bytes.extend(hostile::section(rng.u8(0..=ids), &content));
    }
    bytes
}

/// A byte that often means something: small numbers, types, ends.
fn plausible(rng: &mut Rng) -> u8 {
    match rng.u8(0..4) {
        0 | 1 => rng.u8(0..8),
        2 => rng.u8(0x40..0x80),
        _ => rng.u8(..),
    }
}

/// A core module with a random component as the description of its world.
fn described(rng: &mut Rng, sound: &[Vec<u8>]) -> Vec<u8> {
    let mut module = sections(rng, hostile::CORE, 13);
    module.extend(hostile::custom_section(
        "component-type:fuzz",
        &changed(rng, sound),
    ));
    module
}

/// A sound module with bytes changed, moved, left out or repeated.
fn changed(rng: &mut Rng, sound: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = sound[rng.usize(..sound.len())].clone();
    // The first bytes say what it is; most of what is looked at is in the first and the last
    // kilobytes.
    for _ in 0..rng.usize(1..=CHANGES_MAX) {
        let end = bytes.len();
        let at = match rng.u8(0..3) {
            0 => rng.usize(8..end),
            1 => rng.usize(8..end.min(2_048)),
            _ => rng.usize(end.saturating_sub(4_096).max(8)..end),
        };
        let length = rng.usize(1..64).min(end - at);
        match rng.u8(0..6) {
            0 => bytes[at] ^= 1 << rng.u8(0..8),
            1 => bytes[at] = rng.u8(..),
            2 => {
                bytes[at] = *rng
                    .choice(&[0, 1, 0x40, 0x41, 0x42, 0x7f, 0x80, 0xff])
                    .expect("there are some");
            }
            3 => drop(bytes.drain(at..at + length)),
            4 => {
                let part = bytes[at..at + length].to_vec();
                let times = rng.usize(1..200);
                bytes.splice(at..at, part.repeat(times));
            }
            _ => bytes.truncate(at.max(16)),
        }
        if bytes.len() < 16 {
            break;
        }
    }
    bytes
}

fn with_sections(rng: &mut Rng, sound: &[Vec<u8>]) -> Vec<u8> {
    let component = &sound[rng.usize(..sound.len())];
    strange::behind(rng, component)
}

/// WebAssembly that is valid, alone or behind a sound module.
fn drawn(rng: &mut Rng, sound: &[Vec<u8>], smith: &mut Smith) -> (&'static str, Vec<u8>) {
    let drawn = smith.draw(rng.u64(..));
    let (id, bytes) = match drawn {
        Some(Drawn::Module(bytes)) => (1, bytes),
        Some(Drawn::Component(bytes)) => (4, bytes),
        None => return ("random bytes", noise(rng, sound)),
    };
    if rng.bool() {
        return ("drawn WebAssembly", bytes);
    }
    let component = &sound[rng.usize(..sound.len())];
    (
        "a sound module with drawn WebAssembly behind it",
        [&component[..], &hostile::section(id, &bytes)].concat(),
    )
}

fn noise(rng: &mut Rng, sound: &[Vec<u8>]) -> Vec<u8> {
    let first = &sound[rng.usize(..sound.len())][..8];
    [first, &random(rng)].concat()
}

fn shape(rng: &mut Rng) -> Vec<u8> {
    // As many small ones as large ones.
    let most = 1 << rng.u32(0..=SHAPE_MAX.ilog2());
    let count = rng.usize(1..=most);
    let tag = if rng.bool() {
        hostile::COMPONENT_TYPE
    } else {
        hostile::INSTANCE_TYPE
    };
    match rng.u8(0..8) {
        0 => hostile::nested_types(tag, count),
        1 => hostile::nested_types_in_core(tag, count),
        2 => hostile::nested_components(count.min(1_500)),
        3 => hostile::many_types(count),
        4 => hostile::wide_type(count),
        5 => hostile::doubling_types(count.min(99), rng.usize(1..1_000)),
        6 => hostile::empty_sections(count * 3),
        _ => hostile::nested_blocks(count),
    }
}
