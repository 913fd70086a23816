//! Snapshots that others send: collected in a file, checked, and announced to the core.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};

use raft_core::{GroupId, Input, NodeId, SnapshotReceived};
use raft_net::snapshot::{Refusal, SnapshotHeader, SnapshotProgress, SnapshotReceiver, SnapshotSink};

use super::directory::{Directory, remove};
use super::file::{FileHeader, FileReader, write_piece};
use super::keeper::Shelf;
use super::{SnapshotMetrics, count, lock};
use crate::background::{Breather, PIECE};
use crate::inbox::{GroupInbox, Internal};
use crate::pace::Pace;

/// Takes what the transport delivers, for all groups.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// The groups that are here, and take snapshots.
    shelves: Mutex<BTreeMap<GroupId, Shelf>>,
    /// Files that are being written to.
    busy: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Incoming {
    /// Snapshots for this group are taken from now on.
    pub(crate) fn add(&self, group: GroupId, shelf: Shelf) {
        lock(&self.shelves).insert(group, shelf);
    }

    /// And not any more; what is arriving will be refused.
    pub(crate) fn remove(&self, group: GroupId) {
        lock(&self.shelves).remove(&group);
    }
}

impl SnapshotReceiver for Incoming {
    fn begin(&self, from: NodeId, header: &SnapshotHeader) -> Result<(u64, Box<dyn SnapshotSink>), Refusal> {
        let shelf = lock(&self.shelves).get(&header.group).cloned();
        let Some(Shelf { directory: Some(directory), inbox, metrics }) = shelf else {
            return Err(format!("group {} is not here", header.group).into());
        };
        let expected = FileHeader { group: header.group, id: header.id, meta: header.meta.clone() };
        let part = directory.part(&expected);
        let mut busy = lock(&self.busy);
        if !busy.insert(part.clone()) {
            return Err("it is being received already".into());
        }
        directory.forget_parts(&busy);
        drop(busy);
        let claim = Claim { part, busy: self.busy.clone(), from, metrics };
        let progress = SnapshotProgress::of(header.size);
        let pace = directory.pace();
        let (file, offset) = match directory.whole(&expected) {
            // The last answer was lost, it seems.
            Some(stored) if stored.size == header.size => (None, header.size),
            _ => {
                let file = OpenOptions::new().create(true).truncate(false).write(true).open(&claim.part)?;
                let here = file.metadata()?.len();
                // More than there is: it cannot be a part of it.
                if here > header.size {
                    file.set_len(0)?;
                }
                (Some(file), if here > header.size { 0 } else { here })
            }
        };
        progress.reach(offset);
        lock(&claim.metrics.incoming).insert(from, progress.clone());
        tracing::info!(group = %header.group, %from, last = %header.meta.last, bytes = header.size, offset, "a snapshot arrives");
        let (directory, header) = (Arc::downgrade(&directory), header.clone());
        Ok((
            offset,
            Box::new(Sink {
                directory,
                inbox,
                header,
                expected,
                file,
                offset,
                breather: Breather::blind(pace),
                progress,
                claim,
            }),
        ))
    }
}

/// The file is ours as long as this lives.
struct Claim {
    part: PathBuf,
    busy: Arc<Mutex<BTreeSet<PathBuf>>>,
    from: NodeId,
    metrics: Arc<SnapshotMetrics>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.busy).remove(&self.part);
        lock(&self.metrics.incoming).remove(&self.from);
    }
}

struct Sink {
    /// Gone once the group is stopped.
    directory: Weak<Directory>,
    inbox: GroupInbox,
    header: SnapshotHeader,
    expected: FileHeader,
    /// `None` when all of it is here already, under its final name.
    file: Option<File>,
    offset: u64,
    breather: Breather,
    progress: Arc<SnapshotProgress>,
    claim: Claim,
}

