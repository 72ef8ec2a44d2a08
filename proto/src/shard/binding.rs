//! Binding requests (RFC 8489 section 6.3.1), and the discovery of NAT behaviour (RFC 5780) where a server has two addresses.
//!
//! Nobody proves an address for this, so every answer draws on its receiver's budget of bytes and is small: 1.6 times the
//! smallest request over IPv4 and 2.2 times over IPv6; with a second address 2.8 and 4.6 times (all without SOFTWARE). MAPPED-ADDRESS, which RFC 5780
//! section 6.1 wants beside XOR-MAPPED-ADDRESS, is therefore left out for requests too short for it.

use ahash::RandomState;

use crate::addr::{Addr, ClientAddr};
use crate::forwarding::SocketIndex;
use crate::lobby::Outbox;
use crate::stats::{Counter, Counters};
use crate::time::Millis;
use crate::unproven::{ReplyBudget, Way};
use crate::wire::stun::{Class, HEADER_LEN, Message, attr};

/// The shortest request that is answered with MAPPED-ADDRESS too: one attribute of four bytes.
const ROOM_FOR_MAPPED: usize = HEADER_LEN + 8;
/// Ports below belong to services that should not be woken by RESPONSE-PORT.
const RESPONSE_PORT_MIN: u16 = 1024;

/// Longest PADDING of an answer, bytes: with it the datagram is longer than an Ethernet frame.
const PADDING_MAX: usize = 1500;

/// Four listeners by which a client discovers how its NAT behaves: two addresses with the same two ports. Their order is:
/// primary address and main port, primary address and alternate port, alternate address and main port, alternate address and
/// alternate port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiscoveryGroup {
    /// The listeners.
    pub sockets: [SocketIndex; 4],
    /// What clients are told their addresses are.
    pub addrs: [Addr; 4],
}

/// A place in a group: bit 0 is the alternate port, bit 1 the alternate address.
#[derive(Clone, Copy)]
struct Vantage {
    group: DiscoveryGroup,
    place: usize,
}

/// What a request of RFC 5780 asks for.
#[derive(Default)]
struct Wish {
    /// CHANGE-REQUEST: bit 0 the port, bit 1 the address.
    change: usize,
    response_port: Option<u16>,
    padding_len: Option<usize>,
}

/// Answers Binding requests.
pub(super) struct BindingService {
    /// By listener.
    vantages: Vec<Option<Vantage>>,
    budget: ReplyBudget,
    unknown: Vec<u16>,
}

impl BindingService {
    pub fn new(
        groups: &[DiscoveryGroup],
        listeners: usize,
        bytes_per_sec: u32,
        software: Option<&'static str>,
        seeds: [u64; 4],
    ) -> Self {
        let mut vantages = vec![None; listeners];
        for &group in groups {
            for (place, socket) in group.sockets.into_iter().enumerate() {
                vantages[usize::from(socket.0)] = Some(Vantage { group, place });
            }
        }
        let hasher = RandomState::with_seeds(seeds[0], seeds[1], seeds[2], seeds[3]);
        Self {
            vantages,
            budget: ReplyBudget::new(hasher, bytes_per_sec).naming(software),
            unknown: Vec::new(),
        }
    }

