//! How a pool spreads what is new: one policy a file.
//!
//! A policy is built once per snapshot on the control core and asked once per new dialog on a worker; asking must
//! cost the same for two backends as for a thousand.

pub mod maglev;
