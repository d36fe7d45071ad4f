//! Manifests of modules, and answers of the process that checks uploads.

use fastrand::Rng;
use foldstream::entry::{self, DrawnManifest};
use foldstream_tests::fuzz::{change, drive, text};

#[test]
fn manifests_are_sound_or_refused_with_a_reason() {
    drive::run("manifests", 4_000, |rng| {
        if rng.u8(0..4) == 0 {
            answer(rng)
        } else {
            manifest(rng)
        }
    });
}

fn name(rng: &mut Rng) -> String {
    if rng.u8(0..4) == 0 {
        text::any(rng)
    } else {
        text::word(rng)
    }
}

fn limit(rng: &mut Rng) -> Option<u64> {
    let around = 1_u64 << rng.u8(0..64);
    *rng.choice(&[
        None,
        None,
        Some(0),
        Some(1),
        Some(1_000),
        Some(around),
        Some(around - 1),
        Some(u64::MAX),
    ])
    .expect("some")
}

fn manifest(rng: &mut Rng) -> &'static str {
    let subject = |rng: &mut Rng| {
        if rng.u8(0..6) == 0 {
            text::any(rng)
        } else {
            format!("{}.>", text::word(rng))
        }
    };
    let subjects = if rng.u8(0..20) == 0 {
        rng.usize(0..70)
    } else {
        rng.usize(1..4)
    };
    let queries = if rng.u8(0..20) == 0 {
        rng.usize(0..300)
    } else {
        rng.usize(0..4)
    };
    let drawn = DrawnManifest {
        name: name(rng),
        description: text::any(rng),
        subjects: (0..subjects).map(|_| subject(rng)).collect(),
        key_rule: (rng.u8(0..5), rng.u32(0..600), text::any(rng)),
        limits: [limit(rng), limit(rng), limit(rng), limit(rng)],
        attempts: limit(rng).map(|limit| limit as u32),
        backoff_ms: [
            limit(rng).map(|limit| limit as u32),
            limit(rng).map(|limit| limit as u32),
        ],
        queries: (0..queries).map(|_| (name(rng), text::any(rng))).collect(),
    };
    match entry::manifest(&drawn) {
        Ok(info) => {
            assert!(
                (1..=63).contains(&info.name.len()) && info.name.is_ascii(),
                "{info:?}"
            );
            assert_eq!(
                (&info.subjects, info.queries.len()),
                (&drawn.subjects, drawn.queries.len())
            );
            let limits = &info.limits;
            let given = [
                limits.memory_bytes,
                limits.deadline_ms,
                limits.batch_events.map(u64::from),
                limits.state_bytes,
            ];
            assert!(given.iter().all(|limit| *limit != Some(0)), "{info:?}");
            serde_json::to_string(&info).expect("plain data");
            "sound"
        }
        Err(error) => {
            let words = error.to_string();
            assert!(!words.is_empty() && words.len() < 2_048, "{words:?}");
            assert!(
                !words.contains(char::is_control),
                "words that would steer a terminal: {words:?}"
            );
            "refused"
        }
    }
}

/// Schemas of events, as an answer has them; none, or some of which most are sound.
fn schemas(rng: &mut Rng) -> String {
    let all = (0..rng.usize(0..3)).map(|_| {
        serde_json::json!({
            "event": text::any(rng),
            "version": rng.u8(0..3),
            "direction": if rng.bool() { "reads" } else { "publishes" },
            "schema": { "type": text::any(rng) },
        })
    });
    let all: Vec<_> = all.collect();
    if all.is_empty() {
        return String::new();
    }
    serde_json::json!({ "format": 1, "schemas": all }).to_string()
}

fn answer(rng: &mut Rng) -> &'static str {
    let mut sound = b"FSANSWR\x02".to_vec();
    match rng.u8(0..5) {
        0 => {
            sound.extend([b'K', rng.u8(0..3)]);
            let imports: Vec<String> = (0..rng.usize(0..5)).map(|_| text::any(rng)).collect();
            sound.extend((imports.len() as u16).to_be_bytes());
            for import in imports {
                sound.extend((import.len() as u16).to_be_bytes());
                sound.extend(import.as_bytes());
            }
            let schemas = schemas(rng);
            sound.extend((schemas.len() as u32).to_be_bytes());
            sound.extend(schemas.into_bytes());
            sound.extend((0..rng.usize(0..9)).map(|_| rng.u8(..)));
        }
        1 => sound.extend(b"Ccode"),
        2 => sound.extend([b'W', rng.u8(0..3), 1, 1]),
        kind => sound.extend(
            [
                if kind == 3 { &b"R"[..] } else { b"B" },
                text::any(rng).as_bytes(),
            ]
            .concat(),
        ),
    }
    if rng.u8(0..3) > 0 {
        sound = change::changed(rng, &sound, &["K", "R", "\0", "\0\x01", "\u{ff}"]);
    }
    let length = sound.len();
    match entry::answer(sound) {
        None => "no answer",
        Some(shown) => {
            assert!(shown.len() < 8 * length + 256, "{shown:?}");
            "answer"
        }
    }
}
