//! Writing full buffers to the database, on a thread of its own.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};

use raft_core::{GroupId, LogId};
use rocksdb::{DB, WriteBatch};

use super::buffer::Buffer;
use super::open::KvError;
use super::store::{applied_entry, data_key, session_key, stored_value, write_options};

/// A buffer that takes no more changes, and the last entry that it contains.
pub(super) struct Full {
    pub(super) space: GroupId,
    pub(super) buffer: Arc<Buffer>,
    pub(super) applied: LogId,
}

/// Hands full buffers to the thread that writes them, one at a time. The thread ends when one cannot be written: a later one
/// must not be, since its applied index would tell of changes that are missing.
pub(super) struct Flusher {
    dir: PathBuf,
    /// `None` once it is being stopped.
    queue: Option<Sender<Full>>,
    done: Receiver<Result<(), KvError>>,
    /// Why the thread has ended: whoever asks later than the first is told the same.
    failure: Arc<OnceLock<String>>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub(super) fn start(db: Arc<DB>, dir: PathBuf) -> std::io::Result<Self> {
        let (queue, full) = channel::<Full>();
        let (report, done) = channel();
        let failure = Arc::new(OnceLock::new());
        let (place, remember) = (dir.clone(), failure.clone());
        let thread = Builder::new().name("kv-flusher".into()).spawn(move || {
            for full in full {
                let result = write(&db, &full).map_err(|source| {
                    remember.get_or_init(|| source.to_string());
                    KvError::Database { dir: place.clone(), doing: "flushing", source }
                });
                let failed = result.is_err();
                if report.send(result).is_err() || failed {
                    return;
                }
            }
        })?;
        Ok(Flusher { dir, queue: Some(queue), done, failure, thread: Some(thread) })
    }

    pub(super) fn begin(&self, full: Full) {
        // If the thread is gone, `poll` and `wait` say so.
        let _ = self.queue.as_ref().map(|queue| queue.send(full));
    }

    /// The outcome of the flush that was begun, if there is one yet.
    pub(super) fn poll(&self) -> Option<Result<(), KvError>> {
        match self.done.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(self.gone())),
        }
    }

    /// Waits for the outcome of the flush that was begun.
    pub(super) fn wait(&self) -> Result<(), KvError> {
        self.done.recv().unwrap_or_else(|_| Err(self.gone()))
    }

    fn gone(&self) -> KvError {
        let why = self.failure.get().map_or("its thread has ended", String::as_str);
        KvError::FlushFailed { dir: self.dir.clone(), why: why.to_owned() }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // Its panic was noticed by whoever waited for it.
            let _ = thread.join();
        }
    }
}

/// One batch with the changes, the sessions and the applied index, so that a crash leaves both or neither; then the flush that makes it last.
fn write(db: &DB, full: &Full) -> Result<(), rocksdb::Error> {
    let mut batch = WriteBatch::with_capacity_bytes(full.buffer.bytes());
    let (mut key, mut value) = (Vec::new(), Vec::new());
    for (name, change) in full.buffer.from(b"") {
        data_key(full.space, name, &mut key);
        match &change.value {
            Some(bytes) => {
                stored_value(change.revision, bytes, &mut value);
                batch.put(&key, &value);
            }
            None => batch.delete(&key),
        }
    }
    for (session, state) in full.buffer.sessions() {
        let key = session_key(full.space, *session);
        match state {
            Some(bytes) => batch.put(key, bytes),
            None => batch.delete(key),
        }
    }
    let (key, value) = applied_entry(full.space, full.applied);
    batch.put(key, value);
    db.write_opt(batch, &write_options())?;
    db.flush()
}
