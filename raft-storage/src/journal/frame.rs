//! What one sync makes durable: a frame.
//!
//! ```text
//! mark u32 | length of the body u32 | checksum of the frame before u32 | checksum u32 | body | zeros up to a multiple of 8
//! ```
//!
//! The mark is a checksum of the journal's random id, the number of the segment, the offset in it, the length, and the checksum before; the other one covers all that and
//! the body. So what an earlier use of a recycled file left behind is no frame, wherever it lies, and nobody can smuggle one into an entry. The mark alone tells that in
//! nearly all cases: a search costs the same whatever the bytes are.

/// Bytes before the body.
pub(super) const HEADER: usize = 16;
/// Frames begin at multiples of this.
const ALIGN: usize = 8;
/// Largest body; a batch that is larger is refused.
pub(super) const MAX_BODY: usize = 1 << 30;
/// Between what the mark covers and the body. Because of it, zeros are no frame.
const MAGIC: [u8; 4] = *b"RfJ1";

/// Where a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) journal: u128,
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// A frame that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) body: &'a [u8],
    /// Checksum of the frame before it.
    pub(super) previous: u32,
    pub(super) checksum: u32,
    /// Bytes from its beginning to that of the next.
    pub(super) size: usize,
}

/// Bytes that a frame with such a body takes.
pub(super) fn size(body: usize) -> usize {
    (HEADER + body).next_multiple_of(ALIGN)
}

/// Makes a frame of `buffer`: room for a header, then the body. Returns its checksum.
pub(super) fn seal(buffer: &mut Vec<u8>, place: Place, previous: u32) -> u32 {
    let length = (buffer.len() - HEADER) as u32;
    let (mark, checksum) = checksums(place, previous, length, &buffer[HEADER..]);
    buffer[..4].copy_from_slice(&mark.to_be_bytes());
    buffer[4..8].copy_from_slice(&length.to_be_bytes());
    buffer[8..12].copy_from_slice(&previous.to_be_bytes());
    buffer[12..16].copy_from_slice(&checksum.to_be_bytes());
    buffer.resize(buffer.len().next_multiple_of(ALIGN), 0);
    checksum
}

/// The frame that `bytes` begin with, if they do.
pub(super) fn parse(bytes: &[u8], place: Place) -> Option<Frame<'_>> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (length, previous) = (number(4), number(8));
    if mark(place, previous, length) != number(0) {
        return None;
    }
    let body = rest.get(..length as usize)?;
    let (_, checksum) = checksums(place, previous, length, body);
    (checksum == number(12)).then(|| Frame { body, previous, checksum, size: size(body.len()) })
}

/// Where behind `from` a frame of this segment begins, if there is one. Frames are written one after the other, each when the one before is durable: whatever
/// lies before this one was acknowledged.
pub(super) fn find(bytes: &[u8], place: Place, from: usize) -> Option<usize> {
    (from.next_multiple_of(ALIGN)..bytes.len())
        .step_by(ALIGN)
        .find(|at| parse(&bytes[*at..], Place { offset: *at as u64, ..place }).is_some())
}

fn checksums(place: Place, previous: u32, length: u32, body: &[u8]) -> (u32, u32) {
    let mark = mark(place, previous, length);
    (mark, crc32c::crc32c_append(crc32c::crc32c_append(mark, &MAGIC), body))
}

fn mark(place: Place, previous: u32, length: u32) -> u32 {
    let mut seed = [0; 40];
    seed[..16].copy_from_slice(&place.journal.to_be_bytes());
    seed[16..24].copy_from_slice(&place.segment.to_be_bytes());
    seed[24..32].copy_from_slice(&place.offset.to_be_bytes());
    seed[32..36].copy_from_slice(&previous.to_be_bytes());
    seed[36..].copy_from_slice(&length.to_be_bytes());
    crc32c::crc32c(&seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { journal: 7 << 100, segment: 3, offset: 4096 };

    fn frame(body: &[u8], place: Place, previous: u32) -> Vec<u8> {
        let mut buffer = [&[0; HEADER][..], body].concat();
        seal(&mut buffer, place, previous);
        buffer
    }

    #[test]
    fn a_frame_is_valid_in_its_place_only() {
        for body in [&b""[..], b"x", b"12345678", &[9; 1000]] {
            let good = frame(body, PLACE, 5);
            assert_eq!((good.len(), good.len() % ALIGN), (size(body.len()), 0));
            let parsed = parse(&good, PLACE).expect("it is whole");
            assert_eq!((parsed.body, parsed.previous, parsed.size), (body, 5, good.len()));
            assert_eq!(parse(&good, Place { journal: 8, ..PLACE }), None);
            assert_eq!(parse(&good, Place { segment: 4, ..PLACE }), None);
            assert_eq!(parse(&good, Place { offset: 4104, ..PLACE }), None);
            for bit in 0..(HEADER + body.len()) * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(parse(&bad, PLACE), None, "bit {bit}");
            }
            assert!((0..HEADER + body.len()).all(|cut| parse(&good[..cut], PLACE).is_none()));
        }
    }

    #[test]
    fn a_later_frame_is_found_behind_damage() {
        let mut bytes = vec![0xAA; 64];
        bytes.extend(frame(b"later", Place { offset: 64, ..PLACE }, 1));
        assert_eq!(find(&bytes, PLACE, 0), Some(64));
        assert_eq!(find(&bytes, PLACE, 64), Some(64));
        assert_eq!(find(&bytes, PLACE, 65), None);
        assert_eq!(find(&bytes, Place { segment: 9, ..PLACE }, 0), None, "of an earlier use of the file");
        // Inside of an entry it is no frame: it was made for another place.
        let inner = frame(b"smuggled", Place { offset: 0, ..PLACE }, 0);
        assert_eq!(find(&inner, PLACE, 0), Some(0));
        assert_eq!(find(&[&[0; 8][..], &inner].concat(), PLACE, 0), None);
    }

    /// Bytes of a client that look like headers of large frames everywhere: were their checksums computed, this would take hours.
    #[test]
    fn a_search_does_not_take_longer_whatever_the_bytes_are() {
        let bytes = [MAGIC, 1_000_000u32.to_be_bytes()].concat().repeat(1 << 20);
        assert_eq!(find(&bytes, PLACE, 0), None);
        assert_eq!(find(&vec![0; 1 << 20], PLACE, 0), None);
    }
}
