//! The published test vectors, both ways, and what damaged ones do.

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;

/// Reads a `testdata` file: hex digits, blanks ignored, `#` begins a comment line.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| line.bytes().filter(u8::is_ascii_hexdigit))
        .collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

pub(crate) fn vectors() -> [Vec<u8>; 5] {
    [
        include_str!("../../../testdata/stun/rfc5769-2.1-request.hex"),
        include_str!("../../../testdata/stun/rfc5769-2.2-ipv4-response.hex"),
        include_str!("../../../testdata/stun/rfc5769-2.3-ipv6-response.hex"),
        include_str!("../../../testdata/stun/rfc5769-2.4-long-term.hex"),
        include_str!("../../../testdata/stun/rfc8489-b.1-userhash-sha256.hex"),
    ]
    .map(hex)
}

const SHORT_TERM: &[u8] = b"VOkJxbRl1RmTxUk/WvJxBt";
const USER: &str = "\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}";

fn key_of(vector: usize) -> (Integrity, Vec<u8>) {
    match vector {
        0..=2 => (Integrity::Sha1, SHORT_TERM.to_vec()),
        3 => (
            Integrity::Sha1,
            LongTermKey::md5(USER, "example.org", "TheMatrIX")
                .as_bytes()
                .to_vec(),
        ),
        _ => (
            Integrity::Sha256,
            LongTermKey::sha256(USER, "example.org", "TheMatrIX")
                .as_bytes()
                .to_vec(),
        ),
    }
}

// RFC 5769 sections 2.1 to 2.4, RFC 8489 appendix B.1: decoding.
#[test]
fn vectors_decode() {
    for (i, bytes) in vectors().iter().enumerate() {
        let message = Message::parse(bytes).unwrap();
        let (integrity, key) = key_of(i);
        assert!(message.verify_integrity(integrity, &key[..]), "vector {i}");
        assert!(!message.verify_integrity(integrity, b"wrong"), "vector {i}");
        assert_eq!(message.method(), method::BINDING);
        assert!(message.has_magic_cookie());
    }
    let [request, v4, v6, long_term, userhash] = vectors();
    let request = Message::parse(&request).unwrap();
    assert_eq!(request.class(), Class::Request);
    assert_eq!(request.find(attr::USERNAME), Some(&b"evtj:h6vY"[..]));
    let v4 = Message::parse(&v4).unwrap();
    assert_eq!(v4.class(), Class::Success);
    assert_eq!(
        v4.find_xor_addr(attr::XOR_MAPPED_ADDRESS)
            .unwrap()
            .to_string(),
        "192.0.2.1:32853"
    );
    let v6 = Message::parse(&v6).unwrap();
    assert_eq!(
        v6.find_xor_addr(attr::XOR_MAPPED_ADDRESS)
            .unwrap()
            .to_string(),
        "[2001:db8:1234:5678:11:2233:4455:6677]:32853"
    );
    let long_term = Message::parse(&long_term).unwrap();
    assert_eq!(long_term.find(attr::USERNAME), Some(USER.as_bytes()));
    let userhash = Message::parse(&userhash).unwrap();
    let expected = Sha256::digest(format!("{USER}:example.org"));
    assert_eq!(userhash.find(attr::USERHASH), Some(&expected[..]));
}

