//! What the key-value store reads from its log and from clients, and what clients read of it.

use bytes::BytesMut;

use crate::kv::{Answer, Command, MAX_KEY_BYTES, MAX_VALUE_BYTES, Query, Refusal, Reply};

/// What is decoded, encoded and decoded again is the same; keys and values are slices of the bytes that were read; and the limits hold
/// for what [`Command::check`] lets pass.
pub fn commands(data: &[u8]) -> bool {
    // The first byte chooses, so that each kind has inputs of its own.
    let Some((&kind, bytes)) = data.split_first() else { return false };
    match kind % 4 {
        0 => command(bytes),
        1 => query(bytes),
        2 => reply(bytes),
        _ => answer(bytes),
    }
}

fn command(bytes: &[u8]) -> bool {
    let Ok(command) = Command::decode(bytes) else { return false };
    let again = command.encode();
    assert!(again.len() <= bytes.len(), "longer than what was read");
    assert_eq!(Command::decode(&again), Ok(command));
    let about = match command {
        Command::InSession { command, .. } => Command::decode_inner(command).unwrap_or(Command::Register),
        other => other,
    };
    let Some((key, value)) = about.key_and_value() else {
        assert!(matches!(command.check(0), Ok(()) | Err(Refusal::Malformed)));
        return true;
    };
    for part in [key, value] {
        assert!(part.is_empty() || bytes.as_ptr_range().contains(&part.as_ptr()), "a copy of a key or a value");
    }
    for limit in [0, 3, MAX_VALUE_BYTES, usize::MAX] {
        let (key, value) = (key.len(), value.len());
        match command.check(limit) {
            Ok(()) => assert!(key > 0 && key <= MAX_KEY_BYTES && value <= limit && value <= MAX_VALUE_BYTES),
            Err(Refusal::EmptyKey) => assert_eq!(key, 0),
            Err(Refusal::KeyTooLong { size, .. }) => assert!(size == key as u64 && key > MAX_KEY_BYTES),
            Err(Refusal::ValueTooLong { size, .. }) => {
                assert!(size == value as u64 && (value > limit || value > MAX_VALUE_BYTES));
            }
            Err(other) => panic!("it was decoded, and is not carried out here: {other}"),
        }
    }
    true
}

fn query(bytes: &[u8]) -> bool {
    let Ok(query) = Query::decode(bytes) else { return false };
    let again = query.encode();
    assert!(again.len() <= bytes.len(), "longer than what was read");
    assert_eq!(Query::decode(&again), Ok(query));
    true
}

fn reply(bytes: &[u8]) -> bool {
    let Ok(reply) = Reply::decode(bytes) else { return false };
    let mut again = BytesMut::new();
    reply.encode_to(&mut again);
    assert!(again.len() <= bytes.len(), "longer than what was read");
    assert_eq!(Reply::decode(&again), Ok(reply));
    true
}

fn answer(bytes: &[u8]) -> bool {
    let Ok(answer) = Answer::decode(bytes) else { return false };
    let mut again = BytesMut::new();
    answer.encode_to(&mut again);
    assert!(again.len() <= bytes.len(), "longer than what was read");
    assert_eq!(Answer::decode(&again).as_ref(), Ok(&answer));
    true
}
