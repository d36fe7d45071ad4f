//! Systems without walls that we know: limits alone have to do.

use crate::module::answer::Walls;

pub(super) fn raise() {}

pub(super) fn probe() -> Walls {
    Walls::default()
}
