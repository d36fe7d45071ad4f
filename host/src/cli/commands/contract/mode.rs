//! In which direction schemas must be compatible.

use clap::ValueEnum;

/// What must be compatible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// New consumers read what old producers have written.
    #[default]
    Backward,
    /// Old consumers read what new producers write.
    Forward,
    /// Backward and forward.
    Full,
    /// Like `backward`, against every old version, not only the last.
    BackwardTransitive,
    /// Like `forward`, against every old version, not only the last.
    ForwardTransitive,
    /// Like `full`, against every old version, not only the last.
    FullTransitive,
}

impl Mode {
    /// Whether the new schema must read what fits the old one.
    pub(super) fn is_backward(self) -> bool {
        !matches!(self, Self::Forward | Self::ForwardTransitive)
    }

    /// Whether the old schema must read what fits the new one.
    pub(super) fn is_forward(self) -> bool {
        !matches!(self, Self::Backward | Self::BackwardTransitive)
    }

    pub(super) fn is_transitive(self) -> bool {
        matches!(
            self,
            Self::BackwardTransitive | Self::ForwardTransitive | Self::FullTransitive
        )
    }
}
