//! The wire format, byte for byte. A change here is a change of protocol: it needs a new ALPN token. Regenerate with
//! `RAFT_NET_BLESS=1 cargo test -p raft-net golden`.

use std::fmt::Write;
use std::path::Path;

use bytes::Bytes;
use raft_core::{
    AppendAck, AppendEntries, AppendReject, Entries, EntryKind, Envelope, GroupId, Heartbeat, HeartbeatReply, LogId,
    LogIndex, Message, NodeId, Quiesce, ReadIndex, ReadIndexReply, Segment, Term, TimeoutNow, VoteReply, VoteRequest,
};
use raft_net::{Channel, Decoded, Decoder, FrameSink, Preface, decode, encode, encode_preface};

fn id(term: u64, index: u64) -> LogId {
    LogId::new(Term(term), LogIndex(index))
}

fn entries() -> Entries {
    let mut entries = Entries::from(Segment::pack(LogIndex(301), Term(6), EntryKind::NoOp, &[b""]).unwrap());
    let commands = Segment::pack(LogIndex(302), Term(7), EntryKind::Command, &[&b"put x 1"[..], &[0xff; 20]]).unwrap();
    entries.push(commands).unwrap();
    entries
}

fn samples() -> Vec<(&'static str, Decoded)> {
    let message = |body| {
        Decoded::Message(
            GroupId(0x0102_0304_0506_0708),
            Envelope { from: NodeId(1), to: NodeId(300), term: Term(7), body },
        )
    };
    let append = |entries| {
        let (prev_log, leader_commit) = (id(6, 300), LogIndex(299));
        Message::AppendEntries(AppendEntries { epoch: 3, seq: 1000, prev_log, leader_commit, entries })
    };
    let reject = AppendReject {
        epoch: 3,
        seq: 1000,
        last_index: LogIndex(290),
        commit_index: LogIndex(280),
        runs: vec![id(2, 1), id(5, 200), id(6, 290)],
    };
    let (received, match_index) = (LogIndex(300), LogIndex(299));
    let reply = HeartbeatReply { epoch: 3, round: 41, received, match_index, promise_ms: 400, priority: 2, vigil: 129 };
    let preface =
        |channel| Decoded::Preface(Preface { channel, from: NodeId(1), to: NodeId(300), incarnation: 1 << 100 });
    vec![
        ("preface_control", preface(Channel::Control)),
        ("preface_append", preface(Channel::Append)),
        ("pre_vote", message(Message::PreVote(VoteRequest { last_log: id(6, 300), transfer: false }))),
        ("pre_vote_reply", message(Message::PreVoteReply(VoteReply { election: Term(8), granted: true }))),
        ("request_vote", message(Message::RequestVote(VoteRequest { last_log: id(6, 300), transfer: false }))),
        ("request_vote_transfer", message(Message::RequestVote(VoteRequest { last_log: id(6, 300), transfer: true }))),
        ("request_vote_reply", message(Message::RequestVoteReply(VoteReply { election: Term(7), granted: false }))),
        ("append_entries", message(append(entries()))),
        ("append_entries_probe", message(append(Entries::new()))),
        ("append_ack", message(Message::AppendAck(AppendAck { epoch: 3, match_index: LogIndex(u64::MAX) }))),
        ("append_reject", message(Message::AppendReject(reject))),
        ("heartbeat", message(Message::Heartbeat(Heartbeat { epoch: 3, commit: LogIndex(299), round: Some(41) }))),
        ("heartbeat_silent", message(Message::Heartbeat(Heartbeat { epoch: 3, commit: LogIndex(299), round: None }))),
        ("heartbeat_reply", message(Message::HeartbeatReply(reply))),
        ("timeout_now", message(Message::TimeoutNow(TimeoutNow { last_log: id(6, 300) }))),
        ("quiesce", message(Message::Quiesce(Quiesce { last: id(7, 303), vigil: 129 }))),
        ("read_index", message(Message::ReadIndex(ReadIndex { id: 77 }))),
        ("read_index_reply", message(Message::ReadIndexReply(ReadIndexReply { id: 77, index: LogIndex(299) }))),
    ]
}

fn encoded(sample: &Decoded) -> Vec<u8> {
    let mut sink = FrameSink::new();
    match sample {
        Decoded::Preface(preface) => encode_preface(*preface, &mut sink),
        Decoded::Message(group, envelope) => {
            encode(envelope, *group, usize::MAX, &mut sink).unwrap();
        }
    }
    let mut chunks: Vec<Bytes> = Vec::new();
    sink.take_into(&mut chunks);
    chunks.concat()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.chunks(16).fold(String::new(), |mut text, line| {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
        text
    })
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn golden_files_hold_every_message() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let bless = std::env::var_os("RAFT_NET_BLESS").is_some();
    for (name, sample) in samples() {
        let path = dir.join(format!("{name}.hex"));
        let bytes = encoded(&sample);
        if bless {
            std::fs::write(&path, to_hex(&bytes)).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(to_hex(&bytes), golden, "{name}: the wire format has changed");

        let mut decoder = Decoder::new(10_000);
        decoder.push(from_hex(&golden).into());
        let frame = decoder.next_frame().unwrap().expect("one whole frame");
        assert!(!decoder.is_mid_frame());
        assert_eq!(decode(&frame), Ok(sample), "{name}");
    }
    let files = std::fs::read_dir(&dir).unwrap().count();
    assert_eq!(files, samples().len(), "a golden file without a message, or the other way round");
}
