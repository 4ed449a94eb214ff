//! A stream: the framer against its twin, the scan, and other splits of the same bytes.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tandem::fuzzing::frame(bytes));
