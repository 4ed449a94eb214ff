//! Which backend serves a message, and why.
//!
//! Everything here is a function of the message, an immutable [`Snapshot`](snapshot::Snapshot) and the worker's own
//! [`Bindings`](bindings::Bindings): no socket, no clock, no other worker.

pub mod bindings;
pub mod cookie;
pub mod decide;
pub mod key;
pub mod request;
pub mod select;
pub mod snapshot;
pub mod verdict;
