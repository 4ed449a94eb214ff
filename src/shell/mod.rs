//! The thin shell: sockets, clocks, threads and executors around the pure core.

mod bind;
pub mod control_handle;
pub mod control_loop;
pub mod control_socket;
pub mod handover;
pub mod node;
mod probe_socket;
mod probe_stream;
pub mod proxy_protocol;
pub mod stream;
pub mod sys;
pub mod tls;
pub mod web_socket;
pub mod worker_loop;
