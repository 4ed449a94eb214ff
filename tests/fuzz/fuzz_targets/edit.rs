//! A message on its way: what need not change leaves as it came.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tandem::fuzzing::edit(bytes));
