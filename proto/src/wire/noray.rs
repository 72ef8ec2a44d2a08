//! noray: commands on a TCP stream, one on each line. Lines end with LF, CRLF or a lone CR; what this server writes ends with
//! LF, because clients know nothing else. The newer framing of noray, trimsock, is understood too: words in quotes, in which
//! line ends are bytes like others, escapes with a backslash, commands with an id (`name?id`), and raw commands, a CR before
//! `name length` and then so many bytes. A quote within a word is a byte like others, because the older framing knows no
//! quotes: who has mistyped one is still heard. Interprets no command.

use std::borrow::Cow;

/// Longest line, and longest data of a raw command, in bytes. What is longer is dropped as a whole.
pub const LINE_MAX: usize = 16_384;

/// Room above this is given back when the line that needed it is complete, in bytes.
const ROOM_KEPT: usize = 256;

const LF: u8 = b'\n';
const CR: u8 = b'\r';

/// A command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command<'a> {
    /// What stands before the first space, without an id.
    pub name: &'a [u8],
    /// What follows a `?` in the name: the client wants to be told of a failure.
    pub id: Option<&'a [u8]>,
    /// What stands behind the first space, as it is.
    pub data: &'a [u8],
}

impl<'a> Command<'a> {
    fn parse(line: &'a [u8]) -> Self {
        let (name, data) = split(line);
        Self::new(name, data)
    }

    fn new(name: &'a [u8], data: &'a [u8]) -> Self {
        let (name, id) = match name.iter().position(|&byte| byte == b'?') {
            Some(at) => (&name[..at], Some(&name[at + 1..])),
            None => (name, None),
        };
        Self { name, id, data }
    }

    /// The data without the quotes around its words, and with `\n`, `\r`, `\"` and `\\` resolved.
    #[must_use]
    pub fn unquoted(&self) -> Cow<'a, [u8]> {
        let mut rest = self.data;
        if !rest.iter().any(|&byte| matches!(byte, b'"' | b'\\')) {
            return Cow::Borrowed(rest);
        }
        let mut text = Vec::with_capacity(rest.len());
        let mut is_word_start = true;
        while let Some((&byte, behind)) = rest.split_first() {
            if is_word_start && let Some((inner, behind)) = split_quoted(rest) {
                unescape(&mut text, inner);
                rest = behind;
                is_word_start = false;
                continue;
            }
            let taken = if byte == b'\\' { rest.len().min(2) } else { 1 };
            unescape(&mut text, &rest[..taken]);
            is_word_start = byte == b' ';
            rest = if taken == 1 { behind } else { &rest[taken..] };
        }
        Cow::Owned(text)
    }
}

/// What stands before the first space, or within the quotes that a line begins with, and what stands behind the space.
fn split(line: &[u8]) -> (&[u8], &[u8]) {
    if let Some((name, behind)) = split_quoted(line)
        && matches!(behind.first(), None | Some(b' '))
    {
        return (name, behind.get(1..).unwrap_or_default());
    }
    match line.iter().position(|&byte| byte == b' ') {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => (line, &[]),
    }
}

/// What stands within the quotes that `text` begins with, and behind them.
fn split_quoted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let inner = text.strip_prefix(b"\"")?;
    let mut place = Place::Quoted;
    let end = inner.iter().position(|&byte| {
        place.ends_line(byte);
        place == Place::Word
    })?;
    Some((&inner[..end], &inner[end + 1..]))
}

fn unescape(out: &mut Vec<u8>, text: &[u8]) {
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => LF,
                Some(b'r') => CR,
                Some(&other) => other,
                None => byte,
            },
            other => other,
        });
    }
}

/// Writes `text` in quotes, so that it is one word on one line.
pub fn write_quoted(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for &byte in text {
        match byte {
            LF => out.extend_from_slice(b"\\n"),
            CR => out.extend_from_slice(b"\\r"),
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            other => out.push(other),
        }
    }
    out.push(b'"');
}

