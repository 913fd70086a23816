//! Groups that are deleted: what is left of them, and of the others.

use raft_core::{GroupId, LogIndex, NodeId, Write};
use raft_storage::{Acquaintance, MemoryStorage, Storage, StorageError, StorageReader};

use super::{append, open};

const GROUPS: [GroupId; 3] = [GroupId(0), GroupId(1), GroupId(2)];

fn of(group: GroupId, first: u64) -> [(GroupId, Write); 1] {
    [(group, append(first, 1, &[b"x"]).1)]
}

fn entries(storage: &impl Storage, group: GroupId) -> usize {
    storage.reader().entries(group, LogIndex(1), LogIndex::MAX, usize::MAX).unwrap().len()
}

fn is_gone(storage: &mut impl Storage) {
    assert_eq!(storage.groups(), [GROUPS[0], GROUPS[2]]);
    assert!(matches!(storage.recover(GROUPS[1]), Err(StorageError::Deleted { group: GroupId(1) })));
    assert_eq!(GROUPS.map(|group| entries(storage, group)), [2, 0, 2]);
    assert_eq!(storage.recover(GROUPS[2]).unwrap().last_index, LogIndex(2));
}

fn delete(storage: &mut impl Storage) {
    assert!(!storage.delete(GROUPS[1]).unwrap(), "there is nothing yet");
    for group in GROUPS {
        storage.write(&of(group, 1)).unwrap();
        storage.write(&of(group, 2)).unwrap();
    }
    assert!(storage.delete(GROUPS[1]).unwrap());
    is_gone(storage);
    assert!(storage.delete(GROUPS[1]).unwrap(), "it is done");
    is_gone(storage);
}

#[test]
fn what_is_deleted_in_memory_stays_so() {
    let mut storage = MemoryStorage::new();
    delete(&mut storage);
    storage.crash(0);
    is_gone(&mut storage);
    assert!(matches!(storage.write(&of(GROUPS[1], 1)), Err(StorageError::BadWrite { .. })));
}

#[test]
fn what_is_deleted_stays_so_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path()).unwrap();
    storage.pin_founders(GROUPS[2], &[NodeId(1)]).unwrap();
    assert_eq!(storage.known_peers(GroupId::FIRST).unwrap().meet(NodeId(2), 7).unwrap(), Acquaintance::Known);
    delete(&mut storage);
    for _ in 0..2 {
        drop(storage);
        storage = open(dir.path()).unwrap();
        is_gone(&mut storage);
        assert!(matches!(storage.pin_founders(GROUPS[1], &[NodeId(1)]), Err(StorageError::Deleted { .. })));
        assert_eq!(storage.founders(GROUPS[2]).unwrap(), Some(vec![NodeId(1)]));
        assert_eq!(storage.known_peers(GroupId::FIRST).unwrap().meet(NodeId(2), 8).unwrap(), Acquaintance::Other);
    }
    storage.write(&of(GROUPS[0], 3)).unwrap();
    assert!(matches!(storage.write(&of(GROUPS[1], 1)), Err(StorageError::BadWrite { .. })));
}

/// Its log had begun anew after a snapshot, or had lost its beginning.
#[test]
fn where_a_deleted_log_began_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path()).unwrap();
    storage.write(&of(GROUPS[1], 1)).unwrap();
    let membership = raft_core::Membership::of_voters([NodeId(1)]);
    let last = raft_core::LogId::new(raft_core::Term(1), LogIndex(9));
    let [(group, mut write)] = of(GROUPS[1], 10);
    write.log_start = Some(raft_core::SnapshotMeta { last, membership });
    storage.write(&[(group, write)]).unwrap();
    assert!(storage.delete(GROUPS[1]).unwrap());
    drop(storage);
    let mut storage = open(dir.path()).unwrap();
    assert!(matches!(storage.recover(GROUPS[1]), Err(StorageError::Deleted { .. })));
    assert_eq!((storage.groups().count(), entries(&storage, GROUPS[1])), (0, 0));
}
