//! `foldstream generations`: lists a deployment's generations and the last comparison.

use crate::api::{
    Comparison, ComparisonExample, DeploymentState, Difference, DifferingPart, Generation,
    GenerationList, GenerationStatus, Strategy,
};
use crate::cli::Context;
use crate::cli::support::output::{bytes, grouped, known, span, table};

/// Differences to show below the table.
const EXAMPLES_MAX: usize = 10;
/// Parts of a value to show; JSON has some more.
const PARTS_SHOWN_MAX: usize = 3;
/// Longest key, value or reason in a table, in characters, so that rows fit into a window. `show`
/// and JSON have all of it.
const CELL_CHARS_MAX: usize = 60;
/// Placeholder for an empty cell.
const NOTHING: &str = "-";

/// Show the generations of a deployment: active, candidate, previous and past ones.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream generations order-totals
  foldstream generations order-totals -o ndjson | jq 'select(.status == \"ready\") | .comparison'

Below the table is what the last comparison of a candidate with the active generation found.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
}

/// Prints one line per generation, and the last comparison.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let list: GenerationList = context
        .client()?
        .get(&["v1", "deployments", &args.name, "generations"], &[])
        .await?;
    context.output.many(&list.generations, &list, lines)?;
    Ok(())
}

fn lines(generations: &[Generation]) -> String {
    let rows = generations.iter().map(row);
    let header = [
        "NUMBER",
        "STATUS",
        "SINCE",
        "STRATEGY",
        "STATE-VERSION",
        "POSITION",
        "LAG",
        "PROGRESS",
        "SIZE",
        "MODULE",
        "REASON",
    ];
    let mut text = table(&header, rows);
    for generation in generations.iter().filter(|one| one.held_back.is_some()) {
        let (number, why) = (generation.number, standing(generation));
        text.push_str(&format!("\n\nGeneration {number} {why}"));
    }
    let compared = generations
        .iter()
        .filter_map(|generation| Some((generation.number, generation.comparison.as_ref()?)));
    if let Some((number, comparison)) =
        compared.max_by(|(_, one), (_, other)| one.at.cmp(&other.at))
    {
        text.push_str(&format!(
            "\n\nGeneration {number}, compared with generation {} at {}: {}",
            comparison.against,
            to_the_second(&comparison.at),
            comparison.conclusion
        ));
        if !comparison.examples.is_empty() {
            text.push_str(&format!("\n{}", examples(comparison, EXAMPLES_MAX)));
        }
    }
    text
}

fn row(generation: &Generation) -> Vec<String> {
    // A generation that does not run has no reliable position.
    let running = |text: String| {
        if generation.state.is_some() {
            text
        } else {
            NOTHING.to_owned()
        }
    };
    vec![
        generation.number.to_string(),
        generation.status.name().to_owned(),
        to_the_second(&generation.status_since),
        generation.strategy.name().to_owned(),
        generation.module.state_version.to_string(),
        running(grouped(generation.position)),
        running(known(generation.lag_events, grouped)),
        outlook(generation),
        if generation.file_bytes == 0 {
            NOTHING.to_owned()
        } else {
            bytes(generation.file_bytes)
        },
        generation.module.digest.chars().take(12).collect(),
        shortened(&standing(generation)),
    ]
}

/// Why a generation has its status; or, if it is ready, why it does not take over.
pub(crate) fn standing(generation: &Generation) -> String {
    match &generation.held_back {
        Some(reason) => format!("does not take over yet: {reason}"),
        None => generation.reason.clone(),
    }
}

/// A time without fractions of a second, so that rows fit into a window.
fn to_the_second(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => time.to_owned(),
    }
}

/// The progress of a generation, in a few words.
pub(crate) fn outlook(generation: &Generation) -> String {
    let percent = percent(generation);
    match (generation.status, generation.state) {
        (_, None) if generation.queued_behind.is_some_and(|before| before > 0) => {
            format!(
                "queued behind {}",
                generation.queued_behind.unwrap_or_default()
            )
        }
        (GenerationStatus::Building, None) if generation.strategy == Strategy::Migrate => {
            "migrating".to_owned()
        }
        (GenerationStatus::Building, None) => "beginning".to_owned(),
        (_, None) => NOTHING.to_owned(),
        (_, Some(DeploymentState::Opening)) => "opening".to_owned(),
        (
            _,
            Some(
                state @ (DeploymentState::Paused
                | DeploymentState::Retrying
                | DeploymentState::Disconnected
                | DeploymentState::Failed),
            ),
        ) => {
            format!("{percent}, {}", state.name())
        }
        (GenerationStatus::Building, Some(_)) => {
            let mut text = format!("{percent}, {}/s", grouped(generation.rate as u64));
            if let Some(remaining) = generation.remaining_seconds {
                text.push_str(&format!(", {} left", span(remaining)));
            }
            text
        }
        (_, Some(_)) => percent,
    }
}

