//! The thin shell: sockets, clocks, threads and executors around the pure core.

pub mod control_loop;
pub mod handover;
pub mod node;
mod sys;
mod worker_loop;
