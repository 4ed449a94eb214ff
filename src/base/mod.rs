//! The vocabulary every other layer shares: ids, time, spans into a message, and bounded containers.
//!
//! Nothing here knows SIP. Every container takes its capacity at construction and never grows.

pub mod id;
pub mod prng;
pub mod span;
pub mod text;
pub mod time;
pub mod wheel;
