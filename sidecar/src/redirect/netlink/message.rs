//! Netlink's framing: messages that hold attributes, which hold values or further attributes.
//!
//! In: names and values. Out: bytes of a batch, to be sent as one datagram, and what the kernel answered. Headers are in
//! the host's byte order, values of nftables in the network's (`linux/netlink.h`, `linux/netfilter/nfnetlink.h`).

/// The attribute holds attributes.
const NESTED: u16 = 0x8000;

const REQUEST: u16 = 0x001;
const ACK: u16 = 0x004;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const DUMP: u16 = 0x300;

/// The kernel's answer to a message.
const ERROR: u16 = 0x2;
/// The end of an answer of several messages.
const DONE: u16 = 0x3;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM_NFTABLES: u16 = 10;
const GET_RULE: u16 = 7;
const FAMILY_INET: u8 = 1;
const FAMILY_UNSPECIFIED: u8 = 0;

/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A kind of message of nftables (`enum nf_tables_msg_types`).
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    NewRule = 6,
    NewSet = 9,
    NewElements = 12,
}

/// Messages that the kernel carries out all or none.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// What each message is about, for errors; the first is the batch's own.
    labels: Vec<String>,
    /// Where the last message starts.
    last: usize,
}

impl Batch {
    /// Without a message yet.
    pub(super) fn new() -> Self {
        let mut batch = Self { bytes: Vec::with_capacity(8192), labels: Vec::new(), last: 0 };
        batch.frame(
            BATCH_BEGIN,
            0,
            (FAMILY_UNSPECIFIED, SUBSYSTEM_NFTABLES),
            "the transaction".into(),
            |_| (),
        );
        batch
    }

