//! One connection to a node, usually the leader, with many requests in progress.
//!
//! This speaks the client protocol itself instead of going through `raft_node::client::Client`: nothing is repeated behind the measurement's
//! back, every answer other than "done" is seen, and a request costs neither an allocation nor a timer.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use raft_node::client::protocol::{Frame, FrameReader, Response};
use raft_node::kv::{Answer, Reply};
use tokio::sync::Notify;

use crate::lines::{Line, Loop};
use crate::meter::Meter;
use crate::workload::{Asked, Workload};

/// Longest answer that is accepted, in bytes; a put's is a few.
const MAX_ANSWER: usize = 1 << 20;
/// A request in progress.
struct Sent {
    id: u64,
    asked: Asked,
    /// When it was sent, or should have been.
    begin: Instant,
    /// Whether an open loop measures it.
    measured: bool,
}

struct State {
    out: BytesMut,
    slots: Vec<Option<Sent>>,
    free: Vec<u32>,
    sequence: u32,
    workload: Workload,
}

/// One connection.
pub(crate) struct Lane {
    connection: Connection,
    kind: Loop,
    meter: Rc<Meter>,
    stopping: Cell<bool>,
    state: RefCell<State>,
    /// Wakes the writer.
    work: Notify,
}

impl Lane {
    pub(crate) fn new(connection: Connection, kind: Loop, meter: Rc<Meter>, workload: Workload) -> Rc<Self> {
        let state = State { out: BytesMut::new(), slots: Vec::new(), free: Vec::new(), sequence: 0, workload };
        let (state, stopping) = (RefCell::new(state), Cell::new(false));
        Rc::new(Lane { connection, kind, meter, stopping, state, work: Notify::new() })
    }

    /// Carries requests out and answers in, until the connection breaks or the leader refuses: never returns `Ok`.
    pub(crate) async fn run(self: Rc<Self>) -> Result<()> {
        let (send, recv) = self.connection.open_bi().await.context("the leader takes no requests")?;
        tokio::select! {
            result = self.clone().read(recv) => result,
            result = self.write(send) => result,
        }
    }

    async fn write(&self, mut send: SendStream) -> Result<()> {
        loop {
            let bytes = self.state.borrow_mut().out.split().freeze();
            if bytes.is_empty() {
                self.work.notified().await;
            } else {
                send.write_chunk(bytes).await.context("the connection to the leader broke")?;
            }
        }
    }

    async fn read(self: Rc<Self>, mut recv: RecvStream) -> Result<()> {
        let mut reader = FrameReader::new(MAX_ANSWER);
        let mut chunks = [const { Bytes::new() }; 32];
        loop {
            let read = recv.read_chunks(&mut chunks).await.context("the connection to the leader broke")?;
            let Some(count) = read else { bail!("the leader closed the connection") };
            chunks[..count].iter_mut().for_each(|chunk| reader.push(&std::mem::take(chunk)));
            let now = Instant::now();
            let mut state = self.state.borrow_mut();
            while let Some(frame) = reader.next_frame().context("the leader sent nonsense")? {
                self.answered(&mut state, frame, now)?;
            }
            if !state.out.is_empty() {
                self.work.notify_one();
            }
        }
    }

    fn answered(self: &Rc<Self>, state: &mut State, frame: Frame, now: Instant) -> Result<()> {
        let slot = frame.id as u32;
        let sent = state.slots.get_mut(slot as usize).and_then(Option::take);
        let sent = sent.filter(|sent| sent.id == frame.id).context("the leader answered what nobody asked")?;
        state.free.push(slot);
        match frame.into_response().context("the leader sent nonsense")? {
            Response::Done(reply) => {
                match sent.asked {
                    Asked::Put => {
                        ensure!(matches!(Reply::decode(&reply)?, Reply::Written { .. }), "a put was not carried out");
                    }
                    Asked::Get => {
                        ensure!(matches!(Answer::decode(&reply)?, Answer::Value { .. }), "a value was not found");
                    }
                }
                self.meter.count();
                let measured = match self.kind {
                    Loop::Closed => self.meter.is_measuring(),
                    Loop::Open => sent.measured,
                };
                if measured {
                    self.meter.record(sent.begin, now);
                }
                if self.kind == Loop::Closed && !self.stopping.get() {
                    issue(state, now, false);
                }
            }
            Response::Busy { retry_after } => {
                self.meter.error("busy", 1);
                if self.kind == Loop::Closed {
                    tokio::task::spawn_local(self.clone().ask_again_later(retry_after, slot));
                }
            }
            Response::NotLeader { .. } => bail!("leadership was lost: the node does not lead any more"),
            Response::Unknown => bail!("leadership was lost with writes in the log"),
            other => bail!("a request was refused: {other:?}"),
        }
        Ok(())
    }

    /// After as long as the cluster says, and up to half as long again: many have been told the same, and those of one connection have slots of their own, which
    /// the multiplication by the golden ratio spreads.
    async fn ask_again_later(self: Rc<Self>, retry_after: Duration, slot: u32) {
        let spread = f64::from(slot.wrapping_mul(0x9E37_79B9)) / f64::from(u32::MAX);
        tokio::time::sleep(retry_after.mul_f64(1.0 + spread / 2.0)).await;
        if !self.stopping.get() {
            self.issue(Instant::now(), false);
        }
    }
}

impl Line for Lane {
    fn issue(&self, begin: Instant, measured: bool) {
        issue(&mut self.state.borrow_mut(), begin, measured);
        self.work.notify_one();
    }

    fn stop(&self) {
        self.stopping.set(true);
    }

    fn is_stopped(&self) -> bool {
        self.stopping.get()
    }

    fn in_progress(&self) -> usize {
        let state = self.state.borrow();
        state.slots.len() - state.free.len()
    }

    fn give_up(&self, now: Instant) -> u64 {
        let mut state = self.state.borrow_mut();
        let mut lost = 0;
        for sent in state.slots.iter_mut().filter_map(Option::take) {
            lost += 1;
            if sent.measured {
                self.meter.record(sent.begin, now);
            }
        }
        lost
    }

    /// UDP payload.
    fn bytes(&self) -> Option<(u64, u64)> {
        let stats = self.connection.stats();
        Some((stats.udp_tx.bytes, stats.udp_rx.bytes))
    }

    fn close(&self) {
        self.connection.close(VarInt::from_u32(0), b"done");
    }
}

fn issue(state: &mut State, begin: Instant, measured: bool) {
    let slot = state.free.pop().unwrap_or_else(|| {
        state.slots.push(None);
        state.slots.len() as u32 - 1
    });
    state.sequence = state.sequence.wrapping_add(1);
    let id = u64::from(state.sequence) << 32 | u64::from(slot);
    let asked = state.workload.append(id, &mut state.out);
    state.slots[slot as usize] = Some(Sent { id, asked, begin, measured });
}
