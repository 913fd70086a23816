//! Verifies a whole database when it is opened, and collects what recovery needs.

use std::collections::BTreeMap;

use raft_core::{GroupId, LogIndex};
use rocksdb::{DB, IteratorMode, ReadOptions};

use super::meta::{self, Tag};
use super::positions::Positions;
use super::record::{NO_LINK, Record, parse_key};
use super::{LOG, META, Options, check_iterator, column, read_error};
use crate::error::{RecordDamage, StorageError};
use crate::outline::{self, Misfit, Outline};

/// What the writer knows about a group.
#[derive(Debug)]
pub(super) struct GroupState {
    pub(super) outline: Outline,
    /// Checksum of the last record; of the one before the log's start, if there is none.
    pub(super) link: u32,
    /// The index under which the first record of the log is stored, or will be.
    pub(super) first: LogIndex,
    pub(super) positions: Positions,
}

impl Default for GroupState {
    fn default() -> Self {
        GroupState { outline: Outline::default(), link: NO_LINK, first: LogIndex(1), positions: Positions::default() }
    }
}

/// Reads every value there is. Groups that have not begun are not in the result.
pub(super) fn scan(db: &DB, options: &Options) -> Result<BTreeMap<GroupId, GroupState>, StorageError> {
    let mut groups = scan_meta(db)?;
    let mut read = ReadOptions::default();
    read.fill_cache(false);
    read.set_readahead_size(options.scan_readahead_bytes);
    let mut iter = db.raw_iterator_cf_opt(column(db, LOG)?, read);
    iter.seek_to_first();
    while let Some((key, value)) = iter.item() {
        let (group, index) = parse_key(key)?;
        let state = groups.entry(group).or_default();
        // What is stored before the start of a log waits to be deleted.
        if index >= state.first || state.outline.log_start.index == LogIndex::ZERO {
            add(state, group, &Record::parse(key, value)?)?;
        }
        iter.next();
    }
    check_iterator(&iter)?;
    Ok(groups)
}

fn scan_meta(db: &DB) -> Result<BTreeMap<GroupId, GroupState>, StorageError> {
    let mut groups: BTreeMap<GroupId, GroupState> = BTreeMap::new();
    for item in db.iterator_cf(column(db, META)?, IteratorMode::Start) {
        let (key, value) = item.map_err(|error| read_error("the column family `meta`", error))?;
        let (group, tag) = meta::parse_key(&key)?;
        match tag {
            Tag::HardState => {
                groups.entry(group).or_default().outline.hard_state = meta::decode_hard_state(&key, group, &value)?;
            }
            Tag::LogStart => {
                let start = meta::decode_log_start(&key, group, &value)?;
                let state = groups.entry(group).or_default();
                (state.link, state.first) = (start.link, start.first);
                state.outline.log_start = start.id;
                state.outline.last_index = start.id.index;
                state.outline.membership = start.membership;
            }
            // Compared when the group is started. A group may have begun, and not have written anything yet.
            Tag::Founders => {
                meta::decode_founders(&key, group, &value)?;
                groups.entry(group).or_default();
            }
            // Read when they are needed.
            Tag::Peers => drop(meta::decode_peers(&key, group, &value)?),
            // Verified before anything else was looked at.
            Tag::Identity => {}
        }
    }
    for (group, GroupState { outline, .. }) in &groups {
        let (start, term) = (outline.log_start.term, outline.hard_state.current_term);
        if start > term {
            return Err(lost_hard_state(*group, format!("it has term {term}, but the log begins in term {start}")));
        }
    }
    Ok(groups)
}

/// Every write keeps the order of terms, so a newer hard state did exist, and maybe a vote with it.
fn lost_hard_state(group: GroupId, what: String) -> StorageError {
    StorageError::Damaged { place: format!("group {group}: the hard state"), what }
}

fn add(state: &mut GroupState, group: GroupId, record: &Record<'_>) -> Result<(), StorageError> {
    let outline = &mut state.outline;
    let begin = outline.last_index.next();
    // The log may begin within its first record, or, after a truncation, right behind it.
    let opens = state.positions.is_empty();
    record.follows(if opens { state.first } else { begin }, state.link)?;
    if opens && record.last().next() < begin {
        return Err(StorageError::Gap { group, expected: begin, found: record.last().next() });
    }
    let damaged = |what| StorageError::Record { group, first: record.first(), what };
    let whole = record.segment()?;
    state.positions.push(record.first(), whole.byte_len() as u64);
    state.link = record.link;
    let Some(segment) = whole.slice(begin, LogIndex::MAX) else {
        state.positions.skip(whole.byte_len() as u64);
        return Ok(());
    };
    state.positions.skip((whole.byte_len() - segment.byte_len()) as u64);
    let current_term = outline.hard_state.current_term;
    if segment.last_term() > current_term {
        let last = segment.last_term();
        return Err(lost_hard_state(
            group,
            format!("it has term {current_term}, but the log has entries of term {last}"),
        ));
    }
    outline::append(outline, &segment).map_err(|misfit| match misfit {
        Misfit::Membership(index, error) => damaged(RecordDamage::Membership { index, error }),
        Misfit::NewerTerm | Misfit::Gap | Misfit::LowerTerm => damaged(RecordDamage::Term),
    })?;
    outline.bytes = state.positions.bytes();
    Ok(())
}
