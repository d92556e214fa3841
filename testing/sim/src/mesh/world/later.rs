//! Nodes that run the version that comes next: what they send has its number, fields that nobody
//! knows yet in all maps, and messages of a kind that nobody knows.

use minicbor::data::Type;
use minicbor::decode::{Decoder, Error};
use minicbor::encode::Encoder;
use selvedge_mesh::wire::WIRE_VERSION;

/// A field and a kind that no version has.
const UNKNOWN: u8 = 200;

/// A message as the next version lays it out.
pub(super) fn laid_out(bytes: &[u8]) -> Vec<u8> {
    let mut later = Vec::with_capacity(2 * bytes.len());
    copy(&mut Decoder::new(bytes), &mut Encoder::new(&mut later)).expect("it was just encoded");
    // An array of four, of which the version is the first.
    later[1] = WIRE_VERSION + 1;
    later
}

/// A message of the same mesh, of a kind that only the next version knows.
pub(super) fn unknown(bytes: &[u8]) -> Vec<u8> {
    let mesh = &bytes[2..23];
    let body = [0x18, UNKNOWN, 0xa1, 0x00, 0x01];
    [&[0x84, WIRE_VERSION + 1], mesh, &body].concat()
}

/// Copies one value, with one more entry in each map.
fn copy(d: &mut Decoder<'_>, e: &mut Encoder<&mut Vec<u8>>) -> Result<(), Error> {
    let written = "writing to a Vec does not fail";
    let kind = d.datatype()?;
    if kind == Type::Map {
        let entries = d.map()?.unwrap_or_default();
        e.map(entries + 1).and_then(|e| e.u8(UNKNOWN)).expect(written);
        e.array(2).and_then(|e| e.str("later")).and_then(|e| e.u8(1)).expect(written);
        return (0..2 * entries).try_for_each(|_| copy(d, e));
    }
    if kind == Type::Array {
        let items = d.array()?.unwrap_or_default();
        e.array(items).expect(written);
        return (0..items).try_for_each(|_| copy(d, e));
    }
    let from = d.position();
    d.skip()?;
    e.writer_mut().extend(&d.input()[from..d.position()]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use selvedge_mesh::wire::{Envelope, Message, News, Records, WireError};
    use selvedge_model::MeshId;

    use super::*;

    #[test]
    fn this_version_reads_what_it_knows_of_the_next() {
        let records = Records::default();
        let news = News { entries: records, rumors: Vec::new() };
        let envelope = Envelope { mesh: MeshId([7; 20]), message: Message::News(news) };
        let bytes = envelope.encode();
        let later = laid_out(&bytes);
        assert!(later.len() > bytes.len() + 16, "a field in the body, and one in what it holds");
        assert_eq!(Envelope::decode(&later), Ok(envelope));
        let kind = u64::from(UNKNOWN);
        assert_eq!(Envelope::decode(&unknown(&bytes)), Err(WireError::UnknownKind { kind }));
    }
}
