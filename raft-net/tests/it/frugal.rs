//! Memory must not be had by claiming a length. Included by the fuzz programs and by the tests of `raft-node`, too.

/// Bytes that may be in use at a time beyond what is in proportion to the input.
const CONSTANT: u64 = 64 << 10;
/// Bytes for each byte of the input. A target handles what it reads several times over.
const FACTOR: u64 = 64;

/// Runs a fuzz target and checks how much memory it takes.
pub(crate) fn frugal(data: &[u8], run: fn(&[u8]) -> bool) -> bool {
    let mut good = false;
    let used = allocation_counter::measure(|| good = run(data)).bytes_max;
    assert!(used <= CONSTANT + FACTOR * data.len() as u64, "{used} bytes in use for an input of {}", data.len());
    good
}
