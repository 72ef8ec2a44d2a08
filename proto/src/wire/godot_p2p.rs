//! GodotP2P's datagrams: one JSON object each, with a tag over it.
//!
//! The tag (`__hash-string`) is the SHA-256, in lower-case hexadecimal, of the sorted keys of the object joined, and then its
//! sorted string values joined. The tag itself is left out, the sender's password is put in. Values that are not strings
//! count for nothing, so how they are spelled and spaced does not matter.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::addr::Addr;

const TAG: &str = "__hash-string";
const PASSWORD: &str = "password";

/// A string that is copied only if it has escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

/// A key and its value.
#[derive(Debug)]
struct Entry<'a> {
    key: Cow<'a, str>,
    /// The value as it was written.
    json: &'a str,
    /// What it says, if it is a string.
    text: Option<Cow<'a, str>>,
}

/// A datagram with everything that every one must have.
#[derive(Debug)]
pub struct Packet<'a> {
    /// In the order of their keys, which are distinct.
    entries: Vec<Entry<'a>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Packet<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Packet<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Packet<'de>, A::Error> {
                let mut entries: Vec<Entry<'de>> = Vec::with_capacity(12);
                while let Some((Text(key), raw)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    let json = raw.get();
                    let text = if json.starts_with('"') {
                        let text: Text<'de> =
                            serde_json::from_str(json).map_err(de::Error::custom)?;
                        Some(text.0)
                    } else {
                        None
                    };
                    entries.push(Entry { key, json, text });
                }
                entries.sort_by(|a, b| a.key.cmp(&b.key));
                // Of a key that comes again the last value counts.
                entries.dedup_by(|later, kept| {
                    let is_same = later.key == kept.key;
                    if is_same {
                        std::mem::swap(later, kept);
                    }
                    is_same
                });
                Ok(Packet { entries })
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

impl<'a> Packet<'a> {
    /// Reads a datagram; `None` if it is not JSON, no object, or has no type, sender or tag. The sender may be null.
    #[must_use]
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let packet: Self = serde_json::from_slice(datagram).ok()?;
        packet.text("__type")?;
        packet.text(TAG)?;
        let sender = packet.entry("__sender-name")?;
        (sender.text.is_some() || sender.json == "null").then_some(packet)
    }

    fn entry(&self, key: &str) -> Option<&Entry<'a>> {
        let entries = &self.entries;
        let place = entries.binary_search_by(|entry| entry.key.as_ref().cmp(key));
        Some(&entries[place.ok()?])
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.text("__type").unwrap_or_default()
    }

    /// Who sent it; nobody outside of a session.
    #[must_use]
    pub fn sender(&self) -> Option<&str> {
        self.text("__sender-name")
    }

    /// A string.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.entry(key)?.text.as_deref()
    }

    /// A value of any kind, as it was written.
    #[must_use]
    pub fn json(&self, key: &str) -> Option<&'a str> {
        Some(self.entry(key)?.json)
    }

    /// A number.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<f64> {
        serde_json::from_str(self.entry(key)?.json).ok()
    }

    /// Whether its tag is right under this password.
    #[must_use]
    pub fn verify(&self, password: &str) -> bool {
        let mut tagged: Vec<(&str, Option<&str>)> = Vec::with_capacity(self.entries.len() + 1);
        let others = self.entries.iter();
        let others = others.filter(|entry| entry.key != TAG && entry.key != PASSWORD);
        tagged.extend(others.map(|entry| (entry.key.as_ref(), entry.text.as_deref())));
        tagged.push((PASSWORD, Some(password)));
        let wanted = tag(&mut tagged);
        let given = self.text(TAG).unwrap_or_default();
        given.as_bytes().ct_eq(&wanted).into()
    }
}

