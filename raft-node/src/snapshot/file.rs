//! Files that hold a snapshot. Every byte in them is covered by a checksum, and the end by the footer.
//!
//! ```text
//! header   "raftsnap" | format u32 = 1 | group u64 | id u64 | last term u64 | last index u64 | membership length u32 | membership | crc32c u32
//! chunk    length u32 > 0 | crc32c u32 of the chunk's number (u64) and the data | data
//! footer   0 u32 | crc32c u32 of what follows | number of chunks u64 | bytes of data u64
//! ```
//!
//! Numbers are big-endian. What the data mean is the state machine's business.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use raft_core::{GroupId, LogId, LogIndex, Membership, SnapshotMeta, Term};

use crate::background::{BIT, Breather, PIECE, offer};

const MAGIC: &[u8; 8] = b"raftsnap";
const FORMAT: u32 = 1;
/// Bytes of data in a chunk; the last one may have fewer.
const CHUNK: usize = 256 << 10;
/// Longest membership that is believed, in bytes.
const MAX_MEMBERSHIP: u32 = 1 << 20;
/// Bytes of the header before the membership.
const FIXED: usize = 48;

/// Why a file is no snapshot, or cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotFileError {
    /// It is damaged, or something else. Remove it: another snapshot can be made or fetched.
    #[error("{}: not a whole snapshot: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A newer version wrote it.
    #[error("{}: format {found} of a snapshot is newer than {FORMAT}, the newest that this version knows", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The operating system failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

/// What a file says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub(crate) group: GroupId,
    /// Drawn when the file was made.
    pub(crate) id: u64,
    pub(crate) meta: SnapshotMeta,
}

impl FileHeader {
    fn encode(&self) -> Vec<u8> {
        let membership = self.meta.membership.encode();
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_be_bytes());
        for number in [self.group.0, self.id, self.meta.last.term.0, self.meta.last.index.0] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&(membership.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&membership);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        bytes
    }
}

/// Writes a file, chunk by chunk.
pub(crate) struct FileWriter {
    file: File,
    path: PathBuf,
    chunk: Vec<u8>,
    chunks: u64,
    data: u64,
    breather: Breather,
}

impl FileWriter {
    pub(crate) fn create(path: &Path, header: &FileHeader, breather: Breather) -> Result<Self, SnapshotFileError> {
        let io = |source| SnapshotFileError::Io { path: path.to_owned(), source };
        let mut file = File::create(path).map_err(io)?;
        file.write_all(&header.encode()).map_err(io)?;
        Ok(FileWriter { file, path: path.to_owned(), chunk: Vec::with_capacity(CHUNK), chunks: 0, data: 0, breather })
    }

    /// Writes what is left, and the footer; all of it is on the disk then. Returns the size of the file.
    pub(crate) fn finish(mut self) -> Result<u64, SnapshotFileError> {
        let path = self.path.clone();
        let io = |source| SnapshotFileError::Io { path: path.clone(), source };
        self.write_chunk().map_err(io)?;
        let counts = [self.chunks.to_be_bytes(), self.data.to_be_bytes()].concat();
        let footer = [&[0; 4][..], &crc32c::crc32c(&counts).to_be_bytes(), &counts].concat();
        self.file.write_all(&footer).map_err(io)?;
        self.file.sync_all().map_err(io)?;
        Ok(self.file.metadata().map_err(io)?.len())
    }

    fn write_chunk(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let FileWriter { file, chunk, chunks, data, breather, .. } = self;
        let mut head = [0; 8];
        head[..4].copy_from_slice(&(chunk.len() as u32).to_be_bytes());
        head[4..].copy_from_slice(&checksum(*chunks, chunk).to_be_bytes());
        file.write_all(&head)?;
        for piece in chunk.chunks(PIECE) {
            breather.work(piece.len(), || {
                write_piece(piece, |bit, _| file.write_all(bit)).and_then(|()| file.sync_data())
            })?;
        }
        *chunks += 1;
        *data += chunk.len() as u64;
        chunk.clear();
        Ok(())
    }
}

/// Writes bit by bit; `write` is told where in the piece each is.
pub(super) fn write_piece(piece: &[u8], mut write: impl FnMut(&[u8], u64) -> io::Result<()>) -> io::Result<()> {
    for (number, bit) in piece.chunks(BIT).enumerate() {
        offer();
        write(bit, (number * BIT) as u64)?;
    }
    Ok(())
}

impl Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..room]);
        if self.chunk.len() == CHUNK {
            self.write_chunk()?;
        }
        Ok(room)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn checksum(number: u64, data: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_be_bytes()), data)
}

