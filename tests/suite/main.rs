//! The suite: every claim that Foldstream makes, against the real program, real modules, real
//! servers and real files.

/// Tests claims on both kinds of source: functions that take a `Kind`.
macro_rules! on_both_sources {
    ($($claim:ident $(,)?)*) => {
        mod jetstream {
            $(#[tokio::test] async fn $claim() { super::$claim(super::Kind::JetStream).await; })*
        }
        mod embedded {
            $(#[tokio::test] async fn $claim() { super::$claim(super::Kind::Embedded).await; })*
        }
    };
}

/// Tests claims on the oldest nats-server that we support, and on the newest: functions that take a
/// `Version`.
macro_rules! on_both_versions {
    ($($claim:ident)*) => {
        mod oldest {
            $(#[tokio::test] async fn $claim() { super::$claim(super::Version::Oldest).await; })*
        }
        mod newest {
            $(#[tokio::test] async fn $claim() { super::$claim(super::Version::Newest).await; })*
        }
    };
}

/// Tests a claim about a kill at half of the steps of a change of owner: modules with a function
/// `killed_at`.
macro_rules! killed_at_steps {
    ($($name:ident $way:ident $part:literal;)*) => {$(
        #[tokio::test]
        async fn $name() {
            use crate::handlers_rollouts::{STEPS, Way};
            for step in STEPS.iter().skip($part).step_by(2) {
                if (*step, Way::$way) != ("build-ready", Way::Rollback) {
                    killed_at(step, Way::$way).await;
                }
            }
        }
    )*};
}

mod accounts; // targets of handlers in another JetStream domain or account
mod admission; // a host without configured tokens makes one; what is open without
mod backup; // a copy of a running host: whole, compared, and a data folder
mod bundles; // failure bundles: made in any state of a deployment, kept, and replayed step by step
mod checked; // events validated against schemas while they are folded: the same in every fold
mod choreography; // services that react to each other deliver or undo each order
mod cloudevents; // in each form, in and out; times that never go back
mod commands; // every command: what it prints, and how it ends
mod configuration; // mistakes one by one, exposure, and how servers let us in
mod consistency; // queries, scans and watches under load: whole batches, positions that never go back
mod contracts; // schemas that modules carry: built in, refused, compared, and validated against scenarios
mod crash; // killed at any moment: the state equals the fold
mod deliveries; // what messages ask of their delivery: a time, a time to live, a condition
mod delivery; // every event once and in order, on JetStream and the embedded log
mod deployment; // the files under deploy/ work
mod disk; // a disk without room: reads are served, and everything continues when there is room
mod documents; // every command in a document is one that the program takes
mod door; // tokens, scopes, certificates, pages and proxies; what the log tells
mod earlier_builds; // data folders of earlier builds: opened and continued
mod events; // the embedded log through its API; CloudEvents as a guest sees them
mod examples; // each gives what its events add up to
mod faults; // what goes wrong with a stream, each with its name
mod fixes; // fixes stay, failures are shown, and nothing is called done before it is
mod folder; // the data folder: nothing of others is removed, and only its user reads it
mod fulfilment; // the example handler sends each order once
mod generate; // types of schemas: compiled by each language, and events that stay what they are
mod handlers; // messages that leave once, on the embedded log
mod handlers_jetstream; // the same on a NATS server that goes away, and behind a proxy that swallows answers
mod handlers_rollouts; // effects that change hands: rebuilt, rolled back and put back, killed at every step
mod handlers_timers; // timers that change hands with them, killed at every step
mod held_back; // candidates that may not take over say why, and lost owners refuse what can't work
mod idle; // without work a host rests, and folds give way to those who ask
mod inbox; // events that were published twice are folded once, in every fold
mod integrity; // doctor reads the files of a host that is down
mod ladder; // failures by class: charged to whom they concern, tried as often as they should
mod lanes; // several lanes leave what one leaves
mod language_handlers; // handlers in every language that has them: made as a user would, the same effects
mod language_sagas; // sagas and migrations in every language that has them
mod languages; // modules in every language: made as a user would, the same bytes, the same failures
mod large; // events larger than a request: memory has a bound, and nobody waits for one that rests
mod layering; // the shape of our own code
mod looks; // events of any source are shown, and a look leaves nothing behind
mod measured; // by name only: what a host takes at its worst
mod metrics; // accepted by promtool, and true
mod mirrors; // mirrors with gaps by design: what they have lost is found by counting
mod missing; // events that are gone from a stream: told, and done without only if that is meant
mod modelled; // events, failures, parking and upgrades in any order: what a model in memory says
mod modelled_timers; // the same with timers, and a projection next to the handler
mod monotonic; // positions that clients see never go back, through kills and rollouts
mod only_copies; // parked events that the stream has lost: replaced with their state only if that is meant
mod openapi; // the document describes what the host answers
mod parked_timers; // timers and sagas wait with the parked events of their keys
mod parking; // events that failed wait with their keys, and other keys continue
mod past; // as-of reads, snapshots, verification, partial rebuilds
mod poison; // data that no handler can read, types that none knows, hostile subjects
mod pressure; // clients that read nothing, send nothing, or only sit there: bounded memory, and places for others
mod quotas; // what counts for the limit of a state
mod reads; // entries, pages, queries, ETags, problems, tokens
mod reasons; // why messages and requests wait, as the API and the command line say it
mod recordings; // scenarios that are recorded from deployments, and played
mod refusals; // streams and servers that refuse messages of handlers, or lose what they had
mod removed; // messages that a target has lost before it was known that it had them
mod replies; // handlers that answer a request
mod restores; // a handler's state from a backup, next to targets that have what it sent since
mod retries; // parked events that are retried or dropped, by code that hangs, and before a rebuild
mod rollout_commands; // generations from the command line: deployed, compared, promoted, rolled back
mod sagas; // each order is done or undone once, and everybody sees what waits for what
mod sandbox; // a bad module hurts neither its host nor its neighbours
mod scenarios; // files that say what a module must do: played, compared
mod sharing; // deployments of one stream read it together, and each gets what it would get alone
mod shown; // what nobody knows is shown as unknown, and trouble wherever a deployment is
mod skips; // the way past an event that can't be folded
mod steps; // killed at every step of a rollout: one generation serves, and the state equals the fold
mod strange; // messages that are no sound events, and streams that are no event streams
mod supply; // what the set-up installs is pinned, and what it could not check is said
mod surroundings; // signals at any moment, few descriptors, endless files, names that are no text
mod swap; // generations: built, swapped, rolled back, with nobody noticing
mod targets; // what the target of a handler costs, what it has lost, and whose turn it is
mod timers; // each fires once, whatever happens to the host
mod timers_again; // set again to the same time, and what a rebuild does if firings are gone
mod uploads; // whatever is uploaded, the host answers afterwards
mod versions; // the claims about streams, on the oldest and the newest nats-server that we support
mod waits; // appends that return when deployments have applied their events