/// How much of the way to the head is done; 100 % only once it has arrived.
pub(crate) fn percent(generation: &Generation) -> String {
    let part = generation
        .progress
        .map(|part| (part * 100.0).floor().clamp(0.0, 100.0));
    part.map_or_else(|| "? %".to_owned(), |part| format!("{part} %"))
}

/// The first differences that a comparison found, as rows; differences that are not allowed come
/// first.
pub(crate) fn examples(comparison: &Comparison, at_most: usize) -> String {
    let mut examples: Vec<&ComparisonExample> = comparison.examples.iter().collect();
    examples.sort_by_key(|example| example.allowed);
    let rows = examples.into_iter().take(at_most).map(example);
    table(
        &["DIFFERENCE", "ALLOWED", "KEY", "ACTIVE → CANDIDATE"],
        rows,
    )
}

fn example(example: &ComparisonExample) -> Vec<String> {
    let difference = match example.difference {
        Difference::Added => "added",
        Difference::Removed => "removed",
        Difference::Changed => "changed",
    };
    vec![
        difference.to_owned(),
        if example.allowed { "yes" } else { "no" }.to_owned(),
        shortened(&example.key),
        change(example),
    ]
}

/// What differs: the first parts of a value, or else the values.
fn change(example: &ComparisonExample) -> String {
    let both = |active: &Option<String>, candidate: &Option<String>| {
        let [active, candidate] = [active, candidate].map(|value| {
            let value = value.as_deref();
            value.map_or_else(|| NOTHING.to_owned(), shortened)
        });
        format!("{active} → {candidate}")
    };
    if example.parts.is_empty() {
        return both(&example.active, &example.candidate);
    }
    let part = |part: &DifferingPart| {
        let both = both(&part.active, &part.candidate);
        format!("{} {both}", shortened(&part.pointer))
            .trim_start()
            .to_owned()
    };
    let mut shown: Vec<String> = example
        .parts
        .iter()
        .take(PARTS_SHOWN_MAX)
        .map(part)
        .collect();
    shown.extend((example.parts.len() > PARTS_SHOWN_MAX).then(|| "…".to_owned()));
    shown.join(", ")
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= CELL_CHARS_MAX {
        return text.to_owned();
    }
    let mut shortened: String = text.chars().take(CELL_CHARS_MAX - 1).collect();
    shortened.push('…');
    shortened
}

#[cfg(test)]
pub(in crate::cli) mod tests {
    use super::*;
    use crate::api::BuildSettings;

    pub(in crate::cli) fn generation() -> Generation {
        Generation {
            number: 3,
            status: GenerationStatus::Building,
            reason: "state version 2 instead of 1".to_owned(),
            status_since: "2026-11-23T11:00:00.123456789Z".to_owned(),
            created_at: "2026-11-23T11:00:00.123456789Z".to_owned(),
            strategy: Strategy::Rebuild,
            state_file: 3,
            state: Some(DeploymentState::CatchingUp),
            queued_behind: None,
            position: 400_000,
            checkpoint: 390_000,
            head: Some(1_000_000),
            lag_events: Some(600_000),
            progress: Some(0.4),
            missing_events: 0,
            lacks_events: 0,
            held_back: None,
            rate: 212_345.6,
            remaining_seconds: Some(2.8),
            source_status: None,
            file_bytes: 1 << 20,
            skipped: 0,
            parked: Default::default(),
            state_bytes: 2_048,
            failure: None,
            failed_at: None,
            checks_events_after: None,
            build: BuildSettings::default(),
            comparison: None,
            module: crate::cli::commands::deployments::show::tests::deployment().module,
        }
    }

    pub(in crate::cli) fn comparison() -> Comparison {
        let example =
            |key: &str, difference, active: Option<&str>, candidate: &str| ComparisonExample {
                key: key.to_owned(),
                difference,
                parts: Vec::new(),
                active: active.map(str::to_owned),
                candidate: Some(candidate.to_owned()),
                allowed: difference == Difference::Added,
            };
        let mut changed = example(
            "customer/42",
            Difference::Changed,
            Some("{\"total\":3}"),
            "{\"total\":4}",
        );
        changed.parts.push(DifferingPart {
            pointer: "/total".to_owned(),
            active: Some("3".to_owned()),
            candidate: Some("4".to_owned()),
        });
        Comparison {
            at: "2026-11-23T11:00:05.5Z".to_owned(),
            against: 2,
            position: 70,
            compared: 9,
            entries: 9,
            added: 1,
            removed: 0,
            changed: 1,
            refused: 1,
            ignored: 0,
            examples: vec![
                changed,
                example("customer/43", Difference::Added, None, "{\"total\":1}"),
            ],
            conclusion: "2 of 9 compared entries differ at position 70".to_owned(),
        }
    }

