//! See `runc_rs::fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| runc_rs::fuzz::run("criu", data));
