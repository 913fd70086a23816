//! Verifies a whole database when it is opened, and collects what recovery needs.

use std::collections::BTreeMap;

use raft_core::GroupId;
use rocksdb::{DB, IteratorMode, ReadOptions};

use super::meta::{self, LogStart, Tag};
use super::record::{NO_LINK, Record, parse_key};
use super::{LOG, META, Options, check_iterator, column, read_error};
use crate::error::{RecordDamage, StorageError};
use crate::outline::{self, Outline};

/// What the writer knows about a group.
#[derive(Debug)]
pub(super) struct GroupState {
    pub(super) outline: Outline,
    /// Checksum of the last record.
    pub(super) link: u32,
}

impl Default for GroupState {
    fn default() -> Self {
        GroupState { outline: Outline::default(), link: NO_LINK }
    }
}

/// Reads every value there is. Groups that were never written to are not in the result.
pub(super) fn scan(db: &DB, options: &Options) -> Result<BTreeMap<GroupId, GroupState>, StorageError> {
    let mut groups = scan_meta(db)?;
    let mut read = ReadOptions::default();
    read.fill_cache(false);
    read.set_readahead_size(options.scan_readahead_bytes);
    let mut iter = db.raw_iterator_cf_opt(column(db, LOG)?, read);
    iter.seek_to_first();
    while let Some((key, value)) = iter.item() {
        let (group, _) = parse_key(key)?;
        let state = groups.entry(group).or_default();
        let record = Record::parse(key, value)?;
        record.follows(state.outline.last_index.next(), state.link)?;
        add(&mut state.outline, group, &record)?;
        state.link = record.link;
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
                let LogStart { id, link } = meta::decode_log_start(&key, group, &value)?;
                let state = groups.entry(group).or_default();
                state.outline.log_start = id;
                state.outline.last_index = id.index;
                state.link = link;
            }
            // Compared when the group is started.
            Tag::Founders => drop(meta::decode_founders(&key, group, &value)?),
            // Verified before anything else was looked at.
            Tag::Identity => {}
        }
    }
    Ok(groups)
}

fn add(outline: &mut Outline, group: GroupId, record: &Record<'_>) -> Result<(), StorageError> {
    let segment = record.segment()?;
    let current_term = outline.hard_state.current_term;
    if segment.last_term() > current_term {
        // Every write keeps this order, so a newer hard state did exist, and maybe a vote with it.
        let what = format!("it has term {current_term}, but the log has entries of term {}", segment.last_term());
        return Err(StorageError::Damaged { place: format!("group {group}: the hard state"), what });
    }
    outline::append(outline, &segment).map_err(|_| StorageError::Record {
        group,
        first: record.first(),
        what: RecordDamage::Term,
    })?;
    outline.bytes += segment.byte_len() as u64;
    Ok(())
}
