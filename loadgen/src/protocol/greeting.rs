//! Two members finding out that they hear each other: netfox' handshake, four bytes `$rwx` of which each letter may be a dash. `r` says
//! that its sender has received something, `x` that it has received an `r`. Addresses are not its business.

/// Repeated this often until the other one is heard, milliseconds (netfox' frequency).
pub const AGAIN_MS: u64 = 100;

/// What one member knows of its way to another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Greeting {
    has_received: bool,
    is_heard: bool,
    is_done: bool,
}

impl Greeting {
    /// Whether both directions are proven.
    pub const fn is_done(self) -> bool {
        self.is_done
    }

    /// What to send.
    pub const fn datagram(self) -> [u8; 4] {
        [
            b'$',
            if self.has_received { b'r' } else { b'-' },
            b'w',
            if self.is_heard { b'x' } else { b'-' },
        ]
    }

    /// Whether that is a greeting; payloads of the load are longer.
    pub const fn is_one(bytes: &[u8]) -> bool {
        bytes.len() == 4 && bytes[0] == b'$'
    }

    /// Takes one; says whether something has changed.
    pub fn take(&mut self, bytes: &[u8]) -> bool {
        let before = *self;
        self.has_received = true;
        self.is_heard |= bytes.contains(&b'r');
        self.is_done |= self.is_heard && bytes.contains(&b'x');
        *self != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_members_are_done_after_three_greetings_each() {
        let (mut a, mut b) = (Greeting::default(), Greeting::default());
        assert_eq!(&a.datagram(), b"$-w-");
        for _ in 0..3 {
            let (of_a, of_b) = (a.datagram(), b.datagram());
            a.take(&of_b);
            b.take(&of_a);
        }
        assert!(a.is_done() && b.is_done());
        assert_eq!(&a.datagram(), b"$rwx");
        assert!(!a.take(b"$rwx"), "nothing new");
    }
}