// The same vectors: encoding, byte-exact.
#[test]
fn vectors_encode() {
    let vectors = vectors();
    let ids: Vec<_> = vectors
        .iter()
        .map(|bytes| Message::parse(bytes).unwrap().transaction_id())
        .collect();
    let encode = |i: usize, class: Class, write: &dyn Fn(&mut MessageWriter<'_>)| {
        let mut out = Vec::new();
        let mut writer = MessageWriter::new(&mut out, method::BINDING, class, ids[i]);
        write(&mut writer);
        let (integrity, key) = key_of(i);
        writer.integrity(integrity, &key[..]);
        if i < 3 {
            writer.fingerprint();
        }
        writer.finish();
        assert_eq!(out, vectors[i], "vector {i}");
    };
    encode(0, Class::Request, &|w| {
        w.attribute(attr::SOFTWARE, b"STUN test client")
            .u32(0x0024, 0x6e00_01ff)
            .u64(0x8029, 0x932f_f9b1_5126_3b36)
            .attribute(attr::USERNAME, b"evtj:h6vY")
            .overwrite_padding(3, b' ');
    });
    let mapped = |i: usize| {
        Message::parse(&vectors[i])
            .unwrap()
            .find_xor_addr(attr::XOR_MAPPED_ADDRESS)
            .unwrap()
    };
    for i in [1, 2] {
        encode(i, Class::Success, &|w| {
            w.attribute(attr::SOFTWARE, b"test vector")
                .overwrite_padding(1, b' ')
                .xor_addr(attr::XOR_MAPPED_ADDRESS, mapped(i));
        });
    }
    encode(3, Class::Request, &|w| {
        w.attribute(attr::USERNAME, USER.as_bytes())
            .attribute(attr::NONCE, b"f//499k954d6OL34oL9FSTvy64sA")
            .attribute(attr::REALM, b"example.org");
    });
    encode(4, Class::Request, &|w| {
        w.attribute(
            attr::USERHASH,
            &Sha256::digest(format!("{USER}:example.org")),
        )
        .attribute(attr::NONCE, b"obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA")
        .attribute(attr::REALM, b"example.org")
        .u32(attr::PASSWORD_ALGORITHM, 0x0002_0000);
    });
}

#[test]
fn every_truncation_is_refused() {
    for bytes in vectors() {
        for len in 0..bytes.len() {
            assert!(Message::parse(&bytes[..len]).is_err());
        }
    }
}

// A flipped bit must not pass under integrity. The integrity does not cover FINGERPRINT, which protects itself, nor
// bytes after it, of which the vectors have none.
#[test]
fn no_bit_flip_passes_integrity() {
    for (i, bytes) in vectors().iter().enumerate() {
        let (integrity, key) = key_of(i);
        let covered = bytes.len() - if i < 3 { 8 } else { 0 };
        for bit in 0..covered * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(message) = Message::parse(&flipped) {
                assert!(
                    !message.verify_integrity(integrity, &key[..]),
                    "vector {i}, bit {bit}"
                );
            }
        }
    }
}

#[test]
fn length_lies() {
    let id = TransactionId([7; 12]);
    let mut bytes = Vec::new();
    MessageWriter::new(&mut bytes, method::BINDING, Class::Request, id)
        .attribute(attr::USERNAME, b"abc")
        .finish();
    assert!(Message::parse(&bytes).is_ok());
    let mut lie = bytes.clone();
    lie[22..24].copy_from_slice(&0xffffu16.to_be_bytes());
    assert_eq!(Message::parse(&lie).unwrap_err(), NotStun::Attribute);
    let mut lie = bytes.clone();
    lie[3] = 7;
    assert_eq!(Message::parse(&lie).unwrap_err(), NotStun::Length);
    let mut longer = bytes.clone();
    longer.extend_from_slice(&[0; 4]);
    assert_eq!(Message::parse(&longer).unwrap_err(), NotStun::Length);
}

// RFC 8489 section 14: only the first of repeated attributes counts; section 14.5: nothing after the integrity counts.
#[test]
fn first_attribute_wins_and_integrity_ends_the_list() {
    let mut bytes = Vec::new();
    let mut writer = MessageWriter::new(
        &mut bytes,
        method::BINDING,
        Class::Request,
        TransactionId([1; 12]),
    );
    writer
        .attribute(attr::USERNAME, b"first")
        .attribute(attr::USERNAME, b"second")
        .integrity(Integrity::Sha1, b"key")
        .attribute(attr::REALM, b"late")
        .integrity(Integrity::Sha256, b"key")
        .finish();
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.find(attr::USERNAME), Some(&b"first"[..]));
    assert_eq!(message.find(attr::REALM), None);
    assert!(message.verify_integrity(Integrity::Sha1, b"key"));
    assert!(message.verify_integrity(Integrity::Sha256, b"key"));
}

