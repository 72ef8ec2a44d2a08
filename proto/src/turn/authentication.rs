//! Authentication of requests (RFC 8489 section 9.2.4), and the answers to those that are not authenticated.

use super::credential::{PASSWORD_ALGORITHMS, Refused};
use super::handlers::is_known;
use super::{Reject, Reply, Request, Step, TurnService};
use crate::addr::ClientAddr;
use crate::forwarding::SocketIndex;
use crate::stats::Counter;
use crate::unproven::Way;
use crate::wire::stun::{Class, Message, attr, method};

impl TurnService {
    /// Serves a request of one of TURN's methods.
    pub fn handle_request(
        &mut self,
        step: &mut Step<'_>,
        socket: SocketIndex,
        source: ClientAddr,
        message: &Message<'_>,
    ) -> Result<(), Counter> {
        if !message.has_magic_cookie() {
            return Err(Counter::DropParse);
        }
        let way = Way {
            egress: socket,
            to: source.0,
        };
        if self.judge.admits_nobody() {
            return self.refuse(step, way, message, 403);
        }
        match self.judge.check_form(message) {
            Ok(()) => {}
            Err(Refused::BadRequest) => return self.refuse(step, way, message, 400),
            Err(_) => return self.challenge(step, way, message, 401),
        }
        let nonce = message.find(attr::NONCE).unwrap_or_default();
        if step
            .nonces
            .verify_turn(step.unix_secs, source, nonce)
            .is_err()
        {
            return self.challenge(step, way, message, 438);
        }
        let authenticated = match self.judge.authenticate(step.unix_secs, message) {
            Ok(authenticated) => authenticated,
            Err(Refused::BadRequest) => return self.refuse(step, way, message, 400),
            Err(_) => {
                step.counters.count(Counter::TurnCredentialFailures);
                return self.challenge(step, way, message, 401);
            }
        };
        step.counters.count(Counter::TurnRequests);
        let request = Request {
            message,
            source,
            user: self.seal.user(authenticated.username.as_ref()),
            person: self.seal.person(authenticated.person.as_ref()),
            reply: Reply {
                socket,
                to: source.0,
                id: message.transaction_id(),
                method: message.method(),
                integrity: authenticated.integrity,
                key: authenticated.key,
                has_fingerprint: message.has_fingerprint(),
            },
        };
        let mut unknown = std::mem::take(&mut self.unknown);
        if message.unknown_required(is_known, &mut unknown) > 0 {
            step.counters.count(Counter::TurnErrors);
            request.reply.send(step, Class::Error, |writer| {
                writer.error_code(420).unknown_attributes(&unknown);
            });
        } else if let Err(reject) = self.dispatch(step, &request) {
            self.reject(step, &request.reply, reject);
        }
        self.unknown = unknown;
        Ok(())
    }

    /// Answers an authenticated request with an error; for want of room with another server's address, if there is one.
    pub(super) fn reject(&self, step: &mut Step<'_>, reply: &Reply, reject: Reject) {
        let config = &self.config;
        let (servers, domain) = if self.speak_tls[usize::from(reply.socket.0)] {
            let domain = config.alternate_domain.as_deref();
            (&config.alternate_tls_servers, domain)
        } else {
            (&config.alternate_servers, None)
        };
        let servers = servers.iter().copied();
        let (own, other): (Vec<_>, Vec<_>) =
            servers.partition(|at| at.is_ipv4() == reply.to.is_ipv4());
        if reply.method == method::ALLOCATE && reject.0 == 508 && !own.is_empty() {
            reply.redirect(step, own.into_iter().chain(other), domain);
        } else {
            reply.error(step, reject);
        }
    }

    /// Asks for a credential under a new nonce (RFC 8489 section 9.2.4).
    fn challenge(
        &mut self,
        step: &mut Step<'_>,
        way: Way,
        message: &Message<'_>,
        code: u16,
    ) -> Result<(), Counter> {
        let nonce = step.nonces.issue_turn(step.unix_secs, ClientAddr(way.to));
        let realm = self.judge.realm();
        let class = Class::Error;
        self.budget
            .answer(step.now, step.out, way, message, class, |writer| {
                writer
                    .error_code(code)
                    .attribute(attr::REALM, realm.as_bytes())
                    .attribute(attr::NONCE, &nonce)
                    .attribute(attr::PASSWORD_ALGORITHMS, &PASSWORD_ALGORITHMS);
            })
            .inspect(|()| step.counters.count(Counter::UnprovenReplies))
    }

    /// Answers a request that is not authenticated with an error and nothing else.
    fn refuse(
        &mut self,
        step: &mut Step<'_>,
        way: Way,
        message: &Message<'_>,
        code: u16,
    ) -> Result<(), Counter> {
        let class = Class::Error;
        self.budget
            .answer(step.now, step.out, way, message, class, |writer| {
                writer.error_code(code);
            })
    }
}
