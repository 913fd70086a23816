//! Lab 3's key-value service: what the servers' state machines do, and what the history of a key must look like.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::entries::{EntryKind, EntryRef};
use crate::sim::cluster::Applier;
use crate::sim::disk::Disk;
use crate::sim::lab::Snapshots;
use crate::sim::linearizability::Model;
use crate::sim::task::Failure;
use crate::types::LogIndex;

/// What a clerk wants done with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Get,
    Put(String),
    Append(String),
}

/// An operation, with what tells it from all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) clerk: u64,
    /// Counts the operations of the clerk, which waits for each before it begins the next.
    pub(super) serial: u64,
    pub(super) key: String,
    pub(super) op: Op,
}

impl Request {
    /// As a command in the log: `clerk u32, serial u32, kind u8, length of the key u8, key, value`.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, value) = match &self.op {
            Op::Get => (0, ""),
            Op::Put(value) => (1, value.as_str()),
            Op::Append(value) => (2, value.as_str()),
        };
        let mut bytes = Vec::with_capacity(10 + self.key.len() + value.len());
        bytes.extend((self.clerk as u32).to_be_bytes());
        bytes.extend((self.serial as u32).to_be_bytes());
        bytes.extend([kind, self.key.len() as u8]);
        bytes.extend(self.key.as_bytes());
        bytes.extend(value.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Request> {
        let (clerk, rest) = bytes.split_first_chunk::<4>()?;
        let (serial, rest) = rest.split_first_chunk::<4>()?;
        let (&[kind, length], rest) = rest.split_first_chunk::<2>()?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let (key, value) = (text(rest.get(..usize::from(length))?)?, text(rest.get(usize::from(length)..)?)?);
        let op = match kind {
            0 => Op::Get,
            1 => Op::Put(value),
            2 => Op::Append(value),
            _ => return None,
        };
        let (clerk, serial) = (u32::from_be_bytes(*clerk).into(), u32::from_be_bytes(*serial).into());
        Some(Request { clerk, serial, key, op })
    }
}

/// The state machine of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    data: BTreeMap<String, String>,
    /// Each clerk's newest operation, and what came of it: a copy that comes later is answered the same, and does nothing.
    newest: BTreeMap<u64, (u64, String)>,
    pub(super) applied: u64,
    /// Whether it came out of a snapshot.
    pub(super) restored: bool,
    /// Whose operation is at which index. Not part of the replicated state: for those who wait at this server.
    at: BTreeMap<u64, (u64, u64)>,
}

impl Machine {
    fn apply(&mut self, index: u64, request: &Request) {
        self.at.insert(index, (request.clerk, request.serial));
        if self.newest.get(&request.clerk).is_some_and(|(serial, _)| *serial >= request.serial) {
            return;
        }
        let found = match &request.op {
            Op::Get => self.data.get(&request.key).cloned().unwrap_or_default(),
            Op::Put(value) => {
                self.data.insert(request.key.clone(), value.clone());
                String::new()
            }
            Op::Append(value) => {
                self.data.entry(request.key.clone()).or_default().push_str(value);
                String::new()
            }
        };
        self.newest.insert(request.clerk, (request.serial, found));
    }

