//! All that happens to a node: messages, changes, time.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tandem::fuzzing::engine(bytes));
