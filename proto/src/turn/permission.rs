//! Permissions (RFC 8656 section 9): the IP addresses whose packets an allocation passes on, each until a time. A list in
//! order of address, short enough that finding one costs a few comparisons.

use crate::addr::Addr;
use crate::time::Millis;

/// Seconds that a permission lasts (RFC 8656 section 9: 300, and no other value).
pub const PERMISSION_SECS: u32 = 300;

/// The permissions of one allocation.
#[derive(Debug, Default)]
pub struct PermissionList {
    by_ip: Vec<([u8; 16], Millis)>,
}

impl PermissionList {
    /// Whether packets to and from this IP address pass.
    #[inline]
    #[must_use]
    pub fn holds(&self, now: Millis, peer: Addr) -> bool {
        self.by_ip
            .binary_search_by(|(ip, _)| ip.cmp(peer.ip_bytes()))
            .is_ok_and(|at| now < self.by_ip[at].1)
    }

    /// When the permission for this IP address ends, or ended.
    #[must_use]
    pub fn until(&self, peer: Addr) -> Option<Millis> {
        let at = self
            .by_ip
            .binary_search_by(|(ip, _)| ip.cmp(peer.ip_bytes()));
        at.ok().map(|at| self.by_ip[at].1)
    }

    /// Whether [`PermissionList::grant`] has room for all of `peers`, which may repeat.
    pub fn has_room(&mut self, now: Millis, peers: &[Addr], capacity: usize) -> bool {
        self.by_ip.retain(|&(_, until)| now < until);
        let is_new = |peer: &&Addr| !self.holds(now, **peer);
        let mut new: Vec<_> = peers
            .iter()
            .filter(is_new)
            .map(|peer| peer.ip_bytes())
            .collect();
        new.sort_unstable();
        new.dedup();
        self.by_ip.len() + new.len() <= capacity
    }

    /// Lets this IP address through until `until`.
    pub fn grant(&mut self, peer: Addr, until: Millis) {
        match self
            .by_ip
            .binary_search_by(|(ip, _)| ip.cmp(peer.ip_bytes()))
        {
            Ok(at) => self.by_ip[at].1 = until,
            Err(at) => {
                // Most clients have one peer, and a vector would begin with room for four.
                if self.by_ip.is_empty() {
                    self.by_ip.reserve_exact(1);
                }
                self.by_ip.insert(at, (*peer.ip_bytes(), until));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(last: u8, port: u16) -> Addr {
        Addr::new(std::net::SocketAddr::from(([192, 0, 2, last], port)))
    }

    #[test]
    fn by_address_whatever_the_port_and_until_its_time() {
        let mut list = PermissionList::default();
        for last in [9, 3, 7] {
            list.grant(addr(last, 1), Millis(100));
        }
        assert!(list.holds(Millis(99), addr(7, 5)));
        assert!(!list.holds(Millis(100), addr(7, 5)));
        assert!(!list.holds(Millis(0), addr(8, 1)));
        list.grant(addr(7, 2), Millis(200));
        assert!(list.holds(Millis(199), addr(7, 5)));
    }

    #[test]
    fn room_counts_new_addresses_once() {
        let mut list = PermissionList::default();
        list.grant(addr(1, 1), Millis(100));
        let peers = [addr(1, 9), addr(2, 1), addr(2, 2)];
        assert!(list.has_room(Millis(0), &peers, 2));
        assert!(!list.has_room(Millis(0), &peers, 1));
        assert!(
            list.has_room(Millis(100), &peers, 2),
            "what lapsed makes room"
        );
    }
}
