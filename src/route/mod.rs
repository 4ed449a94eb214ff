//! Which backend serves a message, and why.

pub mod bindings;
pub mod select;
pub mod snapshot;
