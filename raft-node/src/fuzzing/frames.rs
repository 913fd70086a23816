//! What travels between a client and a node.

use bytes::BytesMut;
use raft_core::fuzzing::Choices;

use crate::client::protocol::{
    FRAME_HEADER, Frame, FrameError, FrameReader, NodeStatus, Request, Response, encode_done,
};

/// Longest frame that is accepted here, without its length field.
const LIMIT: usize = 200;
const LENGTH: usize = 4;

/// The node's side. What is read as a request, and written again, has the same bytes.
pub fn requests(data: &[u8]) -> bool {
    let (stream, frames) = cut(data, 1..=7);
    let mut good = false;
    let mut at = 0;
    for frame in frames {
        let (start, id) = (at, frame.id);
        at += LENGTH + length(&stream[at..]);
        let request = match frame.into_request() {
            Ok(request) => request,
            Err(error) => {
                check_kind_error(error);
                continue;
            }
        };
        let mut again = BytesMut::new();
        request.encode_to(id, &mut again).expect("it came in a frame");
        if matches!(request, Request::Member { .. }) {
            // Its numbers have more than one spelling.
            let mut reader = FrameReader::new(usize::MAX);
            reader.push(&again);
            let second = reader.next_frame().expect("a good frame").expect("a whole one");
            assert_eq!((second.id, second.into_request()), (id, Ok(request)));
        } else {
            assert_eq!(&again[..], &stream[start..at], "another spelling of {request:?}");
        }
        good = true;
    }
    good
}

/// The client's side. What is read as a response, written and read again is the same.
pub fn responses(data: &[u8]) -> bool {
    let (_, frames) = cut(data, 127..=136);
    let mut good = false;
    for frame in frames {
        let id = frame.id;
        let response = match frame.into_response() {
            Ok(response) => response,
            Err(error) => {
                check_kind_error(error);
                continue;
            }
        };
        let mut again = BytesMut::new();
        response.encode_to(id, &mut again);
        if let Response::Done(body) = &response {
            let mut short = BytesMut::new();
            encode_done(id, body, &mut short);
            assert_eq!(short, again);
            if let Ok(status) = postcard::from_bytes::<NodeStatus>(body) {
                let bytes = postcard::to_stdvec(&status).expect("it fits into memory");
                assert_eq!(postcard::from_bytes(&bytes), Ok(status));
            }
        }
        let mut reader = FrameReader::new(usize::MAX);
        reader.push(&again);
        let second = reader.next_frame().expect("a good frame").expect("a whole one");
        assert_eq!((second.id, second.into_response()), (id, Ok(response)));
        good = true;
    }
    good
}

/// A stream of frames that are mostly right, and what comes out of it. It must be the same however the stream is cut.
fn cut(data: &[u8], kinds: std::ops::RangeInclusive<u8>) -> (Vec<u8>, Vec<Frame>) {
    let mut choices = Choices::new(data);
    let cuts: Vec<usize> = (0..choices.between(0, 6)).map(|_| choices.between(1, 40) as usize).collect();
    let stream = stream(&mut choices, &kinds);
    let (frames, verdict) = in_pieces(&stream, &[]);
    assert_eq!(in_pieces(&stream, &cuts), (frames.clone(), verdict), "another cutting, other frames");
    let used: usize = frames.iter().fold(0, |at, _| at + LENGTH + length(&stream[at..]));
    match verdict {
        None => assert!(stream.len() - used < LENGTH || stream.len() - used < LENGTH + length(&stream[used..])),
        Some(FrameError::TooLong { length: claimed, limit }) => {
            assert!(limit == LIMIT && claimed > LIMIT && claimed == length(&stream[used..]));
        }
        Some(FrameError::TooShort(_)) => assert!(length(&stream[used..]) < FRAME_HEADER - LENGTH),
        Some(other) => panic!("{other:?} is no matter of framing"),
    }
    (stream, frames)
}

fn stream(choices: &mut Choices<'_>, kinds: &std::ops::RangeInclusive<u8>) -> Vec<u8> {
    let mut stream = Vec::new();
    while !choices.is_over() {
        let skew = if choices.chance(1, 16) { choices.number(0) as u32 } else { 0 };
        let kind = choices.between(u64::from(*kinds.start()), u64::from(*kinds.end())) as u8;
        let id = choices.between(0, 255);
        let body = choices.bytes(120);
        stream.extend_from_slice(&(body.len() as u32 + 9).wrapping_add(skew).to_le_bytes());
        stream.extend_from_slice(&id.to_le_bytes());
        stream.push(kind);
        stream.extend_from_slice(body);
    }
    stream
}

/// What the first length field says.
fn length(stream: &[u8]) -> usize {
    stream.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize)
}

fn in_pieces(stream: &[u8], cuts: &[usize]) -> (Vec<Frame>, Option<FrameError>) {
    let mut reader = FrameReader::new(LIMIT);
    let (mut frames, mut at) = (Vec::new(), 0usize);
    for &cut in cuts.iter().chain([&usize::MAX]) {
        let end = at.saturating_add(cut).min(stream.len());
        reader.push(&stream[at..end]);
        at = end;
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fn check_kind_error(error: FrameError) {
    assert!(matches!(error, FrameError::TooShort(_) | FrameError::Kind(_) | FrameError::Body(_)), "{error:?}");
}
