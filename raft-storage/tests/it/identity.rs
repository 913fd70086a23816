//! Whose directory is it? `open` answers before it touches anything.

use std::fs;

use raft_core::{GroupId, LogIndex, NodeId};
use raft_storage::{Acquaintance, Identity, Options, RocksStorage, Storage, StorageError};
use rocksdb::DB;

use super::{GROUP, append, open};

#[test]
fn a_new_directory_gets_an_incarnation_for_life() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("not/yet/there");
    let first = open(&dir).unwrap().incarnation();
    assert_eq!(open(&dir).unwrap().incarnation(), first);
    assert_ne!(open(&tmp.path().join("other")).unwrap().incarnation(), first);
}

#[test]
fn another_cluster_or_node_is_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap().write(&[append(1, 1, &[b"a"])]).unwrap();
    let open_as = |cluster: &str, node| {
        RocksStorage::open(dir.path(), &Identity::new(cluster, NodeId(node)), &Options::default()).unwrap_err()
    };
    let error = open_as("prod", 1);
    assert!(matches!(error, StorageError::WrongCluster { .. }), "{error}");
    assert!(error.to_string().ends_with("belongs to cluster `test`, not to `prod`"), "{error}");
    let error = open_as("test", 2);
    assert!(matches!(error, StorageError::WrongNode { .. }), "{error}");
    assert!(error.to_string().ends_with("belongs to node 1, not to node 2"), "{error}");
    assert!(matches!(open_as("", 1), StorageError::BadClusterName(0)));
    assert_eq!(open(dir.path()).unwrap().recover(GROUP).unwrap().last_index, LogIndex(1));
}

#[test]
fn a_directory_in_use_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StorageError::InUse { .. }), "{error}");
    let reader = first.reader();
    drop(first);
    assert!(matches!(open(dir.path()), Err(StorageError::InUse { .. })), "a reader keeps it open");
    drop(reader);
    open(dir.path()).unwrap();
}

#[test]
fn something_else_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "dear").unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StorageError::NotALog { .. }), "{error}");
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let file = dir.path().join("thesis.tex");
    assert!(matches!(open(&file), Err(StorageError::Engine { .. })), "a file is no directory");
}

#[test]
fn a_foreign_database_is_not_claimed() {
    let dir = tempfile::tempdir().unwrap();
    DB::open_default(dir.path()).unwrap().put(b"their", b"data").unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StorageError::NotALog { .. }), "{error}");
    assert_eq!(DB::open_default(dir.path()).unwrap().get(b"their").unwrap().unwrap(), b"data");

    let dir = tempfile::tempdir().unwrap();
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    drop(DB::open_cf(&options, dir.path(), ["users"]).unwrap());
    assert!(open(dir.path()).unwrap_err().to_string().contains("column family `users`"));
}

#[test]
fn an_interrupted_creation_is_finished() {
    // Killed after RocksDB made its database, and before it was ours.
    let dir = tempfile::tempdir().unwrap();
    drop(DB::open_default(dir.path()).unwrap());
    open(dir.path()).unwrap();
    // Killed before RocksDB had made its database.
    let dir = tempfile::tempdir().unwrap();
    for name in ["LOCK", "LOG", "IDENTITY", "MANIFEST-000001", "000001.dbtmp"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    open(dir.path()).unwrap();
}

#[test]
fn a_log_that_lost_its_identity_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap().write(&[append(1, 1, &[b"a"])]).unwrap();
    fs::remove_file(dir.path().join("CURRENT")).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("no file CURRENT"), "{error}");
}

/// Two nodes that start from different voters could each find a majority of its own.
#[test]
fn the_founders_of_a_group_cannot_be_exchanged() {
    let dir = tempfile::tempdir().unwrap();
    let open = || RocksStorage::open(dir.path(), &Identity::new("c", NodeId(1)), &Options::default()).unwrap();
    let three = [1, 2, 3].map(NodeId);
    open().pin_founders(GroupId::FIRST, &three).unwrap();
    let mut again = open();
    again.pin_founders(GroupId::FIRST, &three).unwrap();
    let error = again.pin_founders(GroupId::FIRST, &three[..1]).unwrap_err();
    assert!(matches!(error, StorageError::WrongFounders { .. }), "{error}");
    assert!(
        error
            .to_string()
            .ends_with("began with the voters 1, 2, 3, not with 1: voters cannot be changed by starting with others")
    );
    // Another group of the node has founders of its own, and a refusal leaves everything as it was.
    again.pin_founders(GroupId(2), &three[..1]).unwrap();
    drop(again);
    open().pin_founders(GroupId::FIRST, &three).unwrap();
}

/// The first incarnation that is seen of a node is the only one from then on, until the node has been removed.
#[test]
fn peers_are_known_by_their_first_incarnation() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path()).unwrap();
    let peers = storage.known_peers(GROUP).unwrap();
    assert_eq!(peers.meet(NodeId(2), 22).unwrap(), Acquaintance::Known);
    assert_eq!(peers.meet(NodeId(2), 22).unwrap(), Acquaintance::Known);
    assert_eq!(peers.clone().meet(NodeId(2), 23).unwrap(), Acquaintance::Other);
    assert_eq!(peers.meet(NodeId(3), 33).unwrap(), Acquaintance::Known);
    drop(storage);
    assert!(peers.meet(NodeId(4), 44).is_err(), "it cannot be written down");
    let storage = open(dir.path()).unwrap();
    let peers = storage.known_peers(GROUP).unwrap();
    assert_eq!(peers.meet(NodeId(2), 23).unwrap(), Acquaintance::Other, "after a restart, too");
    peers.retain(&[NodeId(1), NodeId(3)]).unwrap();
    assert_eq!(peers.meet(NodeId(2), 23).unwrap(), Acquaintance::Known, "it has been removed and is another now");
    assert_eq!(peers.meet(NodeId(3), 34).unwrap(), Acquaintance::Other);
}
