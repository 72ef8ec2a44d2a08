//! Writing STUN messages: into a byte vector that the caller reuses, attribute by attribute. Padding is always zero,
//! so nothing of an earlier message leaks.

use super::integrity::FINGERPRINT_XOR;
use super::{
    Class, HEADER_LEN, Integrity, IntegrityKey, MAGIC_COOKIE, Message, TransactionId, attr, crc32,
};
use crate::addr::Addr;

/// A message under construction at the end of a vector.
pub struct MessageWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> MessageWriter<'a> {
    /// Begins a message after what `out` already holds.
    pub fn new(out: &'a mut Vec<u8>, method: u16, class: Class, id: TransactionId) -> Self {
        let class_bits = match class {
            Class::Request => 0x0000,
            Class::Indication => 0x0010,
            Class::Success => 0x0100,
            Class::Error => 0x0110,
        };
        let message_type =
            method & 0x000f | (method & 0x0070) << 1 | (method & 0x0f80) << 2 | class_bits;
        let start = out.len();
        out.extend_from_slice(&message_type.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&MAGIC_COOKIE.to_be_bytes());
        out.extend_from_slice(&id.0);
        Self { out, start }
    }

    /// Begins the answer to `request`, whose cookie and transaction id are echoed whatever they are.
    pub fn answer(out: &'a mut Vec<u8>, request: &Message<'_>, class: Class) -> Self {
        let writer = Self::new(out, request.method(), class, request.transaction_id());
        let start = writer.start;
        writer.out[start + 4..start + 8].copy_from_slice(&request.bytes()[4..8]);
        writer
    }

    /// Goes on with the message that begins at `start` and ends with `out`.
    pub fn resume(out: &'a mut Vec<u8>, start: usize) -> Self {
        assert!(out.len() >= start + HEADER_LEN, "a message begins there");
        Self { out, start }
    }

    fn id(&self) -> TransactionId {
        let mut id = [0; 12];
        id.copy_from_slice(&self.out[self.start + 8..self.start + HEADER_LEN]);
        TransactionId(id)
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written(&self) -> usize {
        self.out.len() - self.start
    }

    /// Appends an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        AttributeWriter::new(self.out).attribute(kind, value);
        self
    }

    /// Appends an attribute with a 32-bit value.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// Appends an attribute with a 64-bit value.
    pub fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// Appends an XOR-encoded address (RFC 8489 section 14.2).
    pub fn xor_addr(&mut self, kind: u16, addr: Addr) -> &mut Self {
        let id = self.id();
        AttributeWriter::new(self.out).xor_addr(kind, addr, id);
        self
    }

    /// Appends an address as RFC 3489 clients read it (RFC 8489 section 14.1).
    pub fn plain_addr(&mut self, kind: u16, addr: Addr) -> &mut Self {
        let (value, len) = encode_addr(addr, [0; 16]);
        self.attribute(kind, &value[..len])
    }

    /// Appends ERROR-CODE with an empty reason phrase (RFC 8489 section 14.8).
    pub fn error_code(&mut self, code: u16) -> &mut Self {
        let [class, number] = [code / 100, code % 100].map(|part| part as u8);
        self.attribute(attr::ERROR_CODE, &[0, 0, class, number])
    }

    /// Appends SOFTWARE (RFC 8489 section 14.14), if there is something to say.
    #[inline]
    pub fn software(&mut self, name: Option<&str>) -> &mut Self {
        if let Some(name) = name {
            self.attribute(attr::SOFTWARE, name.as_bytes());
        }
        self
    }

    /// Appends UNKNOWN-ATTRIBUTES (RFC 8489 section 14.13).
    pub fn unknown_attributes(&mut self, kinds: &[u16]) -> &mut Self {
        self.list(attr::UNKNOWN_ATTRIBUTES, |value| {
            kinds.iter().for_each(|kind| value.raw(&kind.to_be_bytes()));
        })
    }

    /// Appends an attribute whose value `fill` writes, most often a list of nested attributes.
    pub fn list(&mut self, kind: u16, fill: impl FnOnce(&mut AttributeWriter<'_>)) -> &mut Self {
        AttributeWriter::new(self.out).list(kind, fill);
        self
    }

    /// Appends the integrity attribute over everything written so far.
    pub fn integrity<'k>(
        &mut self,
        integrity: Integrity,
        key: impl Into<IntegrityKey<'k>>,
    ) -> &mut Self {
        let code = integrity.compute(key.into(), &self.out[self.start..]);
        self.attribute(integrity.kind(), &code[..integrity.value_len()])
    }

    /// Appends FINGERPRINT over everything written so far.
    pub fn fingerprint(&mut self) -> &mut Self {
        self.set_length(8);
        let crc = crc32(&self.out[self.start..]) ^ FINGERPRINT_XOR;
        self.u32(attr::FINGERPRINT, crc)
    }

    /// Gives the padding just written another value, as some published vectors have it.
    #[cfg(test)]
    pub(super) fn overwrite_padding(&mut self, bytes: usize, with: u8) -> &mut Self {
        let end = self.out.len();
        self.out[end - bytes..].fill(with);
        self
    }

    /// Ends the message: its length field becomes right.
    pub fn finish(&mut self) {
        self.set_length(0);
    }

    fn set_length(&mut self, still_to_come: usize) {
        let len = u16::try_from(self.written() - HEADER_LEN + still_to_come)
            .expect("a message is shorter than 64 KiB");
        self.out[self.start + 2..self.start + 4].copy_from_slice(&len.to_be_bytes());
    }
}

