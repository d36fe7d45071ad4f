//! Commands for those who write a module: from a new project to a module that is inspected.

pub(crate) mod build;
pub(crate) mod demo;
pub(crate) mod dev;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod languages;
pub(crate) mod new;
pub(crate) mod record;
pub(crate) mod replay;
pub(crate) mod test;
