//! What goes with each member in the log, besides its id: how the others reach it.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft_core::{Membership, NodeId};
use serde::{Deserialize, Serialize};

/// The information about a member that travels in the log (see [`Membership::info`]), in postcard. Fields are only ever appended: older versions skip what
/// they do not know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Where the others reach it, `host:port`.
    pub address: String,
}

impl MemberInfo {
    /// The bytes for the log.
    pub fn encode(&self) -> Bytes {
        // Writing a text to memory does not fail.
        postcard::to_stdvec(self).unwrap_or_default().into()
    }

    /// Understands what [`encode`](Self::encode) has written; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::take_from_bytes(bytes).ok().map(|(info, _)| info)
    }
}

/// The members' addresses as the log knows them; for those of whom it knows none, what was configured.
pub(crate) fn addresses(membership: &Membership, configured: &BTreeMap<NodeId, String>) -> BTreeMap<NodeId, String> {
    let address = |id: NodeId| {
        let known = MemberInfo::decode(&membership.info(id)).map(|info| info.address).filter(|a| !a.is_empty());
        known.or_else(|| configured.get(&id).cloned().filter(|address| !address.is_empty()))
    };
    membership.members().into_iter().filter_map(|id| Some((id, address(id)?))).collect()
}

/// The membership with which a cluster begins.
pub(crate) fn founders(ids: &[NodeId], configured: &BTreeMap<NodeId, String>) -> Membership {
    ids.iter().fold(Membership::of_voters(ids.iter().copied()), |membership, id| {
        let info = configured.get(id).map(|address| MemberInfo { address: address.clone() }.encode());
        membership.with_info(*id, info.unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_knows_better_than_the_configuration() {
        let configured: BTreeMap<_, _> = [(NodeId(1), "a:1".to_owned()), (NodeId(2), "b:1".to_owned())].into();
        let membership = founders(&[NodeId(1), NodeId(2), NodeId(3)], &configured);
        assert_eq!(addresses(&membership, &BTreeMap::new()), configured);
        let moved = membership.with_info(NodeId(2), MemberInfo { address: "c:1".into() }.encode());
        let known = addresses(&moved.with_info(NodeId(1), Bytes::from_static(b"\xff")), &configured);
        assert_eq!(known, [(NodeId(1), "a:1".to_owned()), (NodeId(2), "c:1".to_owned())].into());
    }

    #[test]
    fn a_later_version_may_know_more() {
        let info = MemberInfo { address: "host:7000".into() };
        assert_eq!(&info.encode()[..], b"\x09host:7000");
        assert_eq!(MemberInfo::decode(&[&info.encode()[..], b"more"].concat()), Some(info));
        assert_eq!(MemberInfo::decode(b"\x09host"), None);
    }
}
