//! A stream of bytes, cut into frames.

use bytes::{BufMut, Bytes};
use raft_core::fuzzing::Choices;

use crate::frame::{Decoder, FRAME_HEADER, FrameError, LENGTH_BYTES};

/// Frames must come out the same however the stream is cut into pieces, and what is held for an unfinished frame must not exceed twice what
/// has arrived.
pub fn frames(data: &[u8]) -> bool {
    let mut choices = Choices::new(data);
    let limit = choices.one_of([1 << 20, 9, 40, 300, usize::MAX]);
    let cuts: Vec<usize> = (0..choices.between(0, 6)).map(|_| choices.between(1, 60) as usize).collect();
    let stream = stream(&mut choices);

    let (whole, verdict) = in_pieces(&stream, limit, &[]);
    assert_eq!(in_pieces(&stream, limit, &cuts), (whole.clone(), verdict.clone()), "another cutting, other frames");
    let mut used = 0;
    for frame in &whole {
        assert!(frame.len() <= limit && frame.len() >= FRAME_HEADER - LENGTH_BYTES);
        let length = &stream[used..used + LENGTH_BYTES];
        assert_eq!(length, &(frame.len() as u32).to_le_bytes());
        used += LENGTH_BYTES;
        assert_eq!(frame, &stream[used..used + frame.len()], "frames are the stream, in order");
        used += frame.len();
    }
    match verdict {
        // What is left over is less than a frame.
        None => {
            assert!(
                stream.len() - used < LENGTH_BYTES || stream.len() - used - LENGTH_BYTES < claimed(&stream[used..])
            );
        }
        Some(FrameError::TooLarge { length, limit: over }) => {
            assert!(over == limit && length > limit && length == claimed(&stream[used..]));
        }
        Some(FrameError::TooShort(length)) => assert!(length < 9 && length == claimed(&stream[used..])),
        Some(other) => panic!("{other:?} is no matter of frames"),
    }
    !whole.is_empty()
}

/// Bytes with lengths that are mostly right, as a fuzzer hardly finds them by itself.
fn stream(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    while !choices.is_over() {
        let skew = if choices.chance(1, 16) { choices.number(0) as u32 } else { 0 };
        let body = choices.bytes(80);
        if !choices.chance(1, 16) {
            stream.put_u32_le((body.len() as u32 + 9).wrapping_add(skew));
            stream.put_bytes(7, 9);
        }
        stream.extend_from_slice(body);
    }
    stream
}

fn claimed(rest: &[u8]) -> usize {
    rest.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize)
}

/// Pieces of the lengths `cuts`, and what is left in one piece.
fn in_pieces(stream: &[u8], limit: usize, cuts: &[usize]) -> (Vec<Bytes>, Option<FrameError>) {
    let mut decoder = Decoder::new(limit);
    let (mut frames, mut at) = (Vec::new(), 0usize);
    for &cut in cuts.iter().chain([&usize::MAX]) {
        let piece = &stream[at..at.saturating_add(cut).min(stream.len())];
        at += piece.len();
        decoder.push(Bytes::copy_from_slice(piece));
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next_frame().as_ref(), Err(&error), "a lost stream stays lost");
                    return (frames, Some(error));
                }
            }
        }
        assert!(decoder.allocated() <= 2 * at + 64, "{} bytes for {at} that arrived", decoder.allocated());
        if at == stream.len() {
            let frames_len: usize = frames.iter().map(|frame| LENGTH_BYTES + frame.len()).sum();
            assert_eq!(decoder.is_mid_frame(), frames_len < stream.len());
            break;
        }
    }
    (frames, None)
}