/// Reads a file, and hands out nothing that has not passed its checksum. At the end it looks for the footer, and for nothing behind it.
#[derive(Debug)]
pub(crate) struct FileReader {
    file: BufReader<File>,
    path: PathBuf,
    pub(crate) header: FileHeader,
    chunk: Vec<u8>,
    at: usize,
    chunks: u64,
    data: u64,
    ended: bool,
    /// Who reads much rests now and then; and since when it does not.
    breather: Option<(Breather, Instant)>,
}

impl FileReader {
    /// Reads the header.
    pub(crate) fn open(path: &Path) -> Result<Self, SnapshotFileError> {
        let file = File::open(path).map_err(|source| SnapshotFileError::Io { path: path.to_owned(), source })?;
        let mut file = BufReader::with_capacity(64 << 10, file);
        let header = read_header(&mut file, path)?;
        Ok(FileReader {
            file,
            path: path.to_owned(),
            header,
            chunk: Vec::new(),
            at: 0,
            chunks: 0,
            data: 0,
            ended: false,
            breather: None,
        })
    }

    /// Whatever is done with what is read before more is read is work in the background.
    pub(crate) fn in_background(mut self, breather: Breather) -> Self {
        self.breather = Some((breather, Instant::now()));
        self
    }

    /// Reads all of a file to see that it is whole.
    pub(crate) fn check(path: &Path) -> Result<FileHeader, SnapshotFileError> {
        FileReader::open(path)?.check_rest()
    }

    /// Reads the rest of the file to see that it is whole.
    pub(crate) fn check_rest(mut self) -> Result<FileHeader, SnapshotFileError> {
        while !self.ended {
            self.next_chunk()?;
            self.breathe(self.chunk.len());
        }
        Ok(self.header)
    }

    /// So many bytes more are read, and whatever was to be done with those before is done.
    fn breathe(&mut self, bytes: usize) {
        if let Some((breather, since)) = &mut self.breather {
            breather.worked(bytes, since.elapsed());
            *since = Instant::now();
        }
    }

    fn damaged(&self, what: impl Into<String>) -> SnapshotFileError {
        SnapshotFileError::Damaged { path: self.path.clone(), what: what.into() }
    }

    fn next_chunk(&mut self) -> Result<(), SnapshotFileError> {
        let mut head = [0; 8];
        fill(&mut self.file, &mut head, &self.path)?;
        let (length, crc) = (be_u32(&head[..4]) as usize, be_u32(&head[4..]));
        self.chunk.clear();
        self.at = 0;
        if length == 0 {
            return self.footer(crc);
        }
        if length > CHUNK {
            return Err(self.damaged(format!("chunk {} claims {length} bytes", self.chunks)));
        }
        self.chunk.resize(length, 0);
        fill(&mut self.file, &mut self.chunk, &self.path)?;
        if checksum(self.chunks, &self.chunk) != crc {
            return Err(self.damaged(format!("chunk {} fails its checksum", self.chunks)));
        }
        self.chunks += 1;
        self.data += length as u64;
        Ok(())
    }

    fn footer(&mut self, crc: u32) -> Result<(), SnapshotFileError> {
        let mut counts = [0; 16];
        fill(&mut self.file, &mut counts, &self.path)?;
        if crc32c::crc32c(&counts) != crc || counts != *[self.chunks.to_be_bytes(), self.data.to_be_bytes()].concat() {
            return Err(self.damaged("the footer does not fit"));
        }
        let mut more = [0];
        match self.file.read(&mut more) {
            Ok(0) => {
                self.ended = true;
                Ok(())
            }
            Ok(_) => Err(self.damaged("there is something behind the footer")),
            Err(source) => Err(SnapshotFileError::Io { path: self.path.clone(), source }),
        }
    }
}