/// Where in a line the reader is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Place {
    /// At the beginning of the line or behind a space, where a quote opens.
    #[default]
    WordStart,
    Word,
    /// In quotes, where a line end is none.
    Quoted,
    /// In quotes, behind a backslash.
    Escaped,
}

impl Place {
    /// Goes on by one byte; true if it ends the line.
    fn ends_line(&mut self, byte: u8) -> bool {
        let (next, ends) = match (*self, byte) {
            (Self::Quoted, b'\\') => (Self::Escaped, false),
            (Self::Quoted, b'"') => (Self::Word, false),
            (Self::Quoted | Self::Escaped, _) => (Self::Quoted, false),
            (_, LF | CR) => (Self::WordStart, true),
            (Self::WordStart, b'"') => (Self::Quoted, false),
            (_, b' ') => (Self::WordStart, false),
            _ => (Self::Word, false),
        };
        *self = next;
        ends
    }
}

/// Cuts one stream into commands.
#[derive(Debug, Default)]
pub struct LineReader {
    /// The beginning of a line, or of a raw command's name and data, whose end has not come.
    partial: Vec<u8>,
    place: Place,
    /// The last byte was a CR that ended a line: an LF belongs to it.
    after_cr: bool,
    /// This line began with a CR.
    marked: bool,
    /// The rest of a line that was too long is skipped.
    overlong: bool,
    /// A raw command: how long its name is, and its data.
    raw: Option<(usize, usize)>,
}

impl LineReader {
    /// Bytes that are kept of what is not complete: at most [`LINE_MAX`] twice.
    #[must_use]
    pub const fn buffered(&self) -> usize {
        self.partial.len()
    }

