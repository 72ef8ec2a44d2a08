//! A session over TURN (RFC 8656): allocations, a way to each other member, and what was allocated given back at the end. In
//! `pairs` all members are clients; in `peer` the first is, and the others are plain sockets. Works with any server.

use std::net::SocketAddr;

use waypost_proto::addr::Addr;
use waypost_proto::time::Millis;
use waypost_proto::wire::channel_data;
use waypost_proto::wire::stun::{Class, Message, MessageWriter, TransactionId, attr, method};

use super::turn_client::{Answer, Ask, TurnClient};
use super::{Heard, Kit, Outbox, Session, Step, TurnFraming, TurnMode};
use crate::clock::Now;

/// Permissions last 300 s (RFC 8656 section 9), channels and allocations longer: all are renewed this often, milliseconds.
const RENEW_MS: u64 = 200_000;
/// What a client asks for on renewal, seconds (RFC 8656 section 3.2).
const LIFETIME_SECS: u32 = 600;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Allocating,
    Connecting,
    Open,
    Closing,
    Over,
}

/// One session.
pub struct TurnSession {
    server: SocketAddr,
    framing: TurnFraming,
    /// By member; the members beyond are plain sockets.
    clients: Vec<TurnClient>,
    /// What a member is reached at: its relayed address, or its socket's.
    addresses: Vec<SocketAddr>,
    stage: Stage,
    asked_ns: u64,
    renew: Vec<Millis>,
    indications: u64,
    seed: u64,
}

impl TurnSession {
    /// A session of members whose sockets have these addresses.
    pub fn new(kit: &Kit, members: &[SocketAddr], seed: u64) -> Self {
        let clients = match kit.turn_mode {
            TurnMode::Pairs => members.len(),
            TurnMode::Peer => 1,
        };
        let client = |m: usize| TurnClient::new(kit.credential.clone(), seed ^ (m as u64) << 56);
        Self {
            server: kit.server,
            framing: kit.turn_framing,
            clients: (0..clients).map(client).collect(),
            addresses: members.to_vec(),
            stage: Stage::Allocating,
            asked_ns: 0,
            renew: vec![Millis(u64::MAX); clients],
            indications: 0,
            seed,
        }
    }

    fn ask(&mut self, m: usize, ask: Ask, now: Now, out: &mut Outbox) {
        let server = self.server;
        self.clients[m].ask(ask, now.millis(), |bytes| out.send(m, server, bytes));
    }

    /// Asks for the ways from a client to all others.
    fn ask_ways(&mut self, m: usize, now: Now, out: &mut Outbox) {
        for to in (0..self.addresses.len()).filter(|to| *to != m) {
            let address = self.addresses[to];
            let ask = match self.framing {
                TurnFraming::Channel => Ask::Bind(channel_of(to), address),
                TurnFraming::Indication => Ask::Permit(address),
            };
            self.ask(m, ask, now, out);
        }
    }

    fn take(&mut self, m: usize, answer: Answer, now: Now, out: &mut Outbox) {
        match answer {
            Answer::None => return,
            Answer::Refused(reason) => {
                if self.stage != Stage::Over {
                    self.stage = Stage::Over;
                    out.fail(reason);
                }
                return;
            }
            Answer::Granted(Ask::Allocate) => {
                if let Some(relayed) = self.clients[m].relayed() {
                    self.addresses[m] = relayed;
                }
                let asked_ns = self.asked_ns;
                out.step(match m {
                    0 => Step::Hosted(asked_ns),
                    _ => Step::Joined(asked_ns),
                });
            }
            Answer::Granted(_) => {}
        }
        if !self.clients.iter().all(TurnClient::is_idle) {
            return;
        }
        match self.stage {
            Stage::Allocating => {
                self.stage = Stage::Connecting;
                for m in 0..self.clients.len() {
                    self.ask_ways(m, now, out);
                }
                out.touches_all = true;
            }
            Stage::Connecting => {
                self.stage = Stage::Open;
                self.renew.fill(now.millis() + RENEW_MS);
                out.touches_all = true;
                out.step(Step::Open);
            }
            Stage::Closing => {
                self.stage = Stage::Over;
                out.step(Step::Closed);
            }
            Stage::Open | Stage::Over => {}
        }
    }

    /// What a plain socket has received.
    fn hear_plain(&self, from: SocketAddr, len: usize) -> Heard {
        let sender = self.clients.iter().position(|c| c.relayed() == Some(from));
        sender.map_or(Heard::Refused, |from| Heard::Data {
            from,
            range: 0..len,
        })
    }
}

