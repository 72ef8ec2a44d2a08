//! The client side of one TURN allocation over UDP (RFC 8656): one request after the other, repeated until it is answered.
//! Long-term credentials with MD5 and SHA-1, which every server takes. Data are not its business.

use std::collections::VecDeque;
use std::net::SocketAddr;

use waypost_proto::addr::Addr;
use waypost_proto::agent::Credential;
use waypost_proto::time::Millis;
use waypost_proto::wire::stun::{
    Class, Integrity, LongTermKey, Message, MessageWriter, TransactionId, attr, method,
};

/// A request without an answer is sent again after this long, then after twice that, and so on. RFC 8489 section 6.2.1 has 500 ms
/// for paths that nobody knows.
const AGAIN_MS: u64 = 250;
/// So many times in all.
const TRIES: u32 = 7;
/// The nonce may go stale, but not in the request that has just been given it.
const CHALLENGES_MAX: u32 = 3;

/// Something to ask the server for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    /// An allocation.
    Allocate,
    /// A channel to a peer, which permits it as well.
    Bind(u16, SocketAddr),
    /// A permission for a peer.
    Permit(SocketAddr),
    /// The allocation for so many seconds more; 0 gives it back.
    Refresh(u32),
}

impl Ask {
    const fn method(self) -> u16 {
        match self {
            Self::Allocate => method::ALLOCATE,
            Self::Bind(..) => method::CHANNEL_BIND,
            Self::Permit(_) => method::CREATE_PERMISSION,
            Self::Refresh(_) => method::REFRESH,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Allocate => "Allocate",
            Self::Bind(..) => "ChannelBind",
            Self::Permit(_) => "CreatePermission",
            Self::Refresh(_) => "Refresh",
        }
    }
}

/// What has come of the requests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Nothing new.
    None,
    /// One is granted.
    Granted(Ask),
    /// One is not.
    Refused(String),
}

struct Pending {
    id: TransactionId,
    bytes: Vec<u8>,
    again: Millis,
    tries: u32,
    challenges: u32,
}

/// One client.
pub struct TurnClient {
    credential: Option<Credential>,
    /// From the server's challenge.
    realm: Vec<u8>,
    nonce: Vec<u8>,
    key: Option<LongTermKey>,
    /// The first is being asked for, if anything is.
    asks: VecDeque<Ask>,
    pending: Option<Pending>,
    /// Makes transaction ids that differ between clients.
    seed: u64,
    next_id: u32,
    relayed: Option<SocketAddr>,
}

impl TurnClient {
    /// A client that has asked for nothing yet.
    pub const fn new(credential: Option<Credential>, seed: u64) -> Self {
        Self {
            credential,
            realm: Vec::new(),
            nonce: Vec::new(),
            key: None,
            asks: VecDeque::new(),
            pending: None,
            seed,
            next_id: 0,
            relayed: None,
        }
    }

    /// Its relayed transport address, once it has one.
    pub const fn relayed(&self) -> Option<SocketAddr> {
        self.relayed
    }

    /// Whether nothing is being asked for.
    pub fn is_idle(&self) -> bool {
        self.asks.is_empty()
    }

    /// Asks for something when all that was asked before is answered. `send` gets what is to be sent.
    pub fn ask(&mut self, ask: Ask, now: Millis, send: impl FnMut(&[u8])) {
        self.asks.push_back(ask);
        if self.pending.is_none() {
            self.ask_next(now, 0, send);
        }
    }