    /// Answers one request. A message without the cookie is RFC 3489's and gets MAPPED-ADDRESS (RFC 8489 section 11).
    pub fn handle(
        &mut self,
        now: Millis,
        out: &mut Outbox,
        counters: &mut Counters,
        socket: SocketIndex,
        source: ClientAddr,
        message: &Message<'_>,
    ) -> Result<(), Counter> {
        let mut way = Way {
            egress: socket,
            to: source.0,
        };
        let vantage = self.vantages[usize::from(socket.0)];
        let wish = if message.bytes().len() == HEADER_LEN {
            Ok(Wish::default())
        } else {
            self.read(vantage.is_some(), source, message)
        };
        let wish = match wish {
            Ok(wish) => wish,
            Err(code) => {
                counters.count(Counter::BindingErrors);
                let unknown = &self.unknown;
                let (budget, class) = (&mut self.budget, Class::Error);
                return budget.answer(now, out, way, message, class, |writer| {
                    writer.error_code(code);
                    if code == 420 {
                        writer.unknown_attributes(unknown);
                    }
                });
            }
        };
        if let Some(Vantage { group, place }) = vantage {
            way.egress = group.sockets[place ^ wish.change];
        }
        if let Some(port) = wish.response_port {
            way.to = source.0.with_port(port);
        }
        self.budget
            .answer(now, out, way, message, Class::Success, |writer| {
                if !message.has_magic_cookie() {
                    writer.plain_addr(attr::MAPPED_ADDRESS, source.0);
                    return;
                }
                writer.xor_addr(attr::XOR_MAPPED_ADDRESS, source.0);
                let Some(Vantage { group, place }) = vantage else {
                    return;
                };
                writer.plain_addr(attr::RESPONSE_ORIGIN, group.addrs[place ^ wish.change]);
                writer.plain_addr(attr::OTHER_ADDRESS, group.addrs[place ^ 3]);
                if message.bytes().len() >= ROOM_FOR_MAPPED {
                    writer.plain_addr(attr::MAPPED_ADDRESS, source.0);
                }
                if let Some(len) = wish.padding_len {
                    // Not the outgoing interface's MTU but what the request paid for.
                    writer.attribute(attr::PADDING, &[0; PADDING_MAX][..len.min(PADDING_MAX)]);
                }
            })?;
        counters.count(Counter::Bindings);
        Ok(())
    }

    /// What a request with attributes asks for, or the code of the error. RESPONSE-PORT with PADDING is refused (RFC 5780
    /// section 6.1), and so is a RESPONSE-PORT that only a service would have.
    fn read(
        &mut self,
        discovers: bool,
        source: ClientAddr,
        message: &Message<'_>,
    ) -> Result<Wish, u16> {
        // RFC 3489's clients send CHANGE-REQUEST also when they want no change.
        let is_idle =
            !message.has_magic_cookie() && message.find(attr::CHANGE_REQUEST) == Some(&[0; 4]);
        let knows = |kind| {
            is_known(kind)
                || (discovers && is_discovery(kind))
                || (is_idle && kind == attr::CHANGE_REQUEST)
        };
        if message.unknown_required(knows, &mut self.unknown) > 0 {
            return Err(420);
        }
        let change = match message.find(attr::CHANGE_REQUEST) {
            None => 0,
            Some(&[_, _, _, flags]) => usize::from(flags >> 1 & 3),
            Some(_) => return Err(400),
        };
        let response_port = match message.find(attr::RESPONSE_PORT) {
            None => None,
            // Some count the two bytes of padding and some do not.
            Some(&[high, low] | &[high, low, _, _]) => Some(u16::from_be_bytes([high, low])),
            Some(_) => return Err(400),
        };
        let padding_len = message.find(attr::PADDING).map(<[u8]>::len);
        let is_service = |port| port < RESPONSE_PORT_MIN && port != source.0.port();
        if response_port.is_some_and(|port| is_service(port) || padding_len.is_some()) {
            return Err(400);
        }
        Ok(Wish {
            change,
            response_port,
            padding_len,
        })
    }
}

/// The comprehension-required attributes of RFC 8489, which a Binding request may have and which change nothing here.
const fn is_known(kind: u16) -> bool {
    matches!(
        kind,
        attr::MAPPED_ADDRESS
            | attr::USERNAME
            | attr::MESSAGE_INTEGRITY
            | attr::ERROR_CODE
            | attr::UNKNOWN_ATTRIBUTES
            | attr::REALM
            | attr::NONCE
            | attr::MESSAGE_INTEGRITY_SHA256
            | attr::PASSWORD_ALGORITHM
            | attr::USERHASH
            | attr::XOR_MAPPED_ADDRESS
    )
}

/// The comprehension-required attributes of RFC 5780.
const fn is_discovery(kind: u16) -> bool {
    matches!(
        kind,
        attr::CHANGE_REQUEST | attr::RESPONSE_PORT | attr::PADDING
    )
}