/// The tag of an object with these keys and string values, in lower-case hexadecimal.
fn tag(fields: &mut [(&str, Option<&str>)]) -> [u8; 64] {
    // Code points and their UTF-8 have the same order.
    fields.sort_unstable_by_key(|&(key, _)| key);
    let mut hash = Sha256::new();
    for (key, _) in &*fields {
        hash.update(key);
    }
    fields.sort_unstable_by_key(|&(_, value)| value);
    for value in fields.iter().filter_map(|&(_, value)| value) {
        hash.update(value);
    }
    let mut text = [0; 64];
    for (byte, letters) in hash.finalize().iter().zip(text.chunks_exact_mut(2)) {
        letters[0] = HEX[usize::from(byte >> 4)];
        letters[1] = HEX[usize::from(byte & 15)];
    }
    text
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Something that is told about a game that is listed.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// The server player's name.
    pub name: &'a str,
    /// Whether joining takes a password, as JSON.
    pub password_required: &'a str,
}

/// A field of an answer.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    /// A string.
    Text(&'a str),
    /// An address as an array of text and number.
    Address(Addr),
    /// JSON as it came from a client.
    Json(&'a str),
    /// A list of games.
    Games(&'a [Listed<'a>]),
}

/// An answer of the server.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// What it is.
    pub kind: &'a str,
    /// Who it is for.
    pub to_name: Option<&'a str>,
    /// Where that is.
    pub to: Addr,
    /// That client's password, which the tag is made with.
    pub password: &'a str,
    /// What it says.
    pub fields: &'a [(&'a str, Field<'a>)],
}

impl Answer<'_> {
    /// Writes the datagram.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut tagged = vec![
            ("__type", Some(self.kind)),
            ("__sender-name", None),
            ("__destination-name", self.to_name),
            ("__destination-address", None),
            (PASSWORD, Some(self.password)),
        ];
        for (key, field) in self.fields {
            let value = match field {
                Field::Text(text) => Some(*text),
                _ => None,
            };
            tagged.push((key, value));
        }
        let tag = tag(&mut tagged);
        out.extend_from_slice(b"{\"__type\": ");
        write_text(out, self.kind);
        out.extend_from_slice(b", \"__sender-name\": null, \"__destination-name\": ");
        match self.to_name {
            Some(name) => write_text(out, name),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b", \"__destination-address\": ");
        write_address(out, self.to);
        for (key, field) in self.fields {
            out.extend_from_slice(b", ");
            write_text(out, key);
            out.extend_from_slice(b": ");
            match field {
                Field::Text(text) => write_text(out, text),
                Field::Address(addr) => write_address(out, *addr),
                Field::Json(json) => out.extend_from_slice(json.as_bytes()),
                Field::Games(games) => write_games(out, games),
            }
        }
        out.extend_from_slice(b", \"__hash-string\": \"");
        out.extend_from_slice(&tag);
        out.extend_from_slice(b"\"}");
    }
}