    /// As a snapshot: the number of keys, each with its value; then, to the end, each clerk with its newest operation and what came of it.
    fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u32(self.data.len() as u32);
        for (key, value) in &self.data {
            put_text(&mut bytes, key);
            put_text(&mut bytes, value);
        }
        for (clerk, (serial, found)) in &self.newest {
            bytes.put_u32(*clerk as u32);
            bytes.put_u32(*serial as u32);
            put_text(&mut bytes, found);
        }
        bytes.freeze()
    }

    /// The machine as of the entry at `applied`; `None` if this is no snapshot.
    fn decode(applied: u64, mut bytes: &[u8]) -> Option<Machine> {
        let mut machine = Machine { applied, restored: true, ..Machine::default() };
        for _ in 0..bytes.try_get_u32().ok()? {
            let key = take_text(&mut bytes)?;
            machine.data.insert(key, take_text(&mut bytes)?);
        }
        while bytes.has_remaining() {
            let (clerk, serial) = (bytes.try_get_u32().ok()?.into(), bytes.try_get_u32().ok()?.into());
            machine.newest.insert(clerk, (serial, take_text(&mut bytes)?));
        }
        Some(machine)
    }

    /// What came of this very operation, if it was applied.
    pub(super) fn outcome(&self, request: &Request) -> Option<String> {
        let (serial, found) = self.newest.get(&request.clerk)?;
        (*serial == request.serial).then(|| found.clone())
    }

    /// Whether this operation is the one at `index`.
    pub(super) fn holds(&self, index: u64, request: &Request) -> bool {
        self.at.get(&index) == Some(&(request.clerk, request.serial))
    }
}

fn put_text(bytes: &mut BytesMut, text: &str) {
    bytes.put_u32(text.len() as u32);
    bytes.put_slice(text.as_bytes());
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    let len = bytes.try_get_u32().ok()?;
    String::from_utf8(bytes.split_off(..len as usize)?.to_vec()).ok()
}

/// The state machines of all servers.
#[derive(Clone)]
pub(in crate::sim::lab) struct Service {
    snapshots: Snapshots,
    machines: Rc<RefCell<Vec<Machine>>>,
    /// Size in bytes of the largest snapshot that any server has kept; 0 if there was none.
    largest: Rc<Cell<usize>>,
}

impl Service {
    pub(in crate::sim::lab) fn new(servers: usize, snapshots: Snapshots) -> Self {
        let machines = Rc::new(RefCell::new(vec![Machine::default(); servers]));
        Service { snapshots, machines, largest: Rc::default() }
    }

    /// Looks at the machine of one server.
    pub(super) fn look<T>(&self, server: usize, look: impl FnOnce(&Machine) -> T) -> T {
        look(&self.machines.borrow()[server])
    }

    pub(in crate::sim::lab) fn highest(&self) -> u64 {
        self.machines.borrow().iter().map(|machine| machine.applied).max().unwrap_or(0)
    }

    pub(super) fn snapshots(&self) -> Snapshots {
        self.snapshots
    }

    pub(super) fn largest_snapshot(&self) -> usize {
        self.largest.get()
    }

    /// Whether a server that has applied `index` keeps a snapshot. While its log has yet to hear of the last one, another would not make it shorter.
    fn is_time(&self, index: LogIndex, disk: &Disk) -> bool {
        match self.snapshots {
            Snapshots::Never => false,
            Snapshots::EveryTenth => (index.0 + 1).is_multiple_of(10),
            Snapshots::Beyond(bytes) => {
                let log = disk.durable();
                let told = disk.saved().is_none_or(|saved| saved.meta.last.index <= log.start().index);
                told && log.byte_len() > bytes
            }
        }
    }
}

impl Applier for Service {
    fn start(&mut self, server: usize) {
        self.machines.borrow_mut()[server] = Machine::default();
    }

    fn snapshot(&mut self, server: usize, index: LogIndex, disk: &Disk) -> Option<Bytes> {
        let state = self.is_time(index, disk).then(|| self.machines.borrow()[server].encode())?;
        self.largest.set(self.largest.get().max(state.len()));
        Some(state)
    }

    fn restore(&mut self, server: usize, index: LogIndex, state: &[u8]) -> Result<(), Failure> {
        let machine = &mut self.machines.borrow_mut()[server];
        let restored = Machine::decode(index.0, state).ok_or_else(|| format!("no snapshot: {state:?}"))?;
        if index.0 <= machine.applied {
            return Err(format!("n{} goes back from {} to a snapshot up to {index}", server + 1, machine.applied));
        }
        *machine = restored;
        Ok(())
    }

