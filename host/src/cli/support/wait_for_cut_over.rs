//! Waits until a candidate takes over, or is ready if it does not take over on its own, and shows
//! its progress.

use std::time::{Duration, Instant};

use super::client::{Client, Error};
use super::exit::{Exit, Failure, exit_of};
use super::output::{Output, grouped, known};
use super::progress::{Progress, Step};
use super::wait_until_live::{self, Patience, Shown, Trouble};
use crate::api::{
    Deployment, DeploymentState, Generation, GenerationList, GenerationStatus, Promotion, Strategy,
};
use crate::cli::commands::rollouts::generations::{examples, outlook, standing};

/// Differences to show when a gate holds a candidate back.
const EXAMPLES_MAX: usize = 5;
/// How long the host may take to start new code, or to restore the previous code after the new code
/// failed on its state.
const PUT_BACK_MAX: Duration = Duration::from_secs(2);

/// A deployment, and one of its generations.
type Look = (Deployment, Generation);

/// Waits until a generation is active, or ready to be promoted by hand.
pub(crate) async fn wait(
    client: &Client,
    (name, number): (&str, u64),
    timeout: Option<Duration>,
    output: Output,
) -> anyhow::Result<Deployment> {
    let begun = Instant::now();
    let mut patience = Patience::new(timeout);
    // What is waited for was just begun.
    patience.heard();
    let mut progress = Progress::new(&format!("{name} generation {number}"), output);
    // Each kind of trouble is said once, however often it is seen.
    let mut shown = Shown::default();
    let mut told = None;
    loop {
        match look(client, name, number).await {
            Ok((deployment, generation)) => {
                patience.heard();
                if is_settled(&deployment, &generation)? {
                    show_comparison(&generation, &progress);
                    if generation.status == GenerationStatus::Active {
                        progress.finish();
                        // It took over; whether it applies what came since is seen only now.
                        let left = timeout.map(|timeout| timeout.saturating_sub(begun.elapsed()));
                        return wait_until_live::wait(client, name, left, output).await;
                    }
                    return Ok(deployment);
                }
                show(&generation, &mut progress);
                show_held_back(&generation, &mut told, &progress);
                show_trouble(&generation, &mut shown, &progress);
                // After the look, so that a timeout of 0 still says how far it is.
                if patience.is_over() {
                    return Err(too_late(name, &generation).into());
                }
            }
            // A host that restarts answers again in a moment.
            Err(LookError::Error(error)) => patience.bear(error, &progress)?,
            Err(LookError::Gone) => {
                let message = format!(
                    "{name} no longer has generation {number}; `foldstream generations {name}` \
                     lists them"
                );
                return Err(Failure::new(Exit::Failed, message).into());
            }
        }
        patience.pause().await;
    }
}

/// Waits until a generation that inherited its state has caught up. If its code fails on that
/// state, the host restores the previous code, and this returns the reason.
pub(crate) async fn wait_inherited(
    client: &Client,
    (name, number): (&str, u64),
    timeout: Option<Duration>,
    output: Output,
) -> anyhow::Result<Deployment> {
    // Renewed after each long wait below: it only bounds the moments around a change of code.
    let mut grace = Patience::new(Some(PUT_BACK_MAX));
    loop {
        let begun = Instant::now();
        let caught_up = wait_until_live::wait(client, name, timeout, output).await;
        if begun.elapsed() > PUT_BACK_MAX {
            grace = Patience::new(Some(PUT_BACK_MAX));
        }
        match &caught_up {
            Ok(deployment) if deployment.generation == number => return caught_up,
            // Refused, timed out, and others say nothing about the code: only a failure does.
            Err(error) if exit_of(error) != Exit::Failed => return caught_up,
            Ok(_) | Err(_) => {}
        }
        if let Ok((_, generation)) = look(client, name, number).await
            && generation.status != GenerationStatus::Active
        {
            return Err(ended(name, &generation).into());
        }
        // The failure may be that of the previous code, which the new code should fix, or may still
        // be undecided.
        if grace.is_over() {
            return caught_up;
        }
        grace.pause().await;
    }
}

/// Why the state of a generation is unknown.
enum LookError {
    /// The host did not say.
    Error(Error),
    /// The generation no longer exists.
    Gone,
}