impl SnapshotSink for Sink {
    fn write(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
        let Sink { file, offset, breather, progress, .. } = self;
        // The sender waits meanwhile.
        for piece in chunk.chunks(PIECE) {
            breather.work(piece.len(), || {
                let Some(file) = file else { return Ok(()) };
                write_piece(piece, |bit, at| file.write_all_at(bit, *offset + at))?;
                file.sync_data()
            })?;
            *offset += piece.len() as u64;
            progress.reach(*offset);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), Refusal> {
        let Sink { directory, inbox, header, expected, file, claim, .. } = *self;
        let directory = directory.upgrade().ok_or("the group has been stopped")?;
        if let Some(file) = file {
            file.sync_all()?;
            // A gigabyte, perhaps; writes go on meanwhile.
            let breather = Breather::blind(directory.pace());
            let checked = FileReader::open(&claim.part).and_then(|file| file.in_background(breather).check_rest());
            match checked {
                Ok(found) if found == expected => {}
                Ok(_) => {
                    remove(&claim.part);
                    return Err("the file is not what was announced".into());
                }
                Err(error) => {
                    // Next time all of it is sent.
                    remove(&claim.part);
                    return Err(error.into());
                }
            }
        }
        let id = directory.arrived(&claim.part, expected, header.size)?;
        count(&claim.metrics.received);
        let SnapshotHeader { term, epoch, meta, .. } = header;
        tracing::info!(group = %directory.group(), from = %claim.from, last = %meta.last, "a snapshot has arrived");
        let received = SnapshotReceived { from: claim.from, term, epoch, meta, id };
        inbox.send(Internal::Core(Input::SnapshotReceived(received)));
        Ok(())
    }
}

/// The bytes of a file that is sent. It may lose its name meanwhile.
pub(crate) struct Source {
    pub(crate) file: File,
    /// How fast it may be sent.
    pub(crate) pace: Arc<Pace>,
}

impl raft_net::snapshot::SnapshotSource for Source {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(buf, offset)?;
        // What is not handed out is not sent.
        std::thread::sleep(self.pace.rest(read as u64));
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use raft_core::{LogId, LogIndex, Membership, SnapshotMeta, Term};
    use raft_net::snapshot::SnapshotSource;
    use tokio::sync::mpsc::UnboundedReceiver;

    use super::*;
    use crate::inbox::{Inbox, Life, News};

    /// A snapshot to be sent, as bytes; and whoever receives it.
    struct Bench {
        bytes: Vec<u8>,
        header: SnapshotHeader,
        incoming: Incoming,
        receiver: Shelf,
        inbox: UnboundedReceiver<News>,
        dir: tempfile::TempDir,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| Directory::open(&dir.path().join(name), GroupId(1), Pace::new()).unwrap();
        let membership = Membership::of_voters([NodeId(1), NodeId(2)]);
        let meta = SnapshotMeta { last: LogId::new(Term(2), LogIndex(50)), membership };
        let stored = open("sender").make(meta.clone(), |file| file.write_all(&[7; 1000])).unwrap();
        let bytes = std::fs::read(&stored.path).unwrap();
        let (id, size) = (stored.header.id, bytes.len() as u64);
        let header = SnapshotHeader { group: GroupId(1), term: Term(3), epoch: 4, meta, id, size };
        let (sender, inbox) = Inbox::new();
        let sender = sender.of(Life { group: GroupId(1), number: 1 });
        let receiver = Shelf { directory: Some(Arc::new(open("receiver"))), inbox: sender, metrics: Arc::default() };
        let incoming = Incoming::default();
        incoming.add(GroupId(1), receiver.clone());
        Bench { bytes, header, incoming, receiver, inbox, dir }
    }

    fn announced(inbox: &mut UnboundedReceiver<News>) -> Option<SnapshotReceived> {
        match inbox.try_recv() {
            Ok(News::Group(_, Internal::Core(Input::SnapshotReceived(received)))) => Some(received),
            _ => None,
        }
    }

