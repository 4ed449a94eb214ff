//! shell
pub mod control_loop;
