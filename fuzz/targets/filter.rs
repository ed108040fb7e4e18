//! See `engine::fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| engine::fuzz::run("filter", data));