    #[test]
    fn a_transfer_that_broke_off_goes_on_where_it_was() {
        let mut bench = bench();
        let (offset, mut sink) = bench.incoming.begin(NodeId(1), &bench.header).unwrap();
        assert_eq!(offset, 0);
        assert!(bench.incoming.begin(NodeId(1), &bench.header).is_err(), "one at a time");
        sink.write(&bench.bytes[..300]).unwrap();
        assert_eq!(bench.receiver.metrics.snapshot().incoming[&NodeId(1)], (300, bench.bytes.len() as u64));
        drop(sink);
        let (offset, mut sink) = bench.incoming.begin(NodeId(1), &bench.header).unwrap();
        assert_eq!(offset, 300);
        sink.write(&bench.bytes[300..]).unwrap();
        assert!(announced(&mut bench.inbox).is_none());
        sink.finish().unwrap();
        let first = announced(&mut bench.inbox).unwrap();
        assert_eq!((first.from, first.term, first.epoch, &first.meta), (NodeId(1), Term(3), 4, &bench.header.meta));
        let directory = bench.receiver.directory.clone().unwrap();
        let path = directory.find(first.id).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), bench.bytes);
        // The last answer was lost: nothing is sent again.
        let (offset, sink) = bench.incoming.begin(NodeId(1), &bench.header).unwrap();
        assert_eq!(offset, bench.header.size);
        sink.finish().unwrap();
        assert!(announced(&mut bench.inbox).unwrap().id > first.id);
        let stats = bench.receiver.metrics.snapshot();
        assert_eq!((stats.received, stats.incoming.len()), (2, 0));
        let file = File::open(directory.newest().unwrap().path).unwrap();
        let mut source = Source { file, pace: Pace::new() };
        let mut buf = [0; 10];
        assert_eq!(
            (source.read_at(bench.header.size - 3, &mut buf).unwrap(), source.read_at(0, &mut buf).unwrap()),
            (3, 10)
        );
    }

    #[test]
    fn what_is_not_what_was_announced_is_thrown_away() {
        let mut bench = bench();
        let refuse = |bench: &mut Bench, header: &SnapshotHeader, bytes: &[u8]| {
            let (_, mut sink) = bench.incoming.begin(NodeId(1), header).unwrap();
            sink.write(bytes).unwrap();
            let reason = sink.finish().unwrap_err().to_string();
            assert!(announced(&mut bench.inbox).is_none());
            assert_eq!(bench.dir.path().join("receiver").read_dir().unwrap().count(), 0, "nothing stays");
            reason
        };
        let (good, header) = (bench.bytes.clone(), bench.header.clone());
        let mut bad = good.clone();
        bad[600] ^= 1;
        assert!(refuse(&mut bench, &header, &bad).contains("checksum"));
        assert!(refuse(&mut bench, &header, &good[..900]).contains("too early"));
        let other = SnapshotHeader { id: header.id ^ 1, ..header.clone() };
        assert!(refuse(&mut bench, &other, &good).contains("not what was announced"));
        let foreign = SnapshotHeader { group: GroupId(2), ..header.clone() };
        assert!(bench.incoming.begin(NodeId(1), &foreign).is_err());
        // Another one comes: what is left of this one makes room.
        drop(bench.incoming.begin(NodeId(1), &header).unwrap());
        drop(bench.incoming.begin(NodeId(1), &other).unwrap());
        assert_eq!(bench.dir.path().join("receiver").read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_group_that_is_stopped_takes_nothing_any_more() {
        let Bench { bytes, header, incoming, receiver, mut inbox, dir: _dir } = bench();
        let (_, mut sink) = incoming.begin(NodeId(1), &header).unwrap();
        sink.write(&bytes).unwrap();
        incoming.remove(GroupId(1));
        drop(receiver);
        assert!(incoming.begin(NodeId(1), &header).is_err());
        assert!(sink.finish().unwrap_err().to_string().contains("stopped"));
        assert!(announced(&mut inbox).is_none());
    }
}
