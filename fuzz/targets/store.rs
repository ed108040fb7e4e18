//! See `engine::metadata::fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| engine::metadata::fuzz::run(data));
