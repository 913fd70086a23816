//! A look at the frames of RocksDB's write-ahead log and MANIFEST, before RocksDB reads them.
//!
//! RocksDB takes a frame whose length points behind the end of the file for one that a power failure tore, and ends there without a word: a
//! single flipped bit in such a length drops what was synced, from this frame to the end. A flipped bit in the kind of a frame
//! makes it believe in an older file at the same place, with the same result, or in a loop without end. Everything else that can be wrong
//! with a frame it notices by the frame's checksum, and refuses.
//!
//! A file consists of blocks of 32 KiB, a block of frames: `checksum u32 | length u16 | kind u8 | payload`, little-endian, with fewer than 7 bytes
//! left over at the end of a block. The checksum is a masked CRC32C of kind and payload. (RocksDB, `db/log_format.h`.)

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

const BLOCK: usize = 32 << 10;
pub(super) const HEADER: usize = 7;
/// Whole, first, middle, last part of a record: the only ones that RocksDB writes with our options.
const KINDS: std::ops::RangeInclusive<u8> = 1..=4;

/// What is wrong with the files of a RocksDB database before RocksDB has seen them. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FramingError {
    /// A frame cannot have been written like that: opening the database would lose what comes after it, or never come to an end.
    #[error("{}: {what}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong, and at which byte.
        what: String,
    },
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file, or the directory.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

/// Looks at every write-ahead log of the RocksDB database in `dir`, and at the MANIFEST that is in force, for what RocksDB would not
/// notice: to be called before it opens them. `dir` holds a database already (a file `CURRENT`).
///
/// RocksDB takes a frame whose length points behind the end of the file for one that a power failure tore, and drops it and all that follows
/// without a word; a frame of a kind that it has no use for can make it read on for ever. It takes one flipped bit.
///
/// Each file is read once, in blocks of 32 KiB. Frames are understood as RocksDB writes them while its option `recycle_log_file_num` is 0, which is
/// the default.
///
/// # Errors
/// What is wrong, and where; or a file cannot be read.
pub fn check_framing(dir: &Path) -> Result<(), FramingError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| FramingError::Unreadable { path, source }
    };
    let current = dir.join("CURRENT");
    let manifest = String::from_utf8_lossy(&fs::read(&current).map_err(unreadable(&current))?).trim_end().to_owned();
    for entry in fs::read_dir(dir).map_err(unreadable(dir))? {
        let path = entry.map_err(unreadable(dir))?.path();
        let is_manifest = path.file_name().is_some_and(|name| *name == *manifest);
        if !is_manifest && path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        match File::open(&path).and_then(check_file) {
            Ok(None) => {}
            Ok(Some(what)) => return Err(FramingError::Damaged { file: path, what }),
            // Another process is at work here. That is for RocksDB to say, which locks the directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(&path)(error)),
        }
    }
    Ok(())
}

/// What is wrong with a file, if anything is.
pub(super) fn check_file(mut file: impl io::Read) -> io::Result<Option<String>> {
    let mut block = Vec::with_capacity(BLOCK);
    let (mut start, mut ended) = (0, false);
    loop {
        block.clear();
        file.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
        if ended && block.iter().any(|byte| *byte != 0) {
            return Ok(Some(format!("the block at byte {start}: nothing before it, but data in it")));
        }
        match check_block(&block) {
            Ok(Next::Block) => {}
            Ok(Next::Nothing) => ended = true,
            Err(Bad { at, what }) => return Ok(Some(format!("the frame at byte {}: {what}", start + at))),
        }
        if block.len() < BLOCK {
            return Ok(None);
        }
        start += BLOCK;
    }
}

/// What may follow on a block.
enum Next {
    Block,
    /// It ends in zeros: what a power failure may leave of a file that had become longer. RocksDB skips them.
    Nothing,
}

struct Bad {
    /// Offset in the block.
    at: usize,
    what: String,
}

fn check_block(block: &[u8]) -> Result<Next, Bad> {
    let mut rest = block;
    while let Some((&[c0, c1, c2, c3, l0, l1, kind], payload)) = rest.split_first_chunk::<HEADER>() {
        let at = block.len() - rest.len();
        let bad = |what: String| Err(Bad { at, what });
        let checksum = unmask(u32::from_le_bytes([c0, c1, c2, c3]));
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        if kind == 0 && length == 0 {
            let zeros = payload.iter().all(|byte| *byte == 0);
            return if zeros { Ok(Next::Nothing) } else { bad("no header, but data behind it".to_owned()) };
        }
        if !KINDS.contains(&kind) {
            return bad(format!("its kind is {kind}, which is never written"));
        }
        match payload.get(length..) {
            Some(behind) => rest = behind,
            None if block.len() == BLOCK => return bad(format!("its length {length} goes beyond its block")),
            // Torn, it cannot have its checksum: that it does, under another length, shows that the length is what is wrong.
            None => match whole(kind, payload, checksum).find(|&length| may_follow(&payload[length..])) {
                Some(found) => return bad(format!("it has {found} bytes and says {length}")),
                None => return Ok(Next::Nothing),
            },
        }
    }
    Ok(Next::Block)
}

