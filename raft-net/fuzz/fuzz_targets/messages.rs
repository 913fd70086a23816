#![no_main]
#[path = "../../tests/it/frugal.rs"]
mod frugal;
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    frugal::frugal(data, raft_net::fuzzing::messages);
});
