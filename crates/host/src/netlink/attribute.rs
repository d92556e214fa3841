//! Attributes of netlink messages (`struct nlattr`) as bytes: put one after the other, and taken
//! apart again. Numbers are in the byte order of the machine.

/// Two bytes of length, two of kind.
const HEADER: usize = 4;
/// Attributes begin at multiples of this.
const ALIGN: usize = 4;
/// Its value is made of attributes (`NLA_F_NESTED`).
const NESTED: u16 = 1 << 15;
/// What of a kind is no flag (`NLA_TYPE_MASK`).
const KIND: u16 = 0x3fff;

/// The bytes end within an attribute, or an attribute says that it is shorter than its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a netlink message is malformed: {0}")]
pub struct Malformed(pub(crate) &'static str);

/// Appends an attribute.
///
/// # Panics
/// If the value has more than 65531 bytes: nothing here comes near.
pub(crate) fn put(into: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(HEADER + value.len()).expect("attributes are small");
    into.extend(length.to_ne_bytes());
    into.extend(kind.to_ne_bytes());
    into.extend(value);
    into.resize(into.len().next_multiple_of(ALIGN), 0);
}

/// Appends an attribute that is made of the attributes in `value`.
pub(crate) fn put_nested(into: &mut Vec<u8>, kind: u16, value: &[u8]) {
    put(into, kind | NESTED, value);
}

/// The attributes in `bytes`, by kind.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), Malformed>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let taken = take(rest);
        rest = taken.map_or(&[], |(_, _, rest)| rest);
        Some(
            taken.map(|(kind, value, _)| (kind, value)).ok_or(Malformed("an attribute is cut off")),
        )
    })
}

fn take(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (length, after) = bytes.split_first_chunk::<2>()?;
    let (kind, _) = after.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_ne_bytes(*length));
    let value = bytes.get(HEADER..length)?;
    // The last one need not be padded.
    let rest = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
    Some((u16::from_ne_bytes(*kind) & KIND, value, rest))
}

/// The value of an attribute that has as many bytes as it must.
pub(crate) fn exactly<const N: usize>(value: &[u8]) -> Result<[u8; N], Malformed> {
    value.try_into().map_err(|_| Malformed("an attribute has another length than it should"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let mut bytes = Vec::new();
        put(&mut bytes, 2, b"wg0\0x");
        put_nested(&mut bytes, 8, &[]);
        let mut expected = Vec::new();
        expected.extend(9_u16.to_ne_bytes());
        expected.extend(2_u16.to_ne_bytes());
        expected.extend(b"wg0\0x\0\0\0");
        expected.extend(4_u16.to_ne_bytes());
        expected.extend(0x8008_u16.to_ne_bytes());
        assert_eq!(bytes, expected);
        let found: Result<Vec<_>, _> = attributes(&bytes).collect();
        assert_eq!(found, Ok(vec![(2, b"wg0\0x".as_slice()), (8, &[])]));
        let unpadded: Result<Vec<_>, _> = attributes(&bytes[..9]).collect();
        assert_eq!(unpadded, Ok(vec![(2, b"wg0\0x".as_slice())]));
    }

    #[test]
    fn what_is_cut_off_is_malformed() {
        let mut bytes = Vec::new();
        put(&mut bytes, 2, b"wg0\0x");
        for length in 1..9 {
            assert!(attributes(&bytes[..length]).any(|it| it.is_err()), "{length} bytes");
        }
        // One that says that it is shorter than its own header must not be read for ever.
        assert_eq!(attributes(&[0; 8]).filter(Result::is_err).count(), 1);
    }
}