    /// Takes in what came next and passes on each command that is complete. Empty lines are none.
    pub fn feed(&mut self, mut input: &[u8], mut each: impl FnMut(Command<'_>)) {
        while let Some(&first) = input.first() {
            if let Some((name_len, data_len)) = self.raw {
                let wanted = name_len + data_len - self.partial.len();
                let (taken, rest) = input.split_at(wanted.min(input.len()));
                self.partial.extend_from_slice(taken);
                input = rest;
                if taken.len() == wanted {
                    let (name, data) = self.partial.split_at(name_len);
                    each(Command::new(name, data));
                    self.raw = None;
                    // The line feed behind the data ends nothing more.
                    self.after_cr = true;
                    self.forget_partial();
                }
                continue;
            }
            if std::mem::take(&mut self.after_cr) {
                if first == LF {
                    input = &input[1..];
                    continue;
                }
            } else if first == CR && self.is_at_start() {
                self.marked = true;
                input = &input[1..];
                continue;
            }
            let Some(end) = self.line_end(input) else {
                self.keep(input);
                return;
            };
            self.after_cr = input[end] == CR;
            let line = &input[..end];
            input = &input[end + 1..];
            if self.partial.is_empty() && !self.overlong && line.len() <= LINE_MAX {
                let marked = std::mem::take(&mut self.marked);
                self.end_line(line, marked, &mut each);
            } else {
                self.keep(line);
                self.end_kept(&mut each);
            }
        }
    }

    /// The stream has ended: a line whose end has not come is passed on too.
    pub fn finish(&mut self, mut each: impl FnMut(Command<'_>)) {
        if self.raw.take().is_some() {
            self.forget_partial();
        } else {
            self.end_kept(&mut each);
        }
        self.place = Place::default();
    }

    /// Where the line ends that `input` goes on with. Quotes that are open at the end of its room are none.
    fn line_end(&mut self, input: &[u8]) -> Option<usize> {
        let room = if self.overlong {
            0
        } else {
            LINE_MAX - self.partial.len()
        };
        for (at, &byte) in input.iter().enumerate() {
            if at >= room {
                self.place = Place::Word;
            }
            if self.place.ends_line(byte) {
                return Some(at);
            }
        }
        None
    }

    fn is_at_start(&self) -> bool {
        self.partial.is_empty() && !self.marked && !self.overlong
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.overlong || self.partial.len() + bytes.len() > LINE_MAX {
            self.overlong = true;
            self.forget_partial();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }

    fn end_kept(&mut self, each: &mut impl FnMut(Command<'_>)) {
        let marked = std::mem::take(&mut self.marked);
        if std::mem::take(&mut self.overlong) {
            return;
        }
        let line = std::mem::take(&mut self.partial);
        self.end_line(&line, marked, each);
        if self.raw.is_none() {
            self.partial = line;
            self.forget_partial();
        }
    }

    fn end_line(&mut self, line: &[u8], marked: bool, each: &mut impl FnMut(Command<'_>)) {
        let raw = if marked && !self.after_cr {
            raw_header(line)
        } else {
            None
        };
        if let Some((name, data_len)) = raw {
            self.partial = name.to_vec();
            self.raw = Some((name.len(), data_len));
            if data_len == 0 {
                each(Command::new(name, &[]));
                self.raw = None;
                self.after_cr = true;
                self.partial.clear();
            }
        } else if !line.is_empty() {
            each(Command::parse(line));
        }
    }

    fn forget_partial(&mut self) {
        self.partial.clear();
        self.partial.shrink_to(ROOM_KEPT);
    }
}

/// The name and length that begin a raw command, if `line` is such a beginning.
fn raw_header(line: &[u8]) -> Option<(&[u8], usize)> {
    let (name, digits) = split(line);
    if name.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let len: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (len <= LINE_MAX).then_some((name, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Owned = (Vec<u8>, Option<Vec<u8>>, Vec<u8>);

    fn cut(pieces: &[&[u8]]) -> Vec<Owned> {
        let mut reader = LineReader::default();
        let mut commands = Vec::new();
        let mut each = |command: Command<'_>| {
            let id = command.id.map(<[u8]>::to_vec);
            commands.push((command.name.to_vec(), id, command.data.to_vec()));
        };
        for piece in pieces {
            reader.feed(piece, &mut each);
            assert!(reader.buffered() <= 2 * LINE_MAX);
        }
        reader.finish(&mut each);
        assert_eq!(reader.buffered(), 0);
        commands
    }

    fn plain(name: &str, data: &str) -> Owned {
        (name.into(), None, data.into())
    }

    #[test]
    fn lines_end_in_three_ways_and_split_at_the_first_space() {
        let text = b"a b  c \r\nd\re \n\n\r\n?\rlast";
        let expected = [
            plain("a", "b  c "),
            plain("d", ""),
            plain("e", ""),
            ("".into(), Some("".into()), "".into()),
            plain("last", ""),
        ];
        assert_eq!(cut(&[text]), expected);
        assert_eq!(cut(&[b"x\r", b"\ny\r", b"\r\nz"]).len(), 3);
    }

    #[test]
    fn the_newer_framing_is_understood() {
        let expected = [
            plain("connect", "a\nb"),
            ("echo".into(), Some("7".into()), "\"x\"".into()),
            plain("none", ""),
            plain("end", ""),
        ];
        let text = b"\rconnect 3\na\nb\necho?7 \"x\"\n\rnone 0\n\nend\n";
        assert_eq!(cut(&[text]), expected);
        // A CR at the beginning is an empty line for whoever knows nothing of that.
        assert_eq!(cut(&[b"\rregister-host\n"]), [plain("register-host", "")]);
        assert_eq!(cut(&[b"\rconnect 3\rabc\r"]).len(), 2);
        assert_eq!(cut(&[b"\rconnect 99999\nabc\n"]).len(), 2);
        let quoted = |data| Command::new(b"c", data).unquoted().into_owned();
        assert_eq!(quoted(b"\"a b\""), b"a b");
        assert_eq!(quoted(br#""a\n\"\\b\"""#), b"a\n\"\\b\"");
        assert_eq!(quoted(b"\"half"), b"\"half");
        assert_eq!(quoted(b"\""), b"\"");
        assert_eq!(
            quoted(br#"one "two \" three" fo"u"r\n\"#),
            b"one two \" three fo\"u\"r\n\\"
        );
        let mut out = Vec::new();
        write_quoted(&mut out, b"a\"b\n\\");
        assert_eq!(quoted(&out), b"a\"b\n\\");
    }

    #[test]
    fn line_ends_within_quotes_end_nothing() {
        let text = b"echo \"a\nb \\\"c\r\n\\\\\" d\necho \"x\"\r\n";
        let expected = [
            plain("echo", "\"a\nb \\\"c\r\n\\\\\" d"),
            plain("echo", "\"x\""),
        ];
        assert_eq!(cut(&[text]), expected);
        for at in 0..text.len() {
            assert_eq!(cut(&[&text[..at], &text[at..]]), expected);
        }
        // A name may have quotes too, of a raw command as well.
        let text = b"\"register-host\"\n\"connect?7\" x\n\r\"echo\" 2\n\"\n\n\"a\"b c\n";
        let expected = [
            plain("register-host", ""),
            ("connect".into(), Some("7".into()), "x".into()),
            plain("echo", "\"\n"),
            plain("\"a\"b", "c"),
        ];
        assert_eq!(cut(&[text]), expected);
        // Within a word they are bytes like others, and so are escapes.
        let text = b"connect a\"b\nconnect a\\\nconnect \\\"\nend\n";
        let expected = [
            plain("connect", "a\"b"),
            plain("connect", "a\\"),
            plain("connect", "\\\""),
            plain("end", ""),
        ];
        assert_eq!(cut(&[text]), expected);
    }

    #[test]
    fn quotes_that_never_close_end_with_the_room_of_a_line() {
        let mut text = b"connect \"".to_vec();
        while text.len() < LINE_MAX {
            text.extend_from_slice(b"connect x \n");
        }
        text.extend_from_slice(b"x\" and the rest\nafter\n");
        let after = cut(&[&text]);
        assert_eq!(after.last(), Some(&plain("after", "")));
        assert!(after.len() < 4, "{} commands", after.len());
        for at in (0..text.len()).step_by(97) {
            assert_eq!(cut(&[&text[..at], &text[at..]]), after);
        }
        let bytes: Vec<_> = text.chunks(1).collect();
        assert_eq!(cut(&bytes), after);
    }

    #[test]
    fn a_line_that_is_too_long_is_dropped_as_a_whole() {
        let long = vec![b'x'; LINE_MAX + 1];
        for pieces in [
            vec![&long[..], b"\nafter\n"],
            vec![b"a ", &long[..], b"more\rafter"],
        ] {
            assert_eq!(cut(&pieces), [plain("after", "")]);
        }
        assert_eq!(cut(&[&long[..LINE_MAX], b"\n"]).len(), 1);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_a_stream_is_cut(
            text in "([a?\\\\\" \r\n]|\ra [0-9]\n|register-host|connect ){0,40}",
            cuts in prop::collection::vec(0..80_usize, 0..6),
        ) {
            let bytes = text.as_bytes();
            let mut at: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let pieces: Vec<_> = at.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
            prop_assert_eq!(cut(&pieces), cut(&[bytes]));
        }

        #[test]
        fn no_input_makes_it_panic(input in prop::collection::vec(any::<u8>(), 0..600)) {
            let has_quotes = input.contains(&b'"');
            for (name, _, data) in cut(&[&input]) {
                // Only within quotes a name goes on.
                prop_assert!(has_quotes || !name.contains(&b' ') && !name.contains(&b'\n'));
                let _ = Command::new(&name, &data).unquoted();
            }
        }
    }
}
