//! How many streams each source has, over all shards together: a share is taken when a stream is accepted and given back when it is
//! forgotten. Behind a lock that is taken for nothing but that, and not at all without a limit.

use std::sync::{Arc, Mutex, PoisonError};

use ahash::RandomState;
use waypost_proto::addr::SourcePrefix;
use waypost_proto::shares::Shares;

/// What all shards of a server count together. Clones count the same.
#[derive(Clone, Debug)]
pub struct StreamQuota {
    /// Most streams of one source prefix; 0 is no limit.
    most: u32,
    open: Arc<Mutex<Shares<SourcePrefix>>>,
}

/// One stream. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Share(Option<(StreamQuota, SourcePrefix)>);

impl StreamQuota {
    /// At most this many for one source prefix; 0 is no limit.
    #[must_use]
    pub fn new(most: u32) -> Self {
        let open = Shares::with_capacity(0, RandomState::new());
        Self {
            most,
            open: Arc::new(Mutex::new(open)),
        }
    }

    /// One stream more, unless its source has too many.
    pub(super) fn take(&self, source: SourcePrefix) -> Option<Share> {
        if self.most == 0 {
            return Some(Share(None));
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.of(&source) >= self.most {
            return None;
        }
        open.take(source);
        Some(Share(Some((self.clone(), source))))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some((quota, source)) = &self.0 {
            let mut open = quota.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.give_back(source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waypost_proto::addr::Addr;

    fn source(last: u8) -> SourcePrefix {
        Addr::from_ip_port([192, 0, 2, last].into(), 1).source_prefix()
    }

    #[test]
    fn what_one_shard_accepts_counts_on_another() {
        let quota = StreamQuota::new(2);
        let other = quota.clone();
        let first = quota.take(source(1));
        let second = other.take(source(1));
        assert!(first.is_some() && second.is_some());
        assert!(quota.take(source(1)).is_none() && other.take(source(1)).is_none());
        assert!(quota.take(source(2)).is_some());
        drop(first);
        assert!(other.take(source(1)).is_some());
        drop(second);
        assert_eq!(quota.open.lock().unwrap().total(), 0);
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let quota = StreamQuota::new(0);
        let shares = [(); 3].map(|()| quota.take(source(1)));
        assert!(shares.iter().all(Option::is_some));
        assert_eq!(quota.open.lock().unwrap().total(), 0);
    }
}