/// Writes attributes one after another, at the top of a message or nested in an attribute.
pub struct AttributeWriter<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> AttributeWriter<'a> {
    /// Appends to `out`, a caller's scratch vector.
    pub const fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Appends an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.list_with(kind, |out| out.extend_from_slice(value))
    }

    /// Appends an attribute with a 32-bit value.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// Appends an address XORed with the cookie and `id`.
    pub fn xor_addr(&mut self, kind: u16, addr: Addr, id: TransactionId) -> &mut Self {
        let mut mask = [0; 16];
        mask[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        mask[4..].copy_from_slice(&id.0);
        let (value, len) = encode_addr(addr, mask);
        self.attribute(kind, &value[..len])
    }

    /// Appends an attribute whose value `fill` writes.
    pub fn list(&mut self, kind: u16, fill: impl FnOnce(&mut AttributeWriter<'_>)) -> &mut Self {
        self.list_with(kind, |out| fill(&mut AttributeWriter { out }))
    }

    fn list_with(&mut self, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        self.out.extend_from_slice(&kind.to_be_bytes());
        let len_at = self.out.len();
        self.out.extend_from_slice(&[0, 0]);
        fill(self.out);
        let len = self.out.len() - len_at - 2;
        let len16 = u16::try_from(len).expect("an attribute is shorter than 64 KiB");
        self.out[len_at..len_at + 2].copy_from_slice(&len16.to_be_bytes());
        let padding = len.next_multiple_of(4) - len;
        self.out.extend_from_slice(&[0; 3][..padding]);
        self
    }
}

/// Writes everything of a Data indication (RFC 8656 section 11.4) that stands before its data: header, XOR-PEER-ADDRESS and
/// the head of DATA. Returns its length, at most 48 bytes. Nothing is allocated.
#[inline]
pub fn write_data_indication(
    out: &mut [u8; 48],
    peer: Addr,
    id: TransactionId,
    data_len: usize,
) -> usize {
    const DATA_INDICATION: u16 = 0x0017;
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    mask[4..].copy_from_slice(&id.0);
    let (value, value_len) = encode_addr(peer, mask);
    let header_len = HEADER_LEN + 4 + value_len + 4;
    let message_len = header_len - HEADER_LEN + data_len.next_multiple_of(4);
    let len16 = |len: usize| {
        u16::try_from(len)
            .expect("a datagram is shorter than 64 KiB")
            .to_be_bytes()
    };
    out[..2].copy_from_slice(&DATA_INDICATION.to_be_bytes());
    out[2..4].copy_from_slice(&len16(message_len));
    out[4..HEADER_LEN].copy_from_slice(&mask);
    out[20..22].copy_from_slice(&attr::XOR_PEER_ADDRESS.to_be_bytes());
    out[22..24].copy_from_slice(&len16(value_len));
    out[24..24 + value_len].copy_from_slice(&value[..value_len]);
    out[header_len - 4..header_len - 2].copy_from_slice(&attr::DATA.to_be_bytes());
    out[header_len - 2..header_len].copy_from_slice(&len16(data_len));
    header_len
}

fn encode_addr(addr: Addr, mask: [u8; 16]) -> ([u8; 20], usize) {
    let mut value = [0; 20];
    let port = addr.port() ^ u16::from_be_bytes([mask[0], mask[1]]);
    value[2..4].copy_from_slice(&port.to_be_bytes());
    let ip = addr.ip_bytes();
    let len = if addr.is_ipv4() {
        value[1] = 1;
        value[4..8].copy_from_slice(&ip[12..]);
        8
    } else {
        value[1] = 2;
        value[4..20].copy_from_slice(ip);
        20
    };
    value[4..len]
        .iter_mut()
        .zip(mask)
        .for_each(|(byte, mask)| *byte ^= mask);
    (value, len)
}
