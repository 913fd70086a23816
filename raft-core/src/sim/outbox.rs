//! Ports that only keep what a driver hands out, for whoever simulates where it goes.

use crate::driver::{Job, Ports, RequestError};
use crate::io::{Event, Fetch, SendSnapshot, Write};
use crate::message::Envelope;
use crate::types::LogId;

/// What came of one or more turns of a [`Driver`](crate::driver::Driver), each field in the order in which it came.
#[derive(Debug)]
pub struct Outbox<P, R> {
    /// To be sent.
    pub messages: Vec<Envelope>,
    /// To be made durable.
    pub writes: Vec<Write>,
    /// For the state machine.
    pub jobs: Vec<Job<P, R>>,
    /// To be read back.
    pub fetches: Vec<Fetch>,
    /// Followers that need a snapshot.
    pub snapshots: Vec<SendSnapshot>,
    /// To be told.
    pub events: Vec<Event>,
    /// Commands that the state machine will not answer.
    pub failed: Vec<(P, RequestError)>,
    /// Changes of the membership that are complete, and the entries that made them so.
    pub changed: Vec<(P, LogId)>,
    /// Reads that the state machine will not answer.
    pub failed_reads: Vec<(R, RequestError)>,
}

impl<P, R> Default for Outbox<P, R> {
    fn default() -> Self {
        Outbox {
            messages: Vec::new(),
            writes: Vec::new(),
            jobs: Vec::new(),
            fetches: Vec::new(),
            snapshots: Vec::new(),
            events: Vec::new(),
            failed: Vec::new(),
            changed: Vec::new(),
            failed_reads: Vec::new(),
        }
    }
}

impl<P, R> Ports for Outbox<P, R> {
    type Proposer = P;
    type Reader = R;

    fn send(&mut self, messages: &mut Vec<Envelope>) {
        self.messages.append(messages);
    }

    fn write(&mut self, write: Write) {
        self.writes.push(write);
    }

    fn apply(&mut self, job: Job<P, R>) {
        self.jobs.push(job);
    }

    fn fetch(&mut self, fetch: Fetch) {
        self.fetches.push(fetch);
    }

    fn send_snapshot(&mut self, wanted: SendSnapshot) {
        self.snapshots.push(wanted);
    }

    fn event(&mut self, event: &Event) {
        self.events.push(event.clone());
    }

    fn fail_proposal(&mut self, proposer: P, error: RequestError) {
        self.failed.push((proposer, error));
    }

    fn changed(&mut self, proposer: P, entry: LogId) {
        self.changed.push((proposer, entry));
    }

    fn fail_read(&mut self, reader: R, error: RequestError) {
        self.failed_reads.push((reader, error));
    }
}
