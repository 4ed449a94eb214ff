//! Tandem, a SIP load balancer and edge proxy.
#![doc = include_str!("ARCHITECTURE.md")]

pub mod base;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod engine;
#[doc(hidden)]
pub mod fuzzing;
pub mod metrics;
pub mod route;
pub mod shell;
pub mod sip;