fn write_games(out: &mut Vec<u8>, games: &[Listed<'_>]) {
    out.push(b'[');
    for (i, game) in games.iter().enumerate() {
        if i > 0 {
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(b"{\"name\": ");
        write_text(out, game.name);
        out.extend_from_slice(b", \"password-required\": ");
        out.extend_from_slice(game.password_required.as_bytes());
        out.push(b'}');
    }
    out.push(b']');
}

fn write_address(out: &mut Vec<u8>, addr: Addr) {
    use std::io::Write as _;
    write!(out, "[\"{}\", {}]", addr.ip(), addr.port()).expect("memory takes everything");
}

/// A JSON string in ASCII.
fn write_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            ' '..='~' => out.push(c as u8),
            _ => {
                for &mut unit in c.encode_utf16(&mut [0; 2]) {
                    let digits = [12, 8, 4, 0].map(|shift| HEX[usize::from(unit >> shift & 15)]);
                    out.extend_from_slice(b"\\u");
                    out.extend_from_slice(&digits);
                }
            }
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addr() -> Addr {
        Addr::new("192.0.2.1:5160".parse().unwrap())
    }

    /// SHA-256 of the keys and then the values of a packet with password `pw`, both sorted by hand.
    #[test]
    fn the_tag_of_a_known_packet() {
        let digest = Sha256::digest(
            "__destination-address__destination-name__sender-name__typepasswordserver-name\
             Ann_HANDSHAKE_SERVERgamepwrequesting-to-join-server",
        );
        let tag: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let compact = format!(
            r#"{{"__destination-address":["192.0.2.9",5160],"__destination-name":"_HANDSHAKE_SERVER","__hash-string":"{tag}","__sender-name":"Ann","__type":"requesting-to-join-server","password":"pw","server-name":"game"}}"#
        );
        let spaced = format!(
            r#"{{ "server-name": "\u0067ame", "__type": "requesting-to-join-server", "__sender-name": "Ann",
               "__hash-string": "{tag}", "__destination-name": "_HANDSHAKE_SERVER", "__destination-address": null}}"#
        );
        for text in [compact, spaced] {
            let packet = Packet::parse(text.as_bytes()).unwrap();
            assert!(packet.verify("pw"), "{text}");
            assert!(!packet.verify("other"));
        }
    }

    #[test]
    fn what_lacks_something_is_nothing() {
        for text in [
            "",
            "[]",
            "null",
            "{}",
            r#"{"__type":"a","__sender-name":null}"#,
            r#"{"__type":"a","__hash-string":""}"#,
            r#"{"__sender-name":null,"__hash-string":""}"#,
            r#"{"__type":1,"__sender-name":null,"__hash-string":""}"#,
            r#"{"__type":"a","__sender-name":7,"__hash-string":""}"#,
            r#"{"__type":"a","__sender-name":null,"__hash-string":""} x"#,
        ] {
            assert!(Packet::parse(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn the_last_of_two_values_counts() {
        let text =
            r#"{"b":1,"__type":"a","b":"x","__sender-name":null,"__hash-string":"","b":[2]}"#;
        let packet = Packet::parse(text.as_bytes()).unwrap();
        assert_eq!((packet.json("b"), packet.text("b")), (Some("[2]"), None));
        assert_eq!((packet.number("b"), packet.json("c")), (None, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decided(datagram in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Packet::parse(&datagram);
        }

        #[test]
        fn nearly_packets_are_decided(text in r#"[\[{]{0,3}("(__type|__sender-name|__hash-string|password|x)":("a"|null|1e9|\[\]|\{\}|"\\ud800"),?){0,6}[\]}]{0,3}"#) {
            if let Some(packet) = Packet::parse(text.as_bytes()) {
                prop_assert!(!packet.verify("pw"));
            }
        }

        #[test]
        fn answers_are_read_back(name in ".{0,20}", message in ".{0,40}", password in "[a-zA-Z0-9]{10}") {
            let games = [Listed { name: &name, password_required: "true" }];
            let answer = Answer {
                kind: "providing-server-list",
                to_name: Some(&name),
                to: addr(),
                password: &password,
                fields: &[
                    ("message", Field::Text(&message)),
                    ("servers", Field::Games(&games)),
                    ("local-address", Field::Json("[\"10.0.0.1\",7]")),
                ],
            };
            let mut out = Vec::new();
            answer.write(&mut out);
            prop_assert!(out.is_ascii());
            let packet = Packet::parse(&out).unwrap();
            prop_assert!(packet.verify(&password));
            prop_assert!(!packet.verify("another"));
            prop_assert_eq!(packet.text("message"), Some(message.as_str()));
            prop_assert_eq!(packet.text("__destination-name"), Some(name.as_str()));
            prop_assert_eq!(packet.sender(), None);
            let json = |key| serde_json::from_str(packet.json(key).unwrap()).unwrap();
            let address: serde_json::Value = json("__destination-address");
            prop_assert_eq!(address, serde_json::json!(["192.0.2.1", 5160]));
            let servers: serde_json::Value = json("servers");
            prop_assert_eq!(servers, serde_json::json!([{"name": name, "password-required": true}]));
        }
    }
}
