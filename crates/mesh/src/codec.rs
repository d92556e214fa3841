//! Pieces of CBOR (RFC 8949) that the derived decoders use: identifiers as byte strings, and
//! lists and texts that are refused as soon as they exceed their bound.

use minicbor::decode::{Decode, Decoder, Error};
use minicbor::encode::Encode;
use selvedge_model::{MeshId, NodeId, WgKey};

/// What is written as a byte string of one fixed length.
pub(crate) trait Fixed: Sized {
    fn octets(&self) -> &[u8];
    fn from_octets(octets: &[u8]) -> Option<Self>;
}

/// The encoding of `value`.
pub(crate) fn to_vec<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("our encoders fail only if the writer does, and a Vec does not")
}

/// Decodes the whole of `bytes`; an error if anything follows.
pub(crate) fn from_slice<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, Error> {
    let mut decoder = Decoder::new(bytes);
    let value = decoder.decode()?;
    match decoder.position() == bytes.len() {
        true => Ok(value),
        false => Err(Error::message("bytes follow the end").at(decoder.position())),
    }
}

/// Whether `value` may be left out.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A list of at most `MAX` items.
pub(crate) fn list<'b, const MAX: usize, Ctx, T: Decode<'b, Ctx>>(
    d: &mut Decoder<'b>,
    ctx: &mut Ctx,
) -> Result<Vec<T>, Error> {
    let position = d.position();
    let mut list = Vec::new();
    for item in d.array_iter_with(ctx)? {
        if list.len() == MAX {
            return Err(Error::message("the list is too long").at(position));
        }
        list.push(item?);
    }
    Ok(list)
}

/// A text of at most `MAX` bytes.
pub(crate) fn text<const MAX: usize, Ctx>(
    d: &mut Decoder<'_>,
    _: &mut Ctx,
) -> Result<String, Error> {
    let position = d.position();
    let text = d.str()?;
    match text.len() <= MAX {
        true => Ok(text.to_owned()),
        false => Err(Error::message("the text is too long").at(position)),
    }
}

/// Byte strings of at most `MAX` bytes.
pub(crate) fn bytes<const MAX: usize, Ctx>(
    d: &mut Decoder<'_>,
    _: &mut Ctx,
) -> Result<Vec<u8>, Error> {
    let position = d.position();
    let bytes = d.bytes()?;
    match bytes.len() <= MAX {
        true => Ok(bytes.to_vec()),
        false => Err(Error::message("the byte string is too long").at(position)),
    }
}

/// One [`Fixed`] value.
pub(crate) mod fixed {
    use minicbor::decode::{self, Decoder};
    use minicbor::encode::{self, Encoder, Write};

    use super::Fixed;

    pub(crate) fn encode<Ctx, T: Fixed, W: Write>(
        value: &T,
        e: &mut Encoder<W>,
        _: &mut Ctx,
    ) -> Result<(), encode::Error<W::Error>> {
        e.bytes(value.octets())?.ok()
    }

    pub(crate) fn decode<Ctx, T: Fixed>(
        d: &mut Decoder<'_>,
        _: &mut Ctx,
    ) -> Result<T, decode::Error> {
        let position = d.position();
        T::from_octets(d.bytes()?)
            .ok_or_else(|| decode::Error::message("a byte string of wrong length").at(position))
    }
}

/// A [`Fixed`] value that may be absent.
pub(crate) mod optional {
    use minicbor::decode::{self, Decoder};
    use minicbor::encode::{self, Encoder, Write};

    use super::{Fixed, fixed};

    pub(crate) fn encode<Ctx, T: Fixed, W: Write>(
        value: &Option<T>,
        e: &mut Encoder<W>,
        ctx: &mut Ctx,
    ) -> Result<(), encode::Error<W::Error>> {
        match value {
            Some(value) => fixed::encode(value, e, ctx),
            None => e.null()?.ok(),
        }
    }

    pub(crate) fn decode<Ctx, T: Fixed>(
        d: &mut Decoder<'_>,
        ctx: &mut Ctx,
    ) -> Result<Option<T>, decode::Error> {
        if d.datatype()? == minicbor::data::Type::Null {
            d.null()?;
            return Ok(None);
        }
        fixed::decode(d, ctx).map(Some)
    }

    #[allow(clippy::option_option, reason = "the shape that the derived decoder asks for")]
    pub(crate) fn nil<T>() -> Option<Option<T>> {
        Some(None)
    }

    pub(crate) fn is_nil<T>(value: &Option<T>) -> bool {
        value.is_none()
    }
}

/// A list of [`Fixed`] values.
pub(crate) mod fixed_list {
    use minicbor::decode::{self, Decoder};
    use minicbor::encode::{self, Encoder, Write};

    use super::{Fixed, fixed};

    pub(crate) fn encode<Ctx, T: Fixed, W: Write>(
        list: &[T],
        e: &mut Encoder<W>,
        ctx: &mut Ctx,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(list.len() as u64)?;
        list.iter().try_for_each(|value| fixed::encode(value, e, ctx))
    }

