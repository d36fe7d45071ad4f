//! Subjects and patterns, compared with the simplest implementation of their meaning.

use fastrand::Rng;
use foldstream::cloudevents::{SubjectTemplate, percent};
use foldstream::subject::{LENGTH_MAX, Pattern, SubjectSet, validate};
use foldstream::timestamp;
use foldstream_tests::fuzz::{change, drive, text};

#[test]
fn subjects_and_patterns_mean_what_nats_says() {
    drive::run("subjects", 6_000, |rng| match rng.u8(0..8) {
        0..=2 => pattern(rng),
        3 => covered(rng),
        4 => set(rng),
        5 => template(rng),
        6 => percent_encoding(rng),
        _ => time(rng),
    });
}

fn token(rng: &mut Rng) -> &'static str {
    rng.choice(&["a", "b", "c", "*", "*", ">", "a*", "é", "%2E"])
        .expect("some")
}

fn drawn(rng: &mut Rng) -> String {
    match rng.u8(0..8) {
        0 => text::any(rng),
        1 => {
            let parts: Vec<_> = (0..rng.usize(1..4)).map(|_| text::any(rng)).collect();
            parts.join(".")
        }
        _ => {
            let parts: Vec<_> = (0..rng.usize(1..6)).map(|_| token(rng)).collect();
            parts.join(".")
        }
    }
}

fn subject(rng: &mut Rng) -> String {
    let parts: Vec<_> = (0..rng.usize(1..6))
        .map(|_| *rng.choice(&["a", "b", "c", "é"]).expect("some"))
        .collect();
    parts.join(".")
}

/// A pattern that is sound.
fn sound(rng: &mut Rng) -> Pattern {
    loop {
        if let Ok(pattern) = Pattern::parse(&drawn(rng)) {
            return pattern;
        }
    }
}

fn is_plain(text: &str) -> bool {
    let tokens_are_there = text.split('.').all(|token| !token.is_empty());
    tokens_are_there
        && text.len() <= LENGTH_MAX
        && !text.chars().any(|c| c.is_whitespace() || c.is_control())
}

fn is_pattern(text: &str) -> bool {
    let tokens: Vec<_> = text.split('.').collect();
    let wild = |token: &str| token.contains('*') || token.contains('>');
    let (last, before) = tokens.split_last().expect("there is one");
    is_plain(text)
        && before.iter().all(|token| *token == "*" || !wild(token))
        && (matches!(*last, "*" | ">") || !wild(last))
}

fn matches(pattern: &[&str], subject: &[&str]) -> bool {
    match (pattern, subject) {
        ([">"], [_, ..]) => true,
        ([], []) => true,
        ([wanted, patterns @ ..], [token, tokens @ ..]) => {
            (*wanted == "*" || wanted == token) && matches(patterns, tokens)
        }
        _ => false,
    }
}

fn pattern(rng: &mut Rng) -> &'static str {
    let drawn = drawn(rng);
    let found = Pattern::parse(&drawn);
    assert_eq!(found.is_ok(), is_pattern(&drawn), "{drawn:?}");
    let is_subject = is_plain(&drawn) && drawn.split('.').all(|token| token != "*" && token != ">");
    assert_eq!(validate(&drawn).is_ok(), is_subject, "{drawn:?}");
    let pattern = match found {
        Ok(pattern) => pattern,
        Err(error) => {
            let said = error.to_string();
            assert!(
                said.len() < 2_048 && !said.contains(char::is_control),
                "{drawn:?}: {said:?}"
            );
            return "refused";
        }
    };
    assert_eq!(Pattern::parse(&pattern.to_string()), Ok(pattern.clone()));
    let (wanted, subject) = (drawn.split('.').collect::<Vec<_>>(), subject(rng));
    let expected = matches(&wanted, &subject.split('.').collect::<Vec<_>>());
    assert_eq!(pattern.matches(&subject), expected, "{drawn:?} {subject:?}");
    "pattern"
}