    #[test]
    fn generations_are_listed_one_a_line() {
        let mut retired = Generation {
            number: 1,
            status: GenerationStatus::Retired,
            state: None,
            ..generation()
        };
        retired.reason = "was kept for a rollback for 1day".to_owned();
        retired.file_bytes = 0;
        assert_eq!(
            lines(&[retired, generation()]),
            "\
NUMBER  STATUS    SINCE                 STRATEGY  STATE-VERSION  POSITION  LAG      PROGRESS                     SIZE     MODULE        REASON
1       retired   2026-11-23T11:00:00Z  rebuild   1              -         -        -                            -        abcdef012345  was kept for a rollback for 1day
3       building  2026-11-23T11:00:00Z  rebuild   1              400,000   600,000  40 %, 212,345/s, 2.8 s left  1.0 MiB  abcdef012345  state version 2 instead of 1"
        );
    }

    #[test]
    fn what_keeps_a_candidate_from_taking_over_is_below_the_table() {
        let reason = "p has 2 parked events, whose messages are not published yet; drop them";
        let candidate = Generation {
            status: GenerationStatus::Ready,
            reason: "caught up".to_owned(),
            held_back: Some(reason.to_owned()),
            ..generation()
        };
        let text = lines(&[candidate]);
        assert!(!text.contains("caught up"), "{text}");
        let below = format!("\n\nGeneration 3 does not take over yet: {reason}");
        assert!(text.ends_with(&below), "{text}");
    }

    #[test]
    fn last_comparison_is_below_the_table() {
        let older = Comparison {
            at: "2026-11-23T10:00:00Z".to_owned(),
            ..comparison()
        };
        let older = Generation {
            number: 4,
            comparison: Some(older),
            ..generation()
        };
        let shown = lines(&[
            Generation {
                comparison: Some(comparison()),
                ..generation()
            },
            older,
        ]);
        let below = shown.split_once("\n\n").expect("a line is left free").1;
        assert_eq!(
            below,
            "\
Generation 3, compared with generation 2 at 2026-11-23T11:00:05Z: 2 of 9 compared entries differ at position 70
DIFFERENCE  ALLOWED  KEY          ACTIVE → CANDIDATE
changed     no       customer/42  /total 3 → 4
added       yes      customer/43  - → {\"total\":1}"
        );
        let mut turned = comparison();
        turned.examples.reverse();
        assert_eq!(
            examples(&turned, 2),
            examples(&comparison(), 2),
            "what is not allowed comes first"
        );
        assert_eq!(examples(&turned, 1).lines().count(), 2);
    }

    #[test]
    fn outlook_says_what_it_waits_for_and_how_far_it_is() {
        let told = |change: &dyn Fn(&mut Generation)| {
            let mut generation = generation();
            change(&mut generation);
            outlook(&generation)
        };
        assert_eq!(told(&|_| ()), "40 %, 212,345/s, 2.8 s left");
        assert_eq!(
            told(&|generation| generation.remaining_seconds = None),
            "40 %, 212,345/s"
        );
        assert_eq!(
            told(&|generation| generation.state = Some(DeploymentState::Paused)),
            "40 %, paused"
        );
        let waits = |generation: &mut Generation| {
            generation.state = None;
            generation.queued_behind = Some(2);
        };
        assert_eq!(told(&waits), "queued behind 2");
        assert_eq!(told(&|generation| generation.state = None), "beginning");
        assert_eq!(
            told(&|generation| generation.state = Some(DeploymentState::Opening)),
            "opening"
        );
        let migrates = |generation: &mut Generation| {
            generation.state = None;
            generation.strategy = Strategy::Migrate;
        };
        assert_eq!(told(&migrates), "migrating");
        let away = |generation: &mut Generation| {
            generation.state = Some(DeploymentState::Disconnected);
            (generation.head, generation.lag_events, generation.progress) = (None, None, None);
        };
        assert_eq!(told(&away), "? %, disconnected");
        let ready = |generation: &mut Generation| {
            generation.status = GenerationStatus::Ready;
            generation.progress = Some(0.999);
        };
        assert_eq!(told(&ready), "99 %");
    }

    #[test]
    fn a_changed_value_shows_its_first_parts() {
        let mut example = comparison().examples.remove(0);
        let part = |number: u64| DifferingPart {
            pointer: format!("/{number}"),
            active: None,
            candidate: Some("0".to_owned()),
        };
        example.parts = (1..=5).map(part).collect();
        assert_eq!(change(&example), "/1 - → 0, /2 - → 0, /3 - → 0, …");
        example.parts.clear();
        assert_eq!(change(&example), "{\"total\":3} → {\"total\":4}");
    }

    #[test]
    fn long_values_are_shortened_in_examples() {
        assert_eq!(shortened(&"x".repeat(61)).chars().count(), CELL_CHARS_MAX);
        assert!(
            shortened(&"x".repeat(61)).ends_with('…') && !shortened(&"x".repeat(60)).ends_with('…')
        );
    }
}