impl Read for FileReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() && !self.ended {
            self.next_chunk().map_err(|error| match error {
                SnapshotFileError::Io { source, .. } => source,
                other => io::Error::new(io::ErrorKind::InvalidData, other),
            })?;
        }
        let n = buf.len().min(self.chunk.len() - self.at);
        let bits = (self.at + n) / BIT - self.at / BIT;
        if bits > 0 {
            offer();
            self.breathe(bits * BIT);
        }
        buf[..n].copy_from_slice(&self.chunk[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

fn read_header(file: &mut impl Read, path: &Path) -> Result<FileHeader, SnapshotFileError> {
    let damaged = |what: &str| SnapshotFileError::Damaged { path: path.to_owned(), what: what.to_owned() };
    let mut bytes = vec![0; FIXED];
    fill(file, &mut bytes, path)?;
    if !bytes.starts_with(MAGIC) {
        return Err(damaged("it does not begin like one"));
    }
    let format = be_u32(&bytes[8..12]);
    if format != FORMAT {
        return Err(SnapshotFileError::NewerFormat { path: path.to_owned(), found: format });
    }
    let length = be_u32(&bytes[44..48]);
    if length > MAX_MEMBERSHIP {
        return Err(damaged("its membership is too long"));
    }
    bytes.resize(FIXED + length as usize, 0);
    fill(file, &mut bytes[FIXED..], path)?;
    let mut crc = [0; 4];
    fill(file, &mut crc, path)?;
    if crc32c::crc32c(&bytes) != u32::from_be_bytes(crc) {
        return Err(damaged("the header fails its checksum"));
    }
    let number = |at: usize| bytes[at..at + 8].iter().fold(0, |n, &byte| n << 8 | u64::from(byte));
    let membership = Membership::decode(&bytes[FIXED..]).map_err(|error| damaged(&error.to_string()))?;
    let meta = SnapshotMeta { last: LogId::new(Term(number(28)), LogIndex(number(36))), membership };
    Ok(FileHeader { group: GroupId(number(12)), id: number(20), meta })
}

/// Like `read_exact`, but an end that comes too early is damage.
fn fill(file: &mut impl Read, buf: &mut [u8], path: &Path) -> Result<(), SnapshotFileError> {
    file.read_exact(buf).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => {
            SnapshotFileError::Damaged { path: path.to_owned(), what: "it ends too early".into() }
        }
        _ => SnapshotFileError::Io { path: path.to_owned(), source },
    })
}

fn be_u32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |n, &byte| n << 8 | u32::from(byte))
}

#[cfg(test)]
mod tests {
    use raft_core::NodeId;

    use super::*;
    use crate::pace::Pace;

    fn breather() -> Breather {
        Breather::new(Pace::new())
    }

    fn header() -> FileHeader {
        let membership = Membership::of_voters([1, 2].map(NodeId));
        let meta = SnapshotMeta { last: LogId::new(Term(3), LogIndex(77)), membership };
        FileHeader { group: GroupId(1), id: 0xFEED, meta }
    }

    fn write(path: &Path, data: &[u8]) -> u64 {
        let mut writer = FileWriter::create(path, &header(), breather()).unwrap();
        writer.write_all(data).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn what_was_written_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5] {
            let data: Vec<u8> = (0..size).map(|n| (n ^ n >> 9) as u8).collect();
            assert_eq!(write(&path, &data), std::fs::metadata(&path).unwrap().len());
            assert_eq!(FileReader::check(&path).unwrap(), header());
            let (mut reader, mut found) = (FileReader::open(&path).unwrap(), Vec::new());
            reader.read_to_end(&mut found).unwrap();
            assert_eq!((reader.header, found == data), (header(), true), "{size}");
        }
    }

    #[test]
    fn every_flipped_bit_every_cut_and_every_addition_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write(&path, b"some data");
        let good = std::fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).unwrap();
            let error = FileReader::check(&path).unwrap_err();
            assert!(!matches!(error, SnapshotFileError::Io { .. }), "bit {bit}: {error}");
        }
        for cut in 0..good.len() {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert!(FileReader::check(&path).unwrap_err().to_string().contains("too early"), "{cut}");
        }
        std::fs::write(&path, [&good[..], b"x"].concat()).unwrap();
        assert!(FileReader::check(&path).unwrap_err().to_string().contains("behind the footer"));
        // Chunks that change places, each of them whole.
        let mut writer = FileWriter::create(&path, &header(), breather()).unwrap();
        writer.write_all(&vec![1; CHUNK]).unwrap();
        writer.write_all(&vec![2; CHUNK]).unwrap();
        writer.finish().unwrap();
        let whole = std::fs::read(&path).unwrap();
        let (begin, size) = (header().encode().len(), CHUNK + 8);
        let swapped = [
            &whole[..begin],
            &whole[begin + size..begin + 2 * size],
            &whole[begin..begin + size],
            &whole[begin + 2 * size..],
        ];
        std::fs::write(&path, swapped.concat()).unwrap();
        assert!(FileReader::check(&path).unwrap_err().to_string().contains("chunk 0 fails"));
        let mut reader = FileReader::open(&path).unwrap();
        assert_eq!(reader.read(&mut [0; 10]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
