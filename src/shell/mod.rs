//! shell
pub mod control_handle;
pub mod control_loop;
mod probe_socket;