    pub(crate) fn decode<const MAX: usize, Ctx, T: Fixed>(
        d: &mut Decoder<'_>,
        ctx: &mut Ctx,
    ) -> Result<Vec<T>, decode::Error> {
        struct Item<T>(T);

        impl<'b, Ctx, T: Fixed> decode::Decode<'b, Ctx> for Item<T> {
            fn decode(d: &mut Decoder<'b>, ctx: &mut Ctx) -> Result<Self, decode::Error> {
                fixed::decode(d, ctx).map(Self)
            }
        }

        let items = super::list::<MAX, Ctx, Item<T>>(d, ctx)?;
        Ok(items.into_iter().map(|item| item.0).collect())
    }
}

/// One prefix, a byte string: the length in bits, then the 4 or 16 bytes of the address.
pub(crate) mod prefix {
    use std::net::IpAddr;

    use minicbor::decode::{self, Decoder};
    use minicbor::encode::{self, Encoder, Write};
    use selvedge_model::Prefix;

    pub(crate) fn encode<Ctx, W: Write>(
        prefix: &Prefix,
        e: &mut Encoder<W>,
        _: &mut Ctx,
    ) -> Result<(), encode::Error<W::Error>> {
        let mut bytes = vec![prefix.len()];
        match prefix.addr() {
            IpAddr::V4(v4) => bytes.extend(v4.octets()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
        e.bytes(&bytes)?.ok()
    }

    pub(crate) fn decode<Ctx>(d: &mut Decoder<'_>, _: &mut Ctx) -> Result<Prefix, decode::Error> {
        let position = d.position();
        read(d.bytes()?).ok_or_else(|| decode::Error::message("not a prefix").at(position))
    }

    fn read(bytes: &[u8]) -> Option<Prefix> {
        let (len, addr) = bytes.split_first()?;
        let v4 = || <[u8; 4]>::try_from(addr).ok().map(IpAddr::from);
        let v6 = || <[u8; 16]>::try_from(addr).ok().map(IpAddr::from);
        Prefix::new(v4().or_else(v6)?, *len)
    }
}

/// A list of prefixes.
pub(crate) mod prefixes {
    use minicbor::decode::{self, Decoder};
    use minicbor::encode::{self, Encoder, Write};
    use selvedge_model::Prefix;

    use super::prefix;

    pub(crate) fn encode<Ctx, W: Write>(
        list: &[Prefix],
        e: &mut Encoder<W>,
        ctx: &mut Ctx,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(list.len() as u64)?;
        list.iter().try_for_each(|item| prefix::encode(item, e, ctx))
    }

    pub(crate) fn decode<const MAX: usize, Ctx>(
        d: &mut Decoder<'_>,
        ctx: &mut Ctx,
    ) -> Result<Vec<Prefix>, decode::Error> {
        struct Item(Prefix);

        impl<'b, Ctx> decode::Decode<'b, Ctx> for Item {
            fn decode(d: &mut Decoder<'b>, ctx: &mut Ctx) -> Result<Self, decode::Error> {
                prefix::decode(d, ctx).map(Self)
            }
        }

        let items = super::list::<MAX, Ctx, Item>(d, ctx)?;
        Ok(items.into_iter().map(|item| item.0).collect())
    }
}

/// A map of short texts.
pub(crate) mod texts {
    use std::collections::BTreeMap;

    use minicbor::decode::{self, Decoder};
    use minicbor::encode::{self, Encoder, Write};

    /// More are refused while they are read.
    const MAX: usize = 64;

    pub(crate) fn encode<Ctx, W: Write>(
        texts: &BTreeMap<String, String>,
        e: &mut Encoder<W>,
        _: &mut Ctx,
    ) -> Result<(), encode::Error<W::Error>> {
        e.map(texts.len() as u64)?;
        for (key, value) in texts {
            e.str(key)?.str(value)?;
        }
        Ok(())
    }

    pub(crate) fn decode<Ctx>(
        d: &mut Decoder<'_>,
        _: &mut Ctx,
    ) -> Result<BTreeMap<String, String>, decode::Error> {
        let position = d.position();
        let mut texts = BTreeMap::new();
        for entry in d.map_iter::<String, String>()? {
            let (key, value) = entry?;
            if texts.len() == MAX {
                return Err(decode::Error::message("the map is too long").at(position));
            }
            texts.insert(key, value);
        }
        Ok(texts)
    }
}

macro_rules! fixed_ids {
    ($($name:ident),*) => {
        $(impl Fixed for $name {
            fn octets(&self) -> &[u8] {
                self.as_bytes()
            }

            fn from_octets(octets: &[u8]) -> Option<Self> {
                octets.try_into().ok().map(Self)
            }
        })*
    };
}

fixed_ids!(MeshId, NodeId, WgKey);

impl<const N: usize> Fixed for [u8; N] {
    fn octets(&self) -> &[u8] {
        self
    }

    fn from_octets(octets: &[u8]) -> Option<Self> {
        octets.try_into().ok()
    }
}
