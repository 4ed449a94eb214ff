//! Load generator, bare forwarder and comparison runs for Tandem.
//!
//! Three programs stand on this library: `sipbench` (one load, one report), `bench-harness` (`compare`: several
//! proxies under the same load in turn; `forward`: the bare forwarder that is the floor of such a comparison) and `idle`
//! (what connections cost that say nothing).
//!
//! What counts is CPU time per forwarded message as a ratio within one run: absolute figures drift with the machine.
//! Walk: `generator` (the loop), `caller` and `backend` (the two ends), `ledger` (what is known about calls),
//! `template` and `message` (their texts), `network` (their sockets), `stream` and `frame` (connections), `forward` and
//! `splice`, then `compare`; `idle` stands apart. All unsafe code is in `sys`.

pub mod backend;
pub mod caller;
pub mod certificates;
pub mod compare;
pub mod forward;
pub mod frame;
pub mod generator;
pub mod idle;
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
pub mod web;
