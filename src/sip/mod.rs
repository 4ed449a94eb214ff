//! SIP on the wire: one header noun a file, offsets instead of copies.
//!
//! [`scan`](scan::Scan) finds where things are, the decoders read the few values that routing asks for, and
//! [`edit`](edit::Edit) writes the message out again with nothing changed but what was planned.

pub mod cseq;
mod cursor;
pub mod edit;
pub mod frame;
pub mod method;
pub mod name_addr;
pub mod params;
pub mod reply;
pub mod scan;
pub mod uri;
pub mod values;
pub mod via;
