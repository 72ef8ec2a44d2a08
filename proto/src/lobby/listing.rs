//! LIST: a page of the listed sessions of one application.
//!
//! One shard answers one page; the cursor names the shard and the slot to go on from, so nothing is remembered between
//! pages and no shard waits for another.

use super::seating::told_flags;
use super::session::Session;
use super::{Asked, Lobby, Outcome, Reject, Turn};
use crate::wire::native::{MESSAGE_MAX, attr, code, list_filter, session_flags};
use crate::wire::stun::{AttributeWriter, Class, MessageWriter};

/// Slots that one page looks at.
const SCAN_MAX: usize = 1024;
/// Bytes that a page keeps free for the cursor.
const CURSOR_LEN: usize = 12;

/// Where a list goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ListCursor {
    /// The shard that answers the next page.
    pub shard: u16,
    /// The slot in its sessions to begin with.
    slot: u32,
}

impl ListCursor {
    /// Reads the wire form. A cursor that nobody issued leads to some page, which is harmless.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self {
            shard: u16::from_be_bytes([bytes[0], bytes[1]]),
            slot: u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }

    fn to_bytes(self) -> [u8; 8] {
        let [s0, s1] = self.shard.to_be_bytes();
        let [a, b, c, d] = self.slot.to_be_bytes();
        [s0, s1, 0, 0, a, b, c, d]
    }
}

impl Lobby {
    pub(super) fn handle_list(&mut self, turn: &mut Turn<'_>, asked: Asked<'_>) -> Outcome {
        let application = asked.fields.application.ok_or(Reject(code::BAD_REQUEST))?;
        let filter = asked.fields.list_filter.unwrap_or(0);
        let prefix = asked.fields.name.unwrap_or("");
        let cursor = asked
            .fields
            .list_cursor
            .map(ListCursor::from_bytes)
            .unwrap_or_default();
        let start = turn.out.bytes.len();
        MessageWriter::answer(&mut turn.out.bytes, asked.message, Class::Success);
        let first = cursor.slot as usize;
        let end = self.sessions.slots().min(first.saturating_add(SCAN_MAX));
        let mut next = end;
        for slot in first..end {
            let Some(session) = u32::try_from(slot)
                .ok()
                .and_then(|slot| self.sessions.get(slot))
                .filter(|session| matches(session, application, prefix, filter))
            else {
                continue;
            };
            let before = turn.out.bytes.len();
            write_entry(&mut AttributeWriter::new(&mut turn.out.bytes), session);
            if turn.out.bytes.len() - start + CURSOR_LEN > MESSAGE_MAX {
                turn.out.bytes.truncate(before);
                next = slot;
                break;
            }
        }
        let more = if next < self.sessions.slots() {
            Some(ListCursor {
                shard: self.shard,
                slot: u32::try_from(next).unwrap_or(u32::MAX),
            })
        } else if self.shard + 1 < self.shard_count {
            Some(ListCursor {
                shard: self.shard + 1,
                slot: 0,
            })
        } else {
            None
        };
        let mut writer = MessageWriter::resume(&mut turn.out.bytes, start);
        if let Some(more) = more {
            writer.attribute(attr::LIST_CURSOR, &more.to_bytes());
        }
        writer.finish();
        turn.out
            .transmit(asked.origin.socket, asked.origin.addr.addr(), start);
        Ok(())
    }
}

fn matches(session: &Session, application: &str, prefix: &str, filter: u32) -> bool {
    session.flags & session_flags::LISTED != 0
        && session.forming.is_none()
        && *session.application == *application
        && session.name.as_deref().unwrap_or("").starts_with(prefix)
        && (filter & list_filter::HAS_ROOM == 0 || session.free_seat().is_some())
        && (filter & list_filter::UNLOCKED == 0 || session.flags & session_flags::LOCKED == 0)
        && (filter & list_filter::NO_PASSWORD == 0 || !session.has_password)
}

fn write_entry(out: &mut AttributeWriter<'_>, session: &Session) {
    let mut code_text = [0; 16];
    let code_text = super::seating::text_of(&mut code_text, session.code);
    let members = u32::try_from(session.member_count()).unwrap_or(u32::MAX);
    out.list(attr::LIST_ENTRY, |out| {
        out.attribute(attr::JOIN_CODE, code_text)
            .u32(attr::MAX_MEMBERS, u32::from(session.max_members))
            .u32(attr::MEMBER_COUNT, members)
            .u32(attr::SESSION_FLAGS, told_flags(session))
            .attribute(attr::METADATA, &session.metadata);
        if let Some(name) = &session.name {
            out.attribute(attr::SESSION_NAME, name.as_bytes());
        }
    });
}