// RFC 8489 section 7.3: a wrong FINGERPRINT means that it is not STUN; section 14.7: it is the last attribute.
#[test]
fn fingerprint_is_last_and_right() {
    let id = TransactionId([1; 12]);
    let mut bytes = Vec::new();
    MessageWriter::new(&mut bytes, method::BINDING, Class::Request, id)
        .fingerprint()
        .attribute(attr::USERNAME, b"late")
        .finish();
    assert_eq!(Message::parse(&bytes).unwrap_err(), NotStun::Fingerprint);
    bytes.clear();
    MessageWriter::new(&mut bytes, method::BINDING, Class::Request, id)
        .u32(attr::FINGERPRINT, 1)
        .finish();
    assert_eq!(Message::parse(&bytes).unwrap_err(), NotStun::Fingerprint);
}

// RFC 8489 section 14: padding is zero on sending and ignored on receipt; section 14.1: so is the first byte of an address.
#[test]
fn what_is_reserved_is_zero_when_sent_and_ignored_when_received() {
    for len in 1..4 {
        let mut out = Vec::new();
        let value = vec![0xff; len];
        MessageWriter::new(
            &mut out,
            method::BINDING,
            Class::Request,
            TransactionId([1; 12]),
        )
        .attribute(attr::USERNAME, &value)
        .plain_addr(attr::MAPPED_ADDRESS, Addr::default())
        .finish();
        assert_eq!(out.len() % 4, 0);
        assert_eq!(out[24 + len..28], [0; 3][..4 - len]);
        assert_eq!(out[32], 0);
        out[27] = 0x55;
        out[32] = 0x55;
        let message = Message::parse(&out).unwrap();
        assert_eq!(message.find(attr::USERNAME).unwrap()[..len.min(3)], value);
        let mapped = message.find(attr::MAPPED_ADDRESS).unwrap();
        assert_eq!(decode_plain_addr(mapped), Some(Addr::default()));
    }
}

#[test]
fn methods_and_classes_round_trip() {
    let mut out = Vec::new();
    for method in 0..=0xfff {
        for class in [
            Class::Request,
            Class::Indication,
            Class::Success,
            Class::Error,
        ] {
            out.clear();
            MessageWriter::new(&mut out, method, class, TransactionId([0; 12])).finish();
            let message = Message::parse(&out).unwrap();
            assert_eq!((message.method(), message.class()), (method, class));
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = Message::parse(&bytes) {
            let _ = message.attributes().count();
            let _ = message.verify_integrity(Integrity::Sha1, b"k");
            let _ = message.find_xor_addr(attr::XOR_MAPPED_ADDRESS);
            let _ = message.error_code();
        }
    }

    #[test]
    fn attributes_round_trip(values in proptest::collection::vec((0u16..0x8000, proptest::collection::vec(any::<u8>(), 0..40)), 0..8)) {
        let values: Vec<_> = values.into_iter().filter(|(kind, _)| !matches!(*kind, attr::MESSAGE_INTEGRITY | attr::MESSAGE_INTEGRITY_SHA256)).collect();
        let mut out = Vec::new();
        let mut writer = MessageWriter::new(&mut out, 1, Class::Request, TransactionId([9; 12]));
        for (kind, value) in &values {
            writer.attribute(*kind, value);
        }
        writer.finish();
        let message = Message::parse(&out).unwrap();
        let back: Vec<_> = message.attributes().map(|a| (a.kind, a.value.to_vec())).collect();
        prop_assert_eq!(back, values);
    }
}
