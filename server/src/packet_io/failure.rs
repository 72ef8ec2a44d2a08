//! What to do when the kernel refuses a send.
//!
//! It only decides; the backends act and count.

/// What a refused send calls for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SendFailure {
    /// A queue is full: the datagram is dropped.
    Full,
    /// Larger than the path: send once more with fragmentation allowed.
    TooLarge,
    /// A train that must go one by one; segmentation stays on for the socket.
    Unsegmented,
    /// A train that must go one by one; the socket's egress cannot segment at all.
    NoSegmentation,
    /// An ICMP error about an earlier datagram, to whomever: send again, it is reported once (IP_RECVERR in ip(7)).
    Pending,
    /// Anything else: the datagram is dropped.
    Other,
}

/// Segments up to this many bytes fit every path that IPv6 allows (RFC 8200, section 5: 1280
/// bytes), so EINVAL on such a train is not about the path's MTU.
const ALWAYS_FITS_BYTES: u32 = 1280 - 48;

pub(crate) fn classify_single(errno: i32) -> SendFailure {
    match errno {
        libc::EAGAIN | libc::ENOBUFS => SendFailure::Full,
        libc::EMSGSIZE => SendFailure::TooLarge,
        _ if may_be_pending(errno) => SendFailure::Pending,
        _ => SendFailure::Other,
    }
}

/// A train fails with EIO or EINVAL when the egress lacks checksum offload or goes through IPsec,
/// and with EMSGSIZE (EINVAL on older kernels) when a segment exceeds the path's MTU
/// (`udp_send_skb` in net/ipv4/udp.c).
pub(crate) fn classify_train(errno: i32, segment_bytes: u32) -> SendFailure {
    match errno {
        libc::EIO => SendFailure::NoSegmentation,
        libc::EINVAL if segment_bytes <= ALWAYS_FITS_BYTES => SendFailure::NoSegmentation,
        libc::EINVAL | libc::EMSGSIZE => SendFailure::Unsegmented,
        libc::EAGAIN | libc::ENOBUFS => SendFailure::Full,
        _ if may_be_pending(errno) => SendFailure::Pending,
        _ => SendFailure::Other,
    }
}

/// Whether the kernel turns some ICMP error into this one (`icmp_err_convert` in net/ipv4/icmp.c, `tab_unreach` in
/// net/ipv6/icmp.c).
const fn may_be_pending(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNREFUSED
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::ENOPROTOOPT
            | libc::EOPNOTSUPP
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EPROTO
            | libc::EACCES
    )
}

/// Linux 7.0 to 7.1.4 corrupt UDP_SEGMENT trains whose segments are all equal.
pub(crate) fn kernel_corrupts_trains(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|digits| digits.parse::<u32>().unwrap_or(0));
    let mut number = || numbers.next().unwrap_or(0);
    let version = (number(), number(), number());
    ((7, 0, 0)..=(7, 1, 4)).contains(&version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_segment_does_not_switch_segmentation_off() {
        assert_eq!(
            classify_train(libc::EINVAL, 200),
            SendFailure::NoSegmentation
        );
        assert_eq!(classify_train(libc::EINVAL, 1400), SendFailure::Unsegmented);
        assert_eq!(classify_train(libc::EIO, 1400), SendFailure::NoSegmentation);
    }

    #[test]
    fn only_the_broken_kernels_are_named() {
        for bad in ["7.0.0", "7.0.9-rc1", "7.1.4-generic"] {
            assert!(kernel_corrupts_trains(bad), "{bad}");
        }
        for good in ["6.18.44-fc-v657", "7.1.5", "8.0.0", "5.15.0-1", ""] {
            assert!(!kernel_corrupts_trains(good), "{good}");
        }
    }
}
