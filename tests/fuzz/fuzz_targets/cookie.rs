//! A token or a branch: minted, changed, arbitrary.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tandem::fuzzing::cookie(bytes));
