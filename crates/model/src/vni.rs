use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A VXLAN network identifier: 1 to 16,777,215 (RFC 7348, 24 bits; 0 is not used).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The greatest identifier.
    pub const MAX: u32 = 0xff_ffff;

    /// The number as it stands in the VXLAN header.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Why a text or number is no [`Vni`] or range of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseVniError {
    /// Not a decimal number.
    #[error("{0:?} is not a VNI: expected a number from 1 to 16777215")]
    NotANumber(String),
    /// A number, but not one that 24 bits hold.
    #[error("VNI {0} is out of range: expected 1 to 16777215")]
    OutOfRange(u32),
    /// The first number of a range is greater than the second.
    #[error("the range {0}-{1} is empty: its end comes before its start")]
    Empty(u32, u32),
}

impl TryFrom<u32> for Vni {
    type Error = ParseVniError;

    fn try_from(number: u32) -> Result<Self, ParseVniError> {
        match number {
            1..=Self::MAX => Ok(Self(number)),
            _ => Err(ParseVniError::OutOfRange(number)),
        }
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl FromStr for Vni {
    type Err = ParseVniError;

    fn from_str(text: &str) -> Result<Self, ParseVniError> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = digits.then(|| text.parse::<u32>().ok()).flatten();
        number.ok_or_else(|| ParseVniError::NotANumber(text.to_owned()))?.try_into()
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of VNIs written as `1-100,200,300-310`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VniRanges(Vec<(Vni, Vni)>);

impl VniRanges {
    /// The set that holds every VNI from `first` to `last`.
    ///
    /// # Errors
    /// If `last` comes before `first`.
    pub fn range(first: Vni, last: Vni) -> Result<Self, ParseVniError> {
        if last < first {
            return Err(ParseVniError::Empty(first.0, last.0));
        }
        Ok(Self(vec![(first, last)]))
    }

    /// Whether `vni` is in the set.
    #[must_use]
    pub fn contains(&self, vni: Vni) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&vni))
    }

    /// All members, in ascending order and each once.
    #[must_use]
    pub fn to_set(&self) -> BTreeSet<Vni> {
        self.0.iter().flat_map(|(first, last)| first.0..=last.0).map(Vni).collect()
    }
}

impl FromIterator<Vni> for VniRanges {
    /// The set of these VNIs; neighbours are written as one range.
    fn from_iter<I: IntoIterator<Item = Vni>>(vnis: I) -> Self {
        let mut ranges: Vec<(Vni, Vni)> = Vec::new();
        for vni in vnis.into_iter().collect::<BTreeSet<_>>() {
            match ranges.last_mut().filter(|(_, last)| last.0 + 1 == vni.0) {
                Some((_, last)) => *last = vni,
                None => ranges.push((vni, vni)),
            }
        }
        Self(ranges)
    }
}

impl FromStr for VniRanges {
    type Err = ParseVniError;

    fn from_str(text: &str) -> Result<Self, ParseVniError> {
        let mut ranges = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse()?, last.trim().parse()?);
            ranges.extend(Self::range(first, last)?.0);
        }
        Ok(Self(ranges))
    }
}

impl TryFrom<String> for VniRanges {
    type Error = ParseVniError;

    fn try_from(text: String) -> Result<Self, ParseVniError> {
        text.parse()
    }
}

impl From<VniRanges> for String {
    fn from(ranges: VniRanges) -> Self {
        ranges.to_string()
    }
}

impl fmt::Display for VniRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_print_what_they_parsed() {
        let ranges: VniRanges = "1-3, 7,16777215".parse().expect("valid");
        assert_eq!(ranges.to_string(), "1-3,7,16777215");
        let all: Vec<u32> = ranges.to_set().into_iter().map(u32::from).collect();
        assert_eq!(all, [1, 2, 3, 7, 16_777_215]);
    }

    #[test]
    fn ranges_of_a_set_hold_that_set() {
        let set: BTreeSet<Vni> = [1, 2, 3, 7, 9, 10].map(Vni).into();
        let ranges: VniRanges = set.iter().copied().collect();
        assert_eq!((ranges.to_string().as_str(), ranges.to_set()), ("1-3,7,9-10", set));
    }

    #[test]
    fn bad_vnis_are_named() {
        assert_eq!("0".parse::<Vni>(), Err(ParseVniError::OutOfRange(0)));
        assert_eq!("16777216".parse::<Vni>(), Err(ParseVniError::OutOfRange(16_777_216)));
        assert!(matches!("+1".parse::<Vni>(), Err(ParseVniError::NotANumber(_))));
        assert_eq!("9-1".parse::<VniRanges>(), Err(ParseVniError::Empty(9, 1)));
        assert!("".parse::<VniRanges>().is_err());
    }
}