    fn apply(&mut self, server: usize, entry: &EntryRef<'_>) -> Result<(), Failure> {
        let machine = &mut self.machines.borrow_mut()[server];
        let index = entry.index.0;
        if index != machine.applied + 1 {
            return Err(format!("n{} applies {index} after {}", server + 1, machine.applied));
        }
        machine.applied = index;
        if entry.kind == EntryKind::Command {
            let request = Request::decode(entry.payload).ok_or_else(|| format!("{entry:?} is no operation"))?;
            machine.apply(index, &request);
        }
        Ok(())
    }
}

/// A key that is put and appended to.
pub(super) struct Text;

impl Model for Text {
    type State = String;
    /// What was wanted, and for a get, what was found.
    type Action = (Op, String);

    fn after(state: &String, (op, found): &(Op, String)) -> Option<String> {
        match op {
            Op::Get => (state == found).then(|| state.clone()),
            Op::Put(value) => Some(value.clone()),
            Op::Append(value) => Some([state.as_str(), value].concat()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::linearizability::{Timed, Verdict, check_model};
    use crate::types::Instant;

    fn request(clerk: u64, serial: u64, op: Op) -> Request {
        Request { clerk, serial, key: "k".into(), op }
    }

    #[test]
    fn a_copy_of_an_operation_does_nothing() {
        let mut machine = Machine::default();
        let append = |serial| request(1, serial, Op::Append("x".into()));
        machine.apply(1, &append(1));
        machine.apply(2, &append(1));
        machine.apply(3, &append(2));
        machine.apply(4, &append(1));
        let get = request(2, 1, Op::Get);
        machine.apply(5, &get);
        assert_eq!(machine.outcome(&get), Some("xx".into()));
        assert!(machine.holds(4, &append(1)) && !machine.holds(4, &append(2)) && machine.outcome(&append(1)).is_none());
    }

    /// Else a write whose reply was lost would be done again by who took over a snapshot.
    #[test]
    fn a_snapshot_remembers_what_was_done_for_whom() {
        let mut machine = Machine::default();
        machine.apply(1, &request(1, 1, Op::Put("a".into())));
        machine.apply(2, &request(2, 7, Op::Get));
        machine.applied = 2;
        let bytes = machine.encode();
        let mut other = Machine::decode(2, &bytes).unwrap();
        other.apply(3, &request(1, 1, Op::Put("b".into())));
        assert_eq!((&other.data, &other.newest, other.applied), (&machine.data, &machine.newest, 2));
        assert_eq!(other.outcome(&request(2, 7, Op::Get)), Some("a".into()));
        for cut in (0..bytes.len()).filter(|cut| ![14, 26].contains(cut)) {
            assert_eq!(Machine::decode(2, &bytes[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn requests_survive_the_log() {
        for op in [Op::Get, Op::Put("a b".into()), Op::Append(String::new())] {
            let request = request(7, 300, op);
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        assert_eq!(Request::decode(b"short"), None);
    }

    #[test]
    fn wrong_histories_of_a_text_are_found() {
        let timed = |op: Op, found: &str, from, to| Timed {
            action: (op, found.to_owned()),
            invoked: Instant(from),
            returned: Some(Instant(to)),
        };
        let (put, append) = (|| Op::Put("a".into()), || Op::Append("b".into()));
        let right = [timed(put(), "", 0, 5), timed(append(), "", 1, 4), timed(Op::Get, "ab", 6, 7)];
        assert_eq!(check_model::<Text>(&right, 1000), Verdict::Linearizable);
        for (found, from, to) in [("abb", 6, 7), ("ba", 6, 7), ("", 6, 7), ("b", 6, 7)] {
            let wrong = [right[0].clone(), right[1].clone(), timed(Op::Get, found, from, to)];
            assert!(matches!(check_model::<Text>(&wrong, 1000), Verdict::Violation { .. }), "{found}");
        }
    }
}
