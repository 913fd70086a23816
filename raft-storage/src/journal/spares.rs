//! Prepares the next segment while the one before is being written, on a thread of its own: a segment that is out of use, or a new file.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::file::{SegmentFile, sync_dir};
use crate::error::StorageError;

/// What the thread is told.
enum Order {
    /// A segment of this number and size will be wanted.
    Prepare { number: u64, capacity: u64 },
    /// Nothing in it is needed any more.
    Retired(Arc<SegmentFile>),
}

/// While a segment is being filled, the disk is left alone for so many times as long as each part of it took.
const RESTS: u32 = 4;
/// But not longer: after the disk has stalled, someone may be waiting.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// How a segment is filled.
#[derive(Debug, Default)]
struct Pace {
    /// Someone waits for it: without rests.
    hurry: AtomicBool,
    /// Nobody will ever need it.
    over: AtomicBool,
}

impl Pace {
    /// A part of a segment took so long. Whether to go on.
    fn rest(&self, took: Duration) -> bool {
        if !self.hurry.load(Ordering::Relaxed) {
            std::thread::sleep(took.saturating_mul(RESTS).min(LONGEST_REST));
        }
        !self.over.load(Ordering::Relaxed)
    }
}

/// The next segment.
#[derive(Debug)]
pub(super) struct Spares {
    orders: Option<Sender<Order>>,
    ready: Receiver<Result<SegmentFile, StorageError>>,
    pace: Arc<Pace>,
    thread: Option<JoinHandle<()>>,
}

impl Spares {
    /// Keeps no more than `most` files that are out of use.
    pub(super) fn start(dir: PathBuf, most: usize) -> Result<Spares, StorageError> {
        let (orders, queue) = channel();
        let (sender, ready) = channel();
        let pace = Arc::new(Pace::default());
        let its_pace = pace.clone();
        let thread = Builder::new()
            .name("raft-segments".into())
            .spawn(move || run(&dir, most, &queue, &sender, &its_pace))
            .map_err(|error| StorageError::engine("start the thread that prepares segments", error))?;
        Ok(Spares { orders: Some(orders), ready, pace, thread: Some(thread) })
    }

    pub(super) fn prepare(&self, number: u64, capacity: u64) {
        self.order(Order::Prepare { number, capacity });
    }

    pub(super) fn retired(&self, file: Arc<SegmentFile>) {
        self.order(Order::Retired(file));
    }

    /// The segment that was asked for. Waits for it if it has to.
    ///
    /// # Errors
    /// It could not be made; or the thread is gone.
    pub(super) fn take(&self) -> Result<SegmentFile, StorageError> {
        self.pace.hurry.store(true, Ordering::Relaxed);
        let gone = || StorageError::engine("prepare a segment", "the thread that does it is gone");
        let taken = self.ready.recv().unwrap_or_else(|_| Err(gone()));
        self.pace.hurry.store(false, Ordering::Relaxed);
        taken
    }

    fn order(&self, order: Order) {
        // If it is gone, whoever takes a segment hears of it.
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.orders = None;
        self.pace.over.store(true, Ordering::Relaxed);
        self.pace.hurry.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that prepares segments panicked");
        }
    }
}

fn run(
    dir: &std::path::Path,
    most: usize,
    queue: &Receiver<Order>,
    ready: &Sender<Result<SegmentFile, StorageError>>,
    pace: &Pace,
) {
    // Used and removed in the order of their numbers, so that those on the disk follow on one another at any time.
    let mut pool: VecDeque<Arc<SegmentFile>> = VecDeque::new();
    while let Ok(order) = queue.recv() {
        match order {
            Order::Retired(file) => {
                pool.push_back(file);
                while pool.len() > most
                    && let Some(file) = pool.pop_front()
                {
                    // In order after a power failure, too. If it stays, it only takes room; the next start removes it, or uses it.
                    if let Err(error) = file.remove().and_then(|()| sync_dir(dir)) {
                        tracing::warn!(path = %file.path().display(), %error, "cannot remove a segment");
                    }
                }
            }
            Order::Prepare { number, capacity } => {
                let made = match pool.pop_front() {
                    Some(file) => file.rename(dir, number).and_then(|mut file| {
                        file.extend(capacity, |took| pace.rest(took))?;
                        Ok(file)
                    }),
                    None => SegmentFile::create(dir, number, capacity, |took| pace.rest(took)),
                };
                let made = made.map_err(|error| StorageError::engine("prepare a segment", error));
                if ready.send(made).is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::list;
    use super::*;

    #[test]
    fn what_is_out_of_use_is_used_again_or_removed() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = || list(dir.path()).unwrap().0;
        let spares = Spares::start(dir.path().to_owned(), 2).unwrap();
        for number in 1..=4 {
            spares.prepare(number, 4096);
        }
        let files: Vec<_> = (0..4).map(|_| Arc::new(spares.take().unwrap())).collect();
        assert_eq!(numbers(), [1, 2, 3, 4]);
        files[..3].iter().for_each(|file| spares.retired(file.clone()));
        spares.prepare(5, 8192);
        let next = spares.take().unwrap();
        assert_eq!((next.number, next.capacity), (5, 8192), "as large as it is to be");
        assert_eq!(numbers(), [3, 4, 5], "one was too many, the next has a new name");
        // The directory vanishes: that is told to whoever takes the next.
        drop(dir);
        spares.prepare(6, 4096);
        assert!(spares.take().is_err());
    }
}
