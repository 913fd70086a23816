//! The bytes, one by one.

use super::*;

const GROUP: GroupId = GroupId(1);

fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut reader = FrameReader::new(1 << 20);
    let mut frames = Vec::new();
    // Byte by byte: a frame must come out the moment it is complete, never before.
    for byte in bytes {
        reader.push(&[*byte]);
        frames.extend(reader.next_frame().unwrap());
    }
    assert!(reader.buf.is_empty());
    frames
}

/// Clients and servers of different versions exchange these bytes.
#[test]
fn requests_are_fixed() {
    let change = MemberChange {
        learners: vec![NodeId(4)],
        addresses: vec![(NodeId(4), "h:1".into())],
        ..MemberChange::default()
    };
    let requests: [(Request, &[u8]); 9] = [
        (
            Request::Write { group: GROUP, command: Bytes::from_static(b"cmd") },
            b"\x14\0\0\0\x07\0\0\0\0\0\0\0\x01\x01\0\0\0\0\0\0\0cmd",
        ),
        (
            Request::Read { group: GROUP, consistency: Consistency::Linearizable, query: Bytes::from_static(b"q") },
            b"\x13\0\0\0\x07\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0\0\0q",
        ),
        (
            Request::Read { group: GROUP, consistency: Consistency::Stale, query: Bytes::new() },
            b"\x12\0\0\0\x07\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0\0\x01",
        ),
        (
            Request::Member { group: GROUP, change },
            b"\x1d\0\0\0\x07\0\0\0\0\0\0\0\x05\x01\0\0\0\0\0\0\0\0\x01\x04\0\x01\x04\x03h:1\0\0",
        ),
        (
            Request::Read { group: GROUP, consistency: Consistency::Lease, query: Bytes::new() },
            b"\x12\0\0\0\x07\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0\0\x02",
        ),
        (Request::Status { group: GROUP }, b"\x11\0\0\0\x07\0\0\0\0\0\0\0\x03\x01\0\0\0\0\0\0\0"),
        (Request::Snapshot { group: GROUP }, b"\x11\0\0\0\x07\0\0\0\0\0\0\0\x06\x01\0\0\0\0\0\0\0"),
        (
            Request::Transfer { group: GROUP, to: None },
            b"\x19\0\0\0\x07\0\0\0\0\0\0\0\x04\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ),
        (
            Request::Transfer { group: GROUP, to: Some(NodeId(3)) },
            b"\x19\0\0\0\x07\0\0\0\0\0\0\0\x04\x01\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0",
        ),
    ];
    for (request, golden) in requests {
        let mut out = BytesMut::new();
        request.encode_to(7, &mut out).unwrap();
        assert_eq!(&out[..], golden, "{request:?}");
        let [frame] = &frames(golden)[..] else { panic!("one frame expected") };
        assert_eq!((frame.id, frame.clone().into_request()), (7, Ok(request)));
        assert!(frame.clone().into_response().is_err());
    }
}

#[test]
fn responses_are_fixed() {
    let responses: [(Response, &[u8]); 10] = [
        (Response::Done(Bytes::from_static(b"ok")), b"\x0b\0\0\0\x09\0\0\0\0\0\0\0\x80ok"),
        (Response::NotLeader { hint: None }, b"\x0a\0\0\0\x09\0\0\0\0\0\0\0\x81\0"),
        (
            Response::NotLeader { hint: Some((NodeId(2), "h:1".into())) },
            b"\x0f\0\0\0\x09\0\0\0\0\0\0\0\x81\x01\x02\x03h:1",
        ),
        (Response::Busy { retry_after: Duration::from_millis(300) }, b"\x0d\0\0\0\x09\0\0\0\0\0\0\0\x82\x2c\x01\0\0"),
        (
            Response::Busy { retry_after: Duration::from_millis(u32::MAX.into()) },
            b"\x0d\0\0\0\x09\0\0\0\0\0\0\0\x82\xff\xff\xff\xff",
        ),
        (Response::TooLarge { size: 3, limit: 2 }, b"\x0b\0\0\0\x09\0\0\0\0\0\0\0\x83\x03\x02"),
        (Response::Unknown, b"\x09\0\0\0\x09\0\0\0\0\0\0\0\x84"),
        (Response::BadRequest("no".into()), b"\x0b\0\0\0\x09\0\0\0\0\0\0\0\x85no"),
        (Response::Refused { later: true, why: "no".into() }, b"\x0d\0\0\0\x09\0\0\0\0\0\0\0\x87\x01\x02no"),
        (Response::ShuttingDown, b"\x09\0\0\0\x09\0\0\0\0\0\0\0\x86"),
    ];
    for (response, golden) in responses {
        let mut out = BytesMut::new();
        response.encode_to(9, &mut out);
        assert_eq!(&out[..], golden, "{response:?}");
        let [frame] = &frames(golden)[..] else { panic!("one frame expected") };
        assert_eq!((frame.id, frame.clone().into_response()), (9, Ok(response)));
        assert!(frame.clone().into_request().is_err());
    }
}

#[test]
fn many_frames_come_out_of_one_read() {
    let mut out = BytesMut::new();
    for id in 0..100 {
        Request::Status { group: GroupId(id) }.encode_to(id, &mut out).unwrap();
    }
    let mut reader = FrameReader::new(64);
    reader.push(&out);
    for id in 0..100 {
        let frame = reader.next_frame().unwrap().unwrap();
        assert_eq!((frame.id, frame.into_request().unwrap()), (id, Request::Status { group: GroupId(id) }));
    }
    assert_eq!(reader.next_frame(), Ok(None));
}

#[test]
fn bad_lengths_are_refused_before_anything_is_allocated() {
    let mut reader = FrameReader::new(1000);
    reader.push(&1001u32.to_le_bytes());
    assert_eq!(reader.next_frame(), Err(FrameError::TooLong { length: 1001, limit: 1000 }));
    let mut reader = FrameReader::new(1000);
    reader.push(&1000u32.to_le_bytes());
    assert_eq!(reader.next_frame(), Ok(None));
    assert!(reader.buf.capacity() < 1000, "claimed, not received");
    let mut reader = FrameReader::new(1000);
    reader.push(&8u32.to_le_bytes());
    assert_eq!(reader.next_frame(), Err(FrameError::TooShort(0)));
}

#[test]
fn bad_bodies_are_refused() {
    let frame = |kind, body: &'static [u8]| Frame { id: 1, kind, body: Bytes::from_static(body) };
    assert_eq!(frame(WRITE, b"short").into_request(), Err(FrameError::TooShort(WRITE)));
    assert_eq!(frame(READ, b"\x01\0\0\0\0\0\0\0").into_request(), Err(FrameError::TooShort(READ)));
    assert_eq!(frame(READ, b"\x01\0\0\0\0\0\0\0\x03").into_request(), Err(FrameError::Body(READ)));
    assert_eq!(frame(STATUS, b"\x01\0\0\0\0\0\0\0x").into_request(), Err(FrameError::Body(STATUS)));
    assert_eq!(frame(TRANSFER, b"\x01\0\0\0\0\0\0\0").into_request(), Err(FrameError::TooShort(TRANSFER)));
    assert_eq!(frame(MEMBER, b"\x01\0\0\0\0\0\0\0\x01").into_request(), Err(FrameError::Body(MEMBER)));
    assert_eq!(frame(7, b"\x01\0\0\0\0\0\0\0").into_request(), Err(FrameError::Kind(7)));
    assert_eq!(frame(NOT_LEADER, b"\x02").into_response(), Err(FrameError::Body(NOT_LEADER)));
    for body in [b"".as_slice(), b"\x01\0\0", b"\x01\0\0\0\0"] {
        assert_eq!(frame(BUSY, body).into_response(), Err(FrameError::Body(BUSY)));
    }
    assert_eq!(frame(UNKNOWN, b"x").into_response(), Err(FrameError::Body(UNKNOWN)));
    assert_eq!(frame(200, b"").into_response(), Err(FrameError::Kind(200)));
}

#[test]
fn a_hint_is_rounded_up_and_never_wraps() {
    for (hint, read) in [(0, 0), (1, 1), (1_000_000, 1), (1_000_001, 2), (u64::MAX, u64::from(u32::MAX))] {
        let mut out = BytesMut::new();
        let error = RequestError::Busy { retry_after: Duration::from_nanos(hint) };
        Response::from_error(&error, |_| None).encode_to(9, &mut out);
        let retry_after = Duration::from_millis(read);
        assert_eq!(frames(&out)[0].clone().into_response(), Ok(Response::Busy { retry_after }), "{hint} ns");
    }
}

/// Whoever adds a node tries again then, and tells the operator otherwise.
#[test]
fn a_change_that_only_has_to_wait_is_refused_as_such() {
    let refused = |error| match Response::from_error(&RequestError::Change(error), |_| None) {
        Response::Refused { later, why } => (later, why.contains("retry later")),
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(refused(ChangeError::Transferring { to: NodeId(2) }), (true, true));
    assert_eq!(refused(ChangeError::TooEarly), (true, true));
    assert_eq!(refused(ChangeError::QuorumAtRisk { heard: 1, voters: 3 }), (true, false));
    assert_eq!(refused(ChangeError::Unknown(NodeId(2))), (false, false));
    assert_eq!(refused(ChangeError::NotIntroduced(NodeId(2))), (false, false));
    assert_eq!(refused(ChangeError::NoWayBack { known: 1, voters: 2 }), (true, false));
    assert_eq!(refused(ChangeError::NothingChanges), (false, false));
}

/// Any bytes at all: an error or a wait for more, never a panic.
#[test]
fn garbage_does_no_harm() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..20_000 {
        let mut bytes = Vec::new();
        for _ in 0..seed % 40 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.push((seed >> 33) as u8);
        }
        seed = seed.wrapping_add(1);
        // Half of them with a plausible length, so that the bodies are reached.
        if seed & 1 == 0 && bytes.len() >= FRAME_HEADER {
            let length = bytes.len() as u32 - 4;
            bytes[..4].copy_from_slice(&length.to_le_bytes());
        }
        let mut reader = FrameReader::new(4096);
        reader.push(&bytes);
        while let Ok(Some(frame)) = reader.next_frame() {
            let _ = frame.clone().into_request();
            let _ = frame.into_response();
        }
    }
}