/// How many bytes of `payload` the checksum fits, if it does; rarely more than one number, by chance.
fn whole(kind: u8, payload: &[u8], checksum: u32) -> impl Iterator<Item = usize> {
    let mut crc = crc32c::crc32c(&[kind]);
    (0..=payload.len()).filter(move |&length| {
        if let Some(last) = length.checked_sub(1) {
            crc = crc32c::crc32c_append(crc, &payload[last..length]);
        }
        crc == checksum
    })
}

/// Whether these bytes may come behind a frame, at the end of a file. The first bytes of a long frame that was torn have its checksum by chance once
/// in some hundred thousand times; but then the rest of its payload follows, and hardly ever looks like this.
fn may_follow(bytes: &[u8]) -> bool {
    let Some((&[c0, c1, c2, c3, l0, l1, kind], payload)) = bytes.split_first_chunk::<HEADER>() else { return true };
    if !KINDS.contains(&kind) {
        return bytes.iter().all(|byte| *byte == 0);
    }
    match payload.get(..usize::from(u16::from_le_bytes([l0, l1]))) {
        Some(own) => {
            unmask(u32::from_le_bytes([c0, c1, c2, c3])) == crc32c::crc32c_append(crc32c::crc32c(&[kind]), own)
        }
        None => true,
    }
}

/// RocksDB stores a checksum rotated and with a number added, as it may be part of what is summed up again.
fn unmask(stored: u32) -> u32 {
    stored.wrapping_sub(0xa282_ead8).rotate_left(15)
}

/// A frame of at most 32 KiB, as RocksDB would write it.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload);
    let stored = crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
    let length = (payload.len() as u16).to_le_bytes();
    [&stored[..], &length, &[kind], payload].concat()
}

/// What is left of the block in which the byte at `offset` lies.
#[cfg(feature = "fuzzing")]
pub(super) fn room_after(offset: usize) -> usize {
    BLOCK - offset % BLOCK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(file: &[u8]) -> Option<String> {
        check_file(file).unwrap()
    }

    #[test]
    fn whole_files_and_torn_ones_pass() {
        let (small, first) = (frame(1, b"a small batch"), frame(2, &vec![7; BLOCK - 100]));
        let mut file = [&small[..], &first].concat();
        // To the end of the block, which is too short for another header.
        file.extend(frame(3, &vec![8; BLOCK - file.len() - HEADER - 4]));
        file.extend([0; 4]);
        assert_eq!(file.len(), BLOCK);
        file.extend(frame(4, b"the end"));
        for cut in (0..file.len()).step_by(97).chain(BLOCK - 5..=file.len()) {
            assert_eq!(look(&file[..cut]), None, "cut at {cut}");
        }
        file.extend([0; 5000]);
        assert_eq!(look(&file), None, "zeros");
    }

    /// Found by fuzzing: 445 bytes of a frame of 6300 have the checksum of all of it.
    #[test]
    fn a_torn_frame_whose_first_bytes_have_its_checksum_is_torn() {
        let payload = b"the first bytes, and the rest of it, which is lost but for these";
        let mut torn = frame(1, &payload[..15]);
        torn[4] = 200;
        torn.extend(&payload[15..]);
        assert_eq!(look(&torn), None);
        // The same is damage where a frame follows, whole or torn, or nothing.
        let behind = frame(2, b"the next one");
        for rest in [&behind[..], &behind[..12], &behind[..3], &[0; 30], &[]] {
            let damaged = [&torn[..HEADER + 15], rest].concat();
            assert!(look(&damaged).is_some_and(|what| what.contains("it has 15 bytes and says 200")), "{rest:?}");
        }
    }

    #[test]
    fn a_wrong_length_or_kind_is_noticed_wherever_rocksdb_would_not() {
        let file = [frame(1, b"one"), frame(2, b""), frame(4, &[9; 300]), frame(1, b"three")].concat();
        assert_eq!(look(&file), None);
        for at in [0, 10, 17, 324] {
            for bit in 32..56 {
                let mut bad = file.clone();
                bad[at + bit / 8] ^= 1 << (bit % 8);
                let length = usize::from(u16::from_le_bytes([bad[at + 4], bad[at + 5]]));
                // Otherwise there is a checksum in the way.
                let silent = !KINDS.contains(&bad[at + 6]) || at + HEADER + length > bad.len();
                assert!(look(&bad).is_some() || !silent, "frame at {at}, bit {bit}");
            }
        }
        assert_eq!(
            look(&[&file[..10], &[0; 40], &file[10..]].concat()).unwrap(),
            "the frame at byte 10: no header, but data behind it"
        );
        let gap = [&vec![0; BLOCK][..], &frame(1, b"x")].concat();
        assert!(look(&gap).unwrap().contains("nothing before it"));
        let mut long = frame(1, &vec![1; BLOCK - HEADER]);
        long[4] = 0xff;
        assert!(look(&[long, frame(1, b"x")].concat()).unwrap().contains("beyond its block"));
    }
}
