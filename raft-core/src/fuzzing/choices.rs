//! Bytes, read as a series of decisions.

use arbitrary::Unstructured;

/// Reads decisions off bytes. Each takes one byte if it can, so that a changed byte changes one decision. After the end every
/// decision is the first one of its kind.
#[derive(Debug)]
pub struct Choices<'a>(Unstructured<'a>);

impl<'a> Choices<'a> {
    /// Decisions made of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Choices(Unstructured::new(data))
    }

    /// Whether all bytes are used up.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// A number between `low` and `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0.int_in_range(low..=high.max(low)).unwrap_or(low)
    }

    /// An index below `len`; zero when there is nothing to choose from.
    pub fn pick(&mut self, len: usize) -> usize {
        self.between(0, (len as u64).saturating_sub(1)) as usize
    }

    /// One of these.
    pub fn one_of<T: Copy, const N: usize>(&mut self, values: [T; N]) -> T {
        values[self.pick(N)]
    }

    /// True in `of` cases out of `outof`; false after the end.
    pub fn chance(&mut self, of: u64, outof: u64) -> bool {
        self.between(1, outof) > outof - of.min(outof)
    }

    /// A yes or a no; no after the end.
    pub fn flip(&mut self) -> bool {
        self.chance(1, 2)
    }

    /// A number that is likely to hit an edge: near `near`, small, or one of the largest that are believed, and beyond.
    pub fn number(&mut self, near: u64) -> u64 {
        match self.between(0, 15) {
            0..=9 => near.saturating_add(self.between(0, 4)).saturating_sub(2),
            10..=12 => self.between(0, 12),
            13 => (1 << 62) + self.between(0, 2) - 1,
            14 => u64::MAX - self.between(0, 1),
            _ => self.0.arbitrary().unwrap_or_default(),
        }
    }

    /// Some of the bytes, at most `most`.
    pub fn bytes(&mut self, most: u64) -> &'a [u8] {
        let len = (self.between(0, most) as usize).min(self.0.len());
        self.0.bytes(len).unwrap_or_default()
    }

    /// All bytes that are left.
    pub fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }
}
