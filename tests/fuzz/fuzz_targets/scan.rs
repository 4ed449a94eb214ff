//! A datagram: the scan against the naive reader.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tandem::fuzzing::scan(bytes));