impl Session for TurnSession {
    fn begin(&mut self, asked_ns: u64, now: Now, out: &mut Outbox) {
        self.asked_ns = asked_ns;
        for m in 0..self.clients.len() {
            self.ask(m, Ask::Allocate, now, out);
        }
        out.touches_all = true;
    }

    fn receive(
        &mut self,
        m: usize,
        now: Now,
        from: SocketAddr,
        bytes: &[u8],
        out: &mut Outbox,
    ) -> Heard {
        if m >= self.clients.len() {
            return self.hear_plain(from, bytes.len());
        }
        if from != self.server {
            return Heard::Refused;
        }
        if let Some(data) = channel_data::parse(bytes) {
            let sender = usize::from(data.channel.get() - channel_data::ChannelNumber::MIN);
            if sender >= self.addresses.len() || sender == m {
                return Heard::Refused;
            }
            let start = channel_data::HEADER_LEN;
            let range = start..start + data.data.len();
            return Heard::Data {
                from: sender,
                range,
            };
        }
        let Ok(message) = Message::parse(bytes) else {
            return Heard::Refused;
        };
        if message.class() == Class::Indication {
            let peer = message.find_xor_addr(attr::XOR_PEER_ADDRESS);
            let data = message.find(attr::DATA);
            let (Some(peer), Some(data), method::DATA) = (peer, data, message.method()) else {
                return Heard::Control;
            };
            let peer = peer.to_socket_addr();
            let Some(sender) = self.addresses.iter().position(|a| *a == peer) else {
                return Heard::Refused;
            };
            // The value is a part of `bytes`.
            let start = data.as_ptr().addr() - bytes.as_ptr().addr();
            return Heard::Data {
                from: sender,
                range: start..start + data.len(),
            };
        }
        let server = self.server;
        let answer = self.clients[m].handle(&message, now.millis(), |bytes| {
            out.send(m, server, bytes);
        });
        self.take(m, answer, now, out);
        Heard::Control
    }

    fn on_time(&mut self, m: usize, now: Now, out: &mut Outbox) {
        let Some(client) = self.clients.get_mut(m) else {
            return;
        };
        let server = self.server;
        let answer = client.on_time(now.millis(), |bytes| out.send(m, server, bytes));
        if self.stage == Stage::Open && now.millis() >= self.renew[m] {
            self.renew[m] = now.millis() + RENEW_MS;
            self.ask(m, Ask::Refresh(LIFETIME_SECS), now, out);
            self.ask_ways(m, now, out);
        }
        self.take(m, answer, now, out);
    }

    fn next_time(&self, m: usize) -> Option<Millis> {
        let client = self.clients.get(m)?;
        let renew = (self.stage == Stage::Open).then(|| self.renew[m]);
        client.next_time().into_iter().chain(renew).min()
    }

    fn frame(
        &mut self,
        _now: Now,
        from: usize,
        to: usize,
        data: &[u8],
        frame: &mut Vec<u8>,
    ) -> Option<SocketAddr> {
        frame.clear();
        if from >= self.clients.len() {
            frame.extend_from_slice(data);
            return self.clients.get(to)?.relayed();
        }
        match self.framing {
            TurnFraming::Channel => {
                let channel = channel_data::ChannelNumber::new(channel_of(to))?;
                frame.extend_from_slice(&channel_data::header(channel, data.len()));
                frame.extend_from_slice(data);
            }
            TurnFraming::Indication => {
                self.indications += 1;
                let mut id = [0; 12];
                id[..4].copy_from_slice(&(self.seed as u32).to_be_bytes());
                id[4..].copy_from_slice(&self.indications.to_be_bytes());
                let id = TransactionId(id);
                MessageWriter::new(frame, method::SEND, Class::Indication, id)
                    .xor_addr(attr::XOR_PEER_ADDRESS, Addr::new(self.addresses[to]))
                    .attribute(attr::DATA, data)
                    .finish();
            }
        }
        Some(self.server)
    }

    fn close(&mut self, now: Now, out: &mut Outbox) {
        self.stage = Stage::Closing;
        for m in 0..self.clients.len() {
            self.ask(m, Ask::Refresh(0), now, out);
        }
        out.touches_all = true;
    }
}

/// The channel by which a client addresses a member.
fn channel_of(member: usize) -> u16 {
    let member = u16::try_from(member).expect("at most 255 members");
    channel_data::ChannelNumber::MIN + member
}
