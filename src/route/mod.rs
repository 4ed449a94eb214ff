//! Which backend serves a message, and why.

pub mod select;
pub mod snapshot;
