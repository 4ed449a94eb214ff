//! What must hold whatever bytes come in: the bodies of the fuzz targets.
//!
//! Each takes bytes, drives one edge of Tandem with them and panics on a finding. They are part of the library so that
//! they compile in every build and so that libFuzzer (`tests/fuzz`) and the stable toolchain (`tests/fuzz_replay.rs`) run
//! the same ones; nothing of the product calls them. A body is a pure function of its input: a crasher crashes again.
//!
//! | body | edge | what must hold |
//! |---|---|---|
//! | [`scan()`] | a datagram | the scan finds what the naive reader finds, error for error and byte for byte |
//! | [`edit()`] | a message on its way | every header that a proxy need not change, and the body, leave as they came |
//! | [`engine()`] | all that happens to a node | no relay, no amplification, no lost count, no moved transaction, no leak |
//! | [`frame()`] | a stream on a connection | any split gives the frames of the twin, and the scan ends where they do |
//! | [`cookie()`] | a token, a branch | what was minted is read as it was; nothing else is read |
//! | [`config()`] | a configuration file | refused with a place, a reason and a remedy, or good enough to run by |

mod bench;
mod config;
mod cookie;
mod edit;
mod engine;
mod feed;
pub mod framing;
mod message;
pub mod naive;
mod scan;

pub use config::config;
pub use cookie::cookie;
pub use edit::edit;
pub use engine::{engine, engine_input};
pub use framing::frame;
pub use scan::scan;