impl From<Error> for LookError {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

async fn look(client: &Client, name: &str, number: u64) -> Result<Look, LookError> {
    // It has the candidate with its figures; the list is only asked for after the candidate's end.
    let deployment = client.deployment(name).await?;
    if let Some(candidate) = deployment
        .candidate
        .as_deref()
        .filter(|candidate| candidate.number == number)
        .cloned()
    {
        return Ok((deployment, candidate));
    }
    let list: GenerationList = client
        .get(&["v1", "deployments", name, "generations"], &[])
        .await?;
    match list
        .generations
        .into_iter()
        .find(|generation| generation.number == number)
    {
        Some(generation) => Ok((deployment, generation)),
        None => Err(LookError::Gone),
    }
}

/// Whether the wait is over; an error if what it waits for can no longer happen on its own.
fn is_settled(deployment: &Deployment, generation: &Generation) -> Result<bool, Failure> {
    let (name, number) = (&deployment.name, generation.number);
    match generation.status {
        GenerationStatus::Active => Ok(true),
        GenerationStatus::Failed | GenerationStatus::Previous | GenerationStatus::Retired => {
            Err(ended(name, generation))
        }
        _ if generation.state == Some(DeploymentState::Paused) => {
            let message = format!(
                "generation {number} of {name} is paused; continue with `foldstream resume {name} \
                 --candidate`"
            );
            Err(Failure::new(Exit::Failed, message))
        }
        // Its gate is looked at only once it is built.
        GenerationStatus::Building => Ok(false),
        GenerationStatus::Ready if is_kept(generation) => Err(kept(name, generation)),
        GenerationStatus::Ready if generation.lacks_events > 0 => {
            let message = format!(
                "generation {number} of {name} does not take over: {}",
                generation.reason
            );
            Err(Failure::new(Exit::Failed, message))
        }
        GenerationStatus::Ready if generation.build.promote == Promotion::Manual => Ok(true),
        GenerationStatus::Ready if deployment.state == DeploymentState::Paused => {
            let message = format!(
                "generation {number} of {name} is ready, but {name} is paused; it takes over after \
                 `foldstream resume {name}`, or with `foldstream promote {name}`"
            );
            Err(Failure::new(Exit::Failed, message))
        }
        GenerationStatus::Ready => Ok(false),
    }
}

/// Whether its gate holds it back.
fn is_kept(generation: &Generation) -> bool {
    generation
        .comparison
        .as_ref()
        .is_some_and(|comparison| comparison.refused > 0)
}

/// Why a generation can no longer take over.
pub(crate) fn ended(name: &str, generation: &Generation) -> Failure {
    let (number, status) = (generation.number, generation.status.name());
    let mut message = format!(
        "generation {number} of {name} is {status}: {}",
        generation.reason
    );
    // A candidate continues where it stopped; code that inherited its state has none of its own.
    if generation.failed_at.is_some() && generation.strategy != Strategy::Inherit {
        message.push_str(&format!(
            "; deploy corrected code to continue there, or try again with `foldstream resume \
             {name} --candidate`"
        ));
    }
    Failure::new(Exit::Failed, message)
}

fn kept(name: &str, generation: &Generation) -> Failure {
    let number = generation.number;
    let shown = generation
        .comparison
        .as_ref()
        .map(|comparison| examples(comparison, EXAMPLES_MAX))
        .unwrap_or_default();
    let message = format!(
        "generation {number} of {name} is {}\n{shown}\ninspect it with `foldstream scan {name} \
         --generation {number}`, then `foldstream promote {name} --force` to accept it or \
         `foldstream abort {name}` to discard it",
        generation.reason
    );
    Failure::new(Exit::Failed, message)
}

fn too_late(name: &str, generation: &Generation) -> Failure {
    let held_back = match &generation.held_back {
        Some(_) => format!("; it {}", standing(generation)),
        None => String::new(),
    };
    let message = format!(
        "generation {} of {name} is {} when the time ran out ({}, at {} of {}); it continues on \
         its own, `foldstream generations {name}` shows its progress{held_back}",
        generation.number,
        generation.status.name(),
        outlook(generation),
        grouped(generation.position),
        known(generation.head, grouped),
    );
    Failure::new(Exit::TimedOut, message)
}

fn show(generation: &Generation, progress: &mut Progress) {
    let is_folding = generation
        .state
        .is_some_and(|state| state != DeploymentState::Opening);
    // It has caught up, but the host may still compare it, or wait for a moment to switch.
    let is_built = generation.status == GenerationStatus::Ready && generation.lag_events == Some(0);
    if is_folding && !is_built {
        progress.show(&Step {
            done: generation.position,
            total: generation.head,
            is_estimate: false,
            rate: generation.rate,
            remaining_seconds: generation.remaining_seconds,
        });
    } else if generation.held_back.is_some() {
        // What keeps it is a note of its own.
    } else if is_built {
        progress.wait("caught up, about to take over");
    } else {
        progress.wait(&outlook(generation));
    }
}

/// Prints what keeps it from taking over, when that begins and when it changes.
fn show_held_back(generation: &Generation, told: &mut Option<String>, progress: &Progress) {
    if generation.held_back.is_some() && *told != generation.held_back {
        progress.note(&format!("{} {}", progress.subject(), standing(generation)));
    }
    told.clone_from(&generation.held_back);
}

/// Prints what a comparison found that lets it take over.
fn show_comparison(generation: &Generation, progress: &Progress) {
    if let Some(comparison) = &generation.comparison {
        progress.note(&format!("compared: {}", comparison.conclusion));
    }
}

/// Reports each problem that delays the generation once.
fn show_trouble(generation: &Generation, shown: &mut Shown, progress: &Progress) {
    let trouble = Trouble::of(
        &format!("generation {}", generation.number),
        generation.failure.as_ref(),
        generation.source_status.as_ref(),
    );
    shown.update(trouble, generation.position, progress);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::commands::deployments::show::tests::deployment;
    use crate::cli::commands::rollouts::generations::tests::{comparison, generation};

    fn with(status: GenerationStatus, promote: Promotion) -> Generation {
        let mut generation = Generation {
            status,
            ..generation()
        };
        generation.build.promote = promote;
        generation
    }

    fn settled(generation: &Generation) -> Result<bool, Failure> {
        let deployment = Deployment {
            state: DeploymentState::Live,
            ..deployment()
        };
        is_settled(&deployment, generation)
    }

    #[test]
    fn waiting_ends_when_it_serves_or_is_ready_for_a_hand() {
        assert!(settled(&with(GenerationStatus::Active, Promotion::Auto)).expect("is fine"));
        assert!(settled(&with(GenerationStatus::Ready, Promotion::Manual)).expect("is fine"));
        assert!(
            !settled(&with(GenerationStatus::Ready, Promotion::Auto)).expect("it takes over soon")
        );
        assert!(
            !settled(&with(GenerationStatus::Building, Promotion::Manual)).expect("is being built")
        );
    }

    #[test]
    fn waiting_ends_with_the_reason_when_it_can_not_come_any_more() {
        for (status, reason) in [
            (GenerationStatus::Failed, "trap: unreachable"),
            (GenerationStatus::Retired, "aborted by an operator"),
            (
                GenerationStatus::Previous,
                "generation 4 took over at position 9",
            ),
        ] {
            let generation = Generation {
                reason: reason.to_owned(),
                ..with(status, Promotion::Auto)
            };
            let failure = settled(&generation).expect_err("it ended");
            assert_eq!(failure.exit, Exit::Failed);
            assert_eq!(
                failure.message,
                format!(
                    "generation 3 of order-totals is {}: {reason}",
                    status.name()
                )
            );
        }
        let paused = Generation {
            state: Some(DeploymentState::Paused),
            ..generation()
        };
        let failure = settled(&paused).expect_err("a paused one stays paused");
        assert!(
            failure
                .message
                .ends_with("`foldstream resume order-totals --candidate`"),
            "{failure}"
        );
    }

    #[test]
    fn waiting_ends_when_the_active_generation_is_paused_and_so_can_not_be_met() {
        let paused = Deployment {
            state: DeploymentState::Paused,
            ..deployment()
        };
        let failure = is_settled(&paused, &with(GenerationStatus::Ready, Promotion::Auto))
            .expect_err("it waits");
        assert!(
            failure
                .message
                .contains("is ready, but order-totals is paused"),
            "{failure}"
        );
        assert!(!is_settled(&paused, &generation()).expect("it is being built all the same"));
    }

    #[test]
    fn what_a_comparison_keeps_is_reported_with_examples_and_what_to_do() {
        let mut kept = with(GenerationStatus::Ready, Promotion::Manual);
        kept.comparison = Some(comparison());
        kept.reason = format!("held back by its gate: {}", comparison().conclusion);
        let failure = settled(&kept).expect_err("it is kept");
        assert_eq!(failure.exit, Exit::Failed);
        assert_eq!(
            failure.message,
            "\
generation 3 of order-totals is held back by its gate: 2 of 9 compared entries differ at position 70
DIFFERENCE  ALLOWED  KEY          ACTIVE → CANDIDATE
changed     no       customer/42  /total 3 → 4
added       yes      customer/43  - → {\"total\":1}
inspect it with `foldstream scan order-totals --generation 3`, then `foldstream promote order-totals --force` to \
             accept it or `foldstream abort order-totals` to discard it"
        );
    }

    #[test]
    fn time_that_ran_out_says_how_far_it_is() {
        let failure = too_late("order-totals", &generation());
        assert_eq!(failure.exit, Exit::TimedOut);
        assert_eq!(
            failure.message,
            "generation 3 of order-totals is building when the time ran out (40 %, 212,345/s, 2.8 \
             s left, at 400,000 of 1,000,000); it continues on its own, `foldstream generations \
             order-totals` shows its progress"
        );
    }
}