/// Subjects that tell whether a pattern takes all that another takes.
fn witnesses(pattern: &Pattern) -> Vec<String> {
    let plain = pattern
        .as_str()
        .split('.')
        .map(|token| if token == "*" { "zz" } else { token })
        .collect::<Vec<_>>();
    let plain = plain.join(".");
    match plain.strip_suffix('>') {
        Some(before) if before.is_empty() || before.ends_with('.') => {
            vec![
                format!("{before}zz"),
                format!("{before}zz.zz"),
                format!("{before}zz.zz.zz.zz.zz.zz"),
            ]
        }
        _ => vec![plain],
    }
}

fn covered(rng: &mut Rng) -> &'static str {
    let (one, other) = (sound(rng), sound(rng));
    let expected = witnesses(&other).iter().all(|subject| one.matches(subject));
    assert_eq!(one.covers(&other), expected, "{one} {other}");
    if expected { "covers" } else { "does not cover" }
}

fn set(rng: &mut Rng) -> &'static str {
    let patterns: Vec<String> = (0..rng.usize(0..70).min(rng.usize(0..70)))
        .map(|_| sound(rng).to_string())
        .collect();
    let Ok(set) = SubjectSet::parse(&patterns) else {
        assert!(patterns.is_empty() || patterns.len() > 64, "{patterns:?}");
        return "no set";
    };
    let covering = set.covering();
    assert!(is_pattern(covering.as_str()), "{covering} of {patterns:?}");
    assert!(
        set.patterns()
            .iter()
            .all(|pattern| covering.covers(pattern)),
        "{covering} of {patterns:?}"
    );
    "set"
}

fn template(rng: &mut Rng) -> &'static str {
    let part = |rng: &mut Rng| {
        let part = rng.choice(&[
            "{id}",
            "{type:tokens}",
            "{type}",
            "{source}",
            ".",
            "x",
            "{",
            "}",
            "{id:dots}",
            ">",
            "*",
        ]);
        (*part.expect("some")).to_owned()
    };
    let mut drawn: String = (0..rng.usize(1..6)).map(|_| part(rng)).collect();
    if rng.u8(0..4) == 0 {
        drawn = text::any(rng);
    }
    let Ok(template) = SubjectTemplate::parse(&drawn) else {
        return "no template";
    };
    let values: Vec<(&str, String)> = ["id", "type", "source"]
        .into_iter()
        .map(|name| (name, text::any(rng)))
        .collect();
    let get = |name: &str| {
        values
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.as_str())
    };
    let Ok(subject) = SubjectTemplate::of(Some(&template), get) else {
        return "no subject";
    };
    assert_eq!(validate(&subject), Ok(()), "{drawn:?} {values:?}");
    one_token(rng);
    "subject"
}

/// Values that differ never become the same token.
fn one_token(rng: &mut Rng) {
    let template = SubjectTemplate::parse("{id}").expect("sound");
    let fill =
        |value: &str| SubjectTemplate::of(Some(&template), |name| (name == "id").then_some(value));
    let one = text::any(rng);
    let other = change::changed_text(rng, &one, &["%", "2E", ".", "%2E", "é"]);
    if let (Ok(first), Ok(second)) = (fill(&one), fill(&other)) {
        assert_eq!(first == second, one == other, "{one:?} {other:?}");
        assert!(!first.contains('.'), "{one:?}");
    }
}

fn percent_encoding(rng: &mut Rng) -> &'static str {
    let text = text::any(rng);
    let encoded = percent::encode(&text);
    assert!(
        encoded.bytes().all(|byte| (0x21..0x7f).contains(&byte)),
        "{text:?}"
    );
    assert_eq!(percent::decode(&encoded).as_deref(), Some(text.as_str()));
    let odd = change::changed_text(
        rng,
        &encoded,
        &["%", "%c3", "%a9", "%ff", "\"", "\\", "\\\""],
    );
    percent::decode(&odd).map_or("not text", |decoded| {
        assert!(decoded.len() <= odd.len(), "{odd:?}");
        "text"
    })
}

fn time(rng: &mut Rng) -> &'static str {
    let drawn = text::time(rng);
    let Ok(time_ns) = timestamp::parse_ns(&drawn) else {
        return "no time";
    };
    assert_eq!(
        timestamp::parse_ns(&timestamp::format_ns(time_ns)),
        Ok(time_ns),
        "{drawn:?}"
    );
    "time"
}