    /// Takes a STUN message.
    pub fn handle(
        &mut self,
        message: &Message<'_>,
        now: Millis,
        mut send: impl FnMut(&[u8]),
    ) -> Answer {
        let is_response = matches!(message.class(), Class::Success | Class::Error);
        let (Some(&ask), Some(pending)) = (self.asks.front(), &self.pending) else {
            return Answer::None;
        };
        if !is_response || message.transaction_id() != pending.id {
            return Answer::None;
        }
        let challenges = pending.challenges;
        if message.class() == Class::Success {
            if ask == Ask::Allocate {
                match message.find_xor_addr(attr::XOR_RELAYED_ADDRESS) {
                    Some(relayed) => self.relayed = Some(relayed.to_socket_addr()),
                    None => return Answer::Refused("Allocate without a relayed address".into()),
                }
            }
            self.pending = None;
            self.asks.pop_front();
            self.ask_next(now, 0, send);
            return Answer::Granted(ask);
        }
        let code = message.error_code().unwrap_or(0);
        if matches!(code, 401 | 438) && challenges < CHALLENGES_MAX && self.credential.is_some() {
            self.take_challenge(message);
            self.ask_next(now, challenges + 1, &mut send);
            return Answer::None;
        }
        Answer::Refused(match (code, &self.credential) {
            (401, None) => "the server asks for credentials; name one with --user".into(),
            _ => format!("{} was answered {code}", ask.name()),
        })
    }

    /// Sends the request again if it is time to.
    pub fn on_time(&mut self, now: Millis, mut send: impl FnMut(&[u8])) -> Answer {
        let Some(pending) = self.pending.as_mut().filter(|pending| now >= pending.again) else {
            return Answer::None;
        };
        if pending.tries >= TRIES {
            let name = self.asks.front().map_or("a request", |ask| ask.name());
            return Answer::Refused(format!("{name} was not answered"));
        }
        pending.again = now + (AGAIN_MS << pending.tries);
        pending.tries += 1;
        send(&pending.bytes);
        Answer::None
    }

    /// When it is.
    pub fn next_time(&self) -> Option<Millis> {
        self.pending.as_ref().map(|pending| pending.again)
    }

    fn take_challenge(&mut self, message: &Message<'_>) {
        let Some(credential) = &self.credential else {
            return;
        };
        if let Some(nonce) = message.find(attr::NONCE) {
            self.nonce = nonce.to_vec();
        }
        if let Some(realm) = message.find(attr::REALM)
            && (self.key.is_none() || self.realm != realm)
        {
            self.realm = realm.to_vec();
            let realm = String::from_utf8_lossy(realm);
            let key = LongTermKey::md5(&credential.username, &realm, &credential.password);
            self.key = Some(key);
        }
    }

