//! Load generator, bare forwarder and comparison runs for Tandem.
//!
//! Two programs stand on this library: `sipbench` (one load, one report) and `bench-harness` (`compare`: several
//! proxies under the same load in turn; `forward`: the bare forwarder that is the floor of such a comparison).
//!
//! What counts is CPU time per forwarded message as a ratio within one run: absolute figures drift with the machine.
//! Walk: `generator` (the loop), `caller` and `backend` (the two ends), `ledger` (what is known about calls),
//! `template` and `message` (their texts), `network` (their sockets), `stream` and `frame` (connections), `forward` and
//! `splice`, then `compare`. All unsafe code is in `sys`.

pub mod backend;
pub mod caller;
pub mod certificates;
pub mod compare;
pub mod forward;
pub mod frame;
pub mod generator;
pub mod ledger;
pub mod message;
pub mod network;
pub mod proc_fs;
pub mod report;
pub mod splice;
pub mod stream;
pub mod sys;
pub mod template;
pub mod transport;
