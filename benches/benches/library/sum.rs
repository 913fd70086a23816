//! What the state machines of both do with a command: they look at all of it, and keep next to nothing.

/// The state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    /// Commands applied.
    pub(crate) commands: u64,
    /// Depends on every word of every command, and on their order.
    checksum: u64,
}

impl Sum {
    /// Bytes of a state as it is written into a snapshot.
    pub(crate) const BYTES: usize = 16;

    /// Applies a command. The reply is the number of commands so far.
    pub(crate) fn apply(&mut self, command: &[u8]) -> u64 {
        let (words, _) = command.as_chunks::<8>();
        let of_command = words.iter().fold(0u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
        self.checksum = self.checksum.rotate_left(1).wrapping_add(of_command);
        self.commands += 1;
        self.commands
    }

    pub(crate) fn to_bytes(self) -> [u8; Sum::BYTES] {
        let mut bytes = [0; Sum::BYTES];
        bytes[..8].copy_from_slice(&self.commands.to_le_bytes());
        bytes[8..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; Sum::BYTES]) -> Self {
        let [low, high] = [0, 8].map(|at| std::array::from_fn(|i| bytes[at + i]));
        Sum { commands: u64::from_le_bytes(low), checksum: u64::from_le_bytes(high) }
    }
}
