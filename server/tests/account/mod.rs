//! A TURN account, and requests of whoever has it: the challenge, then the request with credentials (RFC 8489 section 9.2).

use waypost_proto::wire::stun::{
    Class, Integrity, LongTermKey, Message, MessageWriter, TransactionId, attr,
};

/// What servers have as realm unless told otherwise.
const REALM: &str = "waypost";
/// The account, as a server's option wants it.
pub const USER: &str = "ann:ann's own password";

/// One client's use of the account.
#[derive(Default)]
pub struct Account {
    nonce: Vec<u8>,
    last_id: u8,
}

impl Account {
    fn key() -> LongTermKey {
        LongTermKey::md5("ann", REALM, "ann's own password")
    }

    /// Whether a challenge has come, so that requests carry credentials.
    pub fn is_challenged(&self) -> bool {
        !self.nonce.is_empty()
    }

    /// The next request.
    pub fn write(&mut self, method: u16, fill: &dyn Fn(&mut MessageWriter<'_>)) -> Vec<u8> {
        self.last_id += 1;
        let mut out = Vec::new();
        let id = TransactionId([self.last_id; 12]);
        let mut writer = MessageWriter::new(&mut out, method, Class::Request, id);
        fill(&mut writer);
        if self.is_challenged() {
            writer
                .attribute(attr::USERNAME, b"ann")
                .attribute(attr::REALM, REALM.as_bytes())
                .attribute(attr::NONCE, &self.nonce)
                .integrity(Integrity::Sha1, Self::key().as_bytes());
        }
        writer.finish();
        out
    }

    /// What became of the last request: a success, or the code of an error. `None` if the answer is a challenge, after which it is
    /// to be made again.
    pub fn read(&mut self, answer: &[u8]) -> Option<Result<(), u16>> {
        let answer = Message::parse(answer).unwrap();
        assert_eq!(answer.transaction_id(), TransactionId([self.last_id; 12]));
        match answer.error_code() {
            Some(401) => {
                self.nonce = answer.find(attr::NONCE).unwrap().to_vec();
                None
            }
            Some(code) => Some(Err(code)),
            None => {
                assert!(answer.verify_integrity(Integrity::Sha1, Self::key().as_bytes()));
                Some(Ok(()))
            }
        }
    }
}