    /// Adds a message; `label` says what it is about.
    pub(super) fn add(&mut self, kind: Kind, label: String, attributes: impl FnOnce(&mut Attributes<'_>)) {
        let flags = match kind {
            Kind::DeleteTable => 0,
            Kind::NewRule => CREATE | APPEND,
            Kind::NewTable | Kind::NewChain | Kind::NewSet | Kind::NewElements => CREATE,
        };
        self.last = self.bytes.len();
        let code = SUBSYSTEM_NFTABLES << 8 | kind as u16;
        self.frame(code, flags, (FAMILY_INET, 0), label, attributes);
    }

    /// The datagram, and the reader of the answers to it. The last message asks for an acknowledgement: errors of others
    /// come before it.
    pub(super) fn finish(mut self) -> (Vec<u8>, Answers) {
        let flags = &mut self.bytes[self.last + 6..self.last + 8];
        let acknowledged = u16::from_ne_bytes([flags[0], flags[1]]) | ACK;
        flags.copy_from_slice(&acknowledged.to_ne_bytes());
        let last = self.labels.len() - 1;
        let resource = (FAMILY_UNSPECIFIED, SUBSYSTEM_NFTABLES);
        self.frame(BATCH_END, 0, resource, String::new(), |_| ());
        self.labels.pop();
        (self.bytes, Answers { labels: self.labels, last, failure: None })
    }

    fn frame(
        &mut self,
        code: u16,
        flags: u16,
        (family, resource): (u8, u16),
        label: String,
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        let sequence = u32::try_from(self.labels.len()).expect("a batch has fewer messages than 2^32");
        self.labels.push(label);
        frame(&mut self.bytes, (code, flags, sequence), (family, resource), attributes);
    }
}

/// Adds a message to what is sent.
fn frame(
    bytes: &mut Vec<u8>,
    (code, flags, sequence): (u16, u16, u32),
    (family, resource): (u8, u16),
    attributes: impl FnOnce(&mut Attributes<'_>),
) {
    let start = bytes.len();
    bytes.extend([0; 4]);
    bytes.extend(code.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    attributes(&mut Attributes { bytes });
    let length = u32::try_from(bytes.len() - start).expect("attributes are shorter than 64 kB");
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// The question for all rules of a table.
pub(super) fn dump_rules(table: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let code = SUBSYSTEM_NFTABLES << 8 | GET_RULE;
    frame(&mut bytes, (code, DUMP, 1), (FAMILY_INET, 0), |rule| rule.text(1, table));
    bytes
}

/// The attributes of a message, or within an attribute.
#[derive(Debug)]
pub(super) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Attributes<'_> {
    /// A text, which ends with a zero byte.
    pub(super) fn text(&mut self, code: u16, value: &str) {
        self.attribute(code, |bytes| {
            bytes.extend(value.as_bytes());
            bytes.push(0);
        });
    }

    /// A number.
    pub(super) fn number(&mut self, code: u16, value: u32) {
        self.bytes(code, &value.to_be_bytes());
    }

    /// A value as it is.
    pub(super) fn bytes(&mut self, code: u16, value: &[u8]) {
        self.attribute(code, |bytes| bytes.extend(value));
    }

    /// Attributes.
    pub(super) fn nested(&mut self, code: u16, inner: impl FnOnce(&mut Attributes<'_>)) {
        self.attribute(code | NESTED, |bytes| inner(&mut Attributes { bytes }));
    }

    fn attribute(&mut self, code: u16, value: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(code.to_ne_bytes());
        value(self.bytes);
        let length = u16::try_from(self.bytes.len() - start).expect("lists of 500 entries are below 64 kB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// What the kernel says to a batch.
#[derive(Debug)]
pub(super) struct Answers {
    labels: Vec<String>,
    last: usize,
    failure: Option<Failure>,
}

/// A message that the kernel refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What it is about.
    pub(super) label: String,
    /// The error's number (`errno.h`).
    pub(super) errno: i32,
}

impl Answers {
    /// Reads a datagram; `Some` when the outcome of the whole batch is known.
    pub(super) fn read(&mut self, mut datagram: &[u8]) -> Option<Result<(), Failure>> {
        while datagram.len() >= HEADER + 4 {
            let length = number(datagram, 0) as usize;
            let sequence = number(datagram, 8) as usize;
            let errno = -number(datagram, HEADER).cast_signed();
            if u16::from_ne_bytes([datagram[4], datagram[5]]) == ERROR && sequence < self.labels.len() {
                if errno != 0 && self.failure.is_none() {
                    self.failure = Some(Failure { label: self.labels[sequence].clone(), errno });
                }
                // An error of the first message is one of the whole batch, after which no other answer comes.
                if sequence == self.last || (sequence == 0 && errno != 0) {
                    return Some(self.failure.take().map_or(Ok(()), Err));
                }
            }
            datagram = datagram.get(length.max(HEADER).next_multiple_of(4)..)?;
        }
        None
    }
}

/// A part of the kernel's answer to a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// A rule, and where it is.
    Rule { table: &'a [u8], chain: &'a [u8] },
    /// There is no more, or there was an error with this number (`errno.h`).
    End(i32),
}

/// Reads a datagram of answers to [`dump_rules`].
pub(super) fn answers(mut datagram: &[u8]) -> Vec<Answer<'_>> {
    let mut found = Vec::new();
    while datagram.len() >= HEADER + 4 {
        let length = (number(datagram, 0) as usize).clamp(HEADER + 4, datagram.len());
        let attributes = &datagram[HEADER + 4..length];
        let (table, chain) = (attribute(attributes, 1), attribute(attributes, 2));
        match (u16::from_ne_bytes([datagram[4], datagram[5]]), table, chain) {
            (ERROR | DONE, ..) => found.push(Answer::End(-number(datagram, HEADER).cast_signed())),
            (_, Some(table), Some(chain)) => found.push(Answer::Rule { table, chain }),
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The text of an attribute, without the zero byte at its end.
fn attribute(mut attributes: &[u8], code: u16) -> Option<&[u8]> {
    while attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([attributes[2], attributes[3]]) == code {
            return value.split_last().map(|(_, text)| text);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// The number at this place, which is within the datagram.
fn number(datagram: &[u8], place: usize) -> u32 {
    u32::from_ne_bytes([datagram[place], datagram[place + 1], datagram[place + 2], datagram[place + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let mut batch = Batch::new();
        batch.add(Kind::NewTable, "the table".into(), |table| table.text(1, "tulle"));
        batch.add(Kind::NewRule, "a rule".into(), |rule| {
            rule.nested(4, |list| list.number(2, 0x0102_0304));
        });
        batch
    }

    #[test]
    fn messages_and_attributes_are_framed_and_padded() {
        let (bytes, _) = batch().finish();
        let message = |length: u32, code: u16, flags: u16, sequence: u32, nfgen: [u8; 4]| {
            let header = [length.to_ne_bytes(), [0; 4], sequence.to_ne_bytes(), [0; 4], nfgen].concat();
            let kind = [code.to_ne_bytes(), flags.to_ne_bytes()].concat();
            [&header[..4], &kind, &header[8..]].concat()
        };
        let attribute = |length: u16, code: u16| [length.to_ne_bytes(), code.to_ne_bytes()].concat();
        let expected = [
            message(20, 0x10, 1, 0, [0, 0, 0, 10]),
            message(32, 0xa00, 0x401, 1, [1, 0, 0, 0]),
            attribute(10, 1),
            b"tulle\0\0\0".to_vec(),
            message(32, 0xa06, 0xc05, 2, [1, 0, 0, 0]),
            attribute(12, 0x8004),
            attribute(8, 2),
            vec![1, 2, 3, 4],
            message(20, 0x11, 1, 3, [0, 0, 0, 10]),
        ];
        assert_eq!(bytes, expected.concat());
    }

    fn answer(sequence: u32, errno: i32) -> Vec<u8> {
        let kind = [2_u16.to_ne_bytes(), [0; 2]].concat();
        let rest = [sequence.to_ne_bytes(), [0; 4], (-errno).to_ne_bytes()].concat();
        [&36_u32.to_ne_bytes()[..], &kind, &rest, &[0; 16]].concat()
    }

    #[test]
    fn the_outcome_is_known_with_the_last_answer_or_the_batchs_own() {
        let answers = || batch().finish().1;
        assert_eq!(answers().read(&answer(2, 0)), Some(Ok(())));
        let failure = |label: &str, errno| Some(Err(Failure { label: label.into(), errno }));
        assert_eq!(answers().read(&answer(0, 1)), failure("the transaction", 1));
        let mut both = answers();
        assert_eq!(both.read(&answer(1, 95)), None);
        assert_eq!(both.read(&[answer(1, 2), answer(2, 0)].concat()), failure("the table", 95));
    }

    #[test]
    fn rules_are_found_in_a_dump() {
        let rule = |table: &str, chain: &str| {
            let mut bytes = Vec::new();
            frame(&mut bytes, (0xa06, 2, 1), (1, 0), |rule| {
                rule.text(1, table);
                rule.text(2, chain);
                rule.nested(4, |list| list.number(1, 7));
            });
            bytes
        };
        let done = [&20_u32.to_ne_bytes()[..], &3_u16.to_ne_bytes(), &[0; 14]].concat();
        let datagram = [rule("tulle", "output"), rule("a", "b"), done].concat();
        let expected = [
            Answer::Rule { table: b"tulle", chain: b"output" },
            Answer::Rule { table: b"a", chain: b"b" },
            Answer::End(0),
        ];
        assert_eq!(super::answers(&datagram), expected);
        assert_eq!(super::answers(&answer(1, 1)), [Answer::End(1)]);
        // Whatever is cut off is not read.
        for length in 0..datagram.len() {
            assert!(super::answers(&datagram[..length]).len() <= 3);
        }
        for odd in [vec![0xff; 64], vec![0; 64], [vec![24, 0, 0, 0], vec![0; 20]].concat()] {
            assert_eq!(super::answers(&odd), []);
        }
    }

    #[test]
    fn answers_that_make_no_sense_are_passed_over() {
        let mut answers = batch().finish().1;
        for datagram in [vec![], vec![0; 19], vec![0; 64], vec![0xff; 64], answer(3, 1), answer(u32::MAX, 1)]
        {
            assert_eq!(answers.read(&datagram), None, "{datagram:?}");
        }
        assert_eq!(answers.read(&answer(2, 17)), Some(Err(Failure { label: "a rule".into(), errno: 17 })));
    }
}
