//! Commands for those who write a module: from a new project to a module that is inspected.

pub mod build;
pub mod demo;
pub mod dev;
pub mod inspect;
pub mod new;
