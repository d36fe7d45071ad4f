//! Named steps at which a test kills the process: the durable data at each step must suffice to
//! continue or to go back.

/// All steps, in order.
pub const STEPS: [&str; 20] = [
    "deploy-module-stored",
    "deploy-recorded",
    "inherit-recorded",
    "inherit-put-back",
    "hand-back-recorded",
    "migrate-half",
    "migrate-made",
    "build-started",
    "build-ready",
    "hand-over-copied",
    "cut-over-held",
    "hand-over-prepared",
    "cut-over-recorded",
    "cut-over-released",
    "hand-over-confirmed",
    "retire-recorded",
    "prune-recorded",
    "partial-applied",
    "delete-recorded",
    "skip-recorded",
];

/// Ends the process here, as `kill -9` would, if the variable FOLDSTREAM_DIE_AT names this step.
/// Does nothing in builds without debug assertions.
pub(crate) fn reached(step: &'static str) {
    debug_assert!(STEPS.contains(&step), "{step} is a step");
    #[cfg(debug_assertions)]
    if std::env::var_os("FOLDSTREAM_DIE_AT").is_some_and(|wanted| wanted == step) {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // Nothing more may happen until the signal arrives.
        loop {
            std::thread::park();
        }
    }
}