    fn ask_next(&mut self, now: Millis, challenges: u32, mut send: impl FnMut(&[u8])) {
        let Some(&ask) = self.asks.front() else {
            return;
        };
        self.next_id += 1;
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.seed.to_be_bytes());
        id[8..].copy_from_slice(&self.next_id.to_be_bytes());
        let id = TransactionId(id);
        let bytes = self.request(ask, id);
        send(&bytes);
        self.pending = Some(Pending {
            id,
            bytes,
            again: now + AGAIN_MS,
            tries: 1,
            challenges,
        });
    }

    fn request(&self, ask: Ask, id: TransactionId) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        let mut writer = MessageWriter::new(&mut bytes, ask.method(), Class::Request, id);
        match ask {
            // 17 is UDP (RFC 8656 section 18.8).
            Ask::Allocate => writer.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]),
            Ask::Bind(channel, peer) => {
                let [high, low] = channel.to_be_bytes();
                writer
                    .attribute(attr::CHANNEL_NUMBER, &[high, low, 0, 0])
                    .xor_addr(attr::XOR_PEER_ADDRESS, Addr::new(peer))
            }
            Ask::Permit(peer) => writer.xor_addr(attr::XOR_PEER_ADDRESS, Addr::new(peer)),
            Ask::Refresh(secs) => writer.u32(attr::LIFETIME, secs),
        };
        if let (Some(key), Some(credential)) = (&self.key, &self.credential) {
            writer
                .attribute(attr::USERNAME, credential.username.as_bytes())
                .attribute(attr::REALM, &self.realm)
                .attribute(attr::NONCE, &self.nonce)
                .integrity(Integrity::Sha1, key.as_bytes());
        }
        writer.finish();
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> TurnClient {
        let credential = Credential {
            username: "a".into(),
            password: "b".into(),
        };
        TurnClient::new(Some(credential), 7)
    }

    fn answered(
        request: &[u8],
        class: Class,
        fill: impl FnOnce(&mut MessageWriter<'_>),
    ) -> Vec<u8> {
        let request = Message::parse(request).unwrap();
        let mut bytes = Vec::new();
        let mut writer = MessageWriter::answer(&mut bytes, &request, class);
        fill(&mut writer);
        writer.finish();
        bytes
    }

    fn handle(client: &mut TurnClient, answer: &[u8], sent: &mut Vec<Vec<u8>>) -> Answer {
        let message = Message::parse(answer).unwrap();
        client.handle(&message, Millis(0), |bytes| sent.push(bytes.to_vec()))
    }

    #[test]
    fn a_challenge_is_answered_with_the_credential_and_asks_go_one_by_one() {
        let (mut client, mut sent) = (client(), Vec::new());
        let peer = "127.0.0.1:9".parse().unwrap();
        client.ask(Ask::Allocate, Millis(0), |bytes| sent.push(bytes.to_vec()));
        client.ask(Ask::Permit(peer), Millis(0), |_| panic!("one by one"));
        let challenge = answered(&sent[0], Class::Error, |w| {
            w.error_code(401)
                .attribute(attr::REALM, b"r")
                .attribute(attr::NONCE, b"n");
        });
        assert_eq!(handle(&mut client, &challenge, &mut sent), Answer::None);
        let signed = Message::parse(&sent[1]).unwrap();
        let key = LongTermKey::md5("a", "r", "b");
        assert!(signed.verify_integrity(Integrity::Sha1, key.as_bytes()));
        let success = answered(&sent[1], Class::Success, |w| {
            w.xor_addr(attr::XOR_RELAYED_ADDRESS, Addr::new(peer));
        });
        let granted = handle(&mut client, &success, &mut sent);
        assert_eq!(granted, Answer::Granted(Ask::Allocate));
        assert_eq!(client.relayed(), Some(peer));
        assert_eq!(handle(&mut client, &success, &mut sent), Answer::None);
        let next = Message::parse(&sent[2]).unwrap();
        assert_eq!(next.method(), method::CREATE_PERMISSION);
        let success = answered(&sent[2], Class::Success, |_| ());
        handle(&mut client, &success, &mut sent);
        assert!(client.is_idle() && client.next_time().is_none());
    }

    #[test]
    fn a_request_is_repeated_and_then_given_up() {
        let (mut client, mut sent) = (client(), 0);
        client.ask(Ask::Allocate, Millis(0), |_| sent += 1);
        let refused = loop {
            let at = client.next_time().unwrap();
            match client.on_time(at, |_| sent += 1) {
                Answer::None => {}
                answer => break answer,
            }
        };
        assert_eq!(refused, Answer::Refused("Allocate was not answered".into()));
        assert_eq!(sent, TRIES);
    }

    #[test]
    fn wrong_credentials_are_refused_at_last() {
        let (mut client, mut sent) = (client(), Vec::new());
        client.ask(Ask::Allocate, Millis(0), |bytes| sent.push(bytes.to_vec()));
        for _ in 0..CHALLENGES_MAX {
            let challenge = answered(sent.last().unwrap(), Class::Error, |w| {
                w.error_code(401).attribute(attr::REALM, b"r");
            });
            assert_eq!(handle(&mut client, &challenge, &mut sent), Answer::None);
        }
        let last = answered(sent.last().unwrap(), Class::Error, |w| {
            w.error_code(401);
        });
        let refused = Answer::Refused("Allocate was answered 401".into());
        assert_eq!(handle(&mut client, &last, &mut sent), refused);
    }
}
