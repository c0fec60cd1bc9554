#![no_main]

#[path = "../../tests/it/fuzz/targets.rs"]
#[allow(dead_code)] // each target is one of them
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = targets::route(data);
});
