//! What a leader knows of all its followers.

use crate::progress::Progress;
use crate::types::NodeId;

/// Each follower's progress, by its id. A cluster has a few members, and all of them are looked at whenever anything happens: a list beats a tree.
///
/// Invariant: ids ascend strictly.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) struct Followers(Vec<(NodeId, Progress)>);

impl Followers {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn find(&self, id: NodeId) -> Option<usize> {
        self.0.iter().position(|(other, _)| *other == id)
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<&Progress> {
        self.find(id).map(|at| &self.0[at].1)
    }

    pub(crate) fn get_mut(&mut self, id: NodeId) -> Option<&mut Progress> {
        self.find(id).map(|at| &mut self.0[at].1)
    }

    pub(crate) fn contains(&self, id: NodeId) -> bool {
        self.find(id).is_some()
    }

    /// In the place of what was known before, if anything was.
    pub(crate) fn insert(&mut self, id: NodeId, progress: Progress) {
        match self.0.binary_search_by_key(&id, |(other, _)| *other) {
            Ok(at) => self.0[at].1 = progress,
            Err(at) => self.0.insert(at, (id, progress)),
        }
    }

    pub(crate) fn retain(&mut self, mut stays: impl FnMut(&Progress) -> bool) {
        self.0.retain(|(_, progress)| stays(progress));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeId, &Progress)> {
        self.0.iter().map(|(id, progress)| (*id, progress))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (NodeId, &mut Progress)> {
        self.0.iter_mut().map(|(id, progress)| (*id, progress))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Progress> {
        self.0.iter().map(|(_, progress)| progress)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut Progress> {
        self.0.iter_mut().map(|(_, progress)| progress)
    }
}

impl FromIterator<(NodeId, Progress)> for Followers {
    fn from_iter<T: IntoIterator<Item = (NodeId, Progress)>>(all: T) -> Self {
        let mut followers = Followers::default();
        all.into_iter().for_each(|(id, progress)| followers.insert(id, progress));
        followers
    }
}
