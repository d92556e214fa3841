//! Settings under `/proc/sys/net` of the network namespace that the calling thread is in.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where the kernel shows the settings of the reader's own namespace.
const ROOT: &str = "/proc/sys/net";

/// Why a setting could not be read or written. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name of an interface cannot be part of a path.
    #[error("{0:?} is not the name of an interface")]
    BadName(String),
    /// The kernel refused to show the setting.
    #[error("cannot read the setting {setting}: {source}")]
    Read {
        /// The setting's name, as `sysctl` takes it.
        setting: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused the value.
    #[error("cannot set {setting} to {value}: {source}")]
    Write {
        /// The setting's name, as `sysctl` takes it.
        setting: String,
        /// What it was to become.
        value: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The value is no number.
    #[error("the setting {setting} holds {value:?}, which is not a number")]
    NotANumber {
        /// The setting's name, as `sysctl` takes it.
        setting: String,
        /// What it holds.
        value: String,
    },
}

/// The protocol that a setting of an interface belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// `net.ipv4.conf`, ARP included.
    V4,
    /// `net.ipv6.conf`, neighbour discovery included.
    V6,
}

/// The greater of an interface's value and the value of `all`: what counts for `arp_ignore`,
/// `arp_announce` and `rp_filter`.
///
/// # Errors
/// If either cannot be read.
pub fn effective(interface: &str, key: &'static str) -> Result<i32, Error> {
    Ok(get(Family::V4, interface, key)?.max(get(Family::V4, "all", key)?))
}

/// Reads `net.<family>.conf.<interface>.<key>`. `interface` may also be `all` or `default`.
///
/// # Errors
/// If there is no such setting, or it is no number.
pub fn get(family: Family, interface: &str, key: &'static str) -> Result<i32, Error> {
    let setting = Setting::new(family, interface, key)?;
    let text = std::fs::read_to_string(setting.path());
    let text = text.map_err(|source| Error::Read { setting: setting.to_string(), source })?;
    let value = text.trim();
    let number = value.parse();
    number.map_err(|_| Error::NotANumber { setting: setting.to_string(), value: value.into() })
}

/// Writes `net.<family>.conf.<interface>.<key>`.
///
/// # Errors
/// If there is no such setting, or the kernel refuses the value.
pub fn set(family: Family, interface: &str, key: &'static str, value: i32) -> Result<(), Error> {
    let setting = Setting::new(family, interface, key)?;
    let written = std::fs::write(setting.path(), value.to_string());
    written.map_err(|source| Error::Write { setting: setting.to_string(), value, source })
}

struct Setting<'a> {
    family: Family,
    interface: &'a str,
    key: &'static str,
}

impl<'a> Setting<'a> {
    fn new(family: Family, interface: &'a str, key: &'static str) -> Result<Self, Error> {
        let bad = matches!(interface, "" | "." | "..") || interface.contains(['/', '\0']);
        match bad {
            true => Err(Error::BadName(interface.to_owned())),
            false => Ok(Self { family, interface, key }),
        }
    }

    /// A path, unlike a dotted name, is not confused by an interface called `eth0.10`.
    fn path(&self) -> PathBuf {
        let family = self.family.to_string();
        [ROOT, &family, "conf", self.interface, self.key].iter().collect()
    }
}

/// As `sysctl` writes it: dots within the interface's name become slashes.
impl fmt::Display for Setting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interface = self.interface.replace('.', "/");
        write!(f, "net.{}.conf.{interface}.{}", self.family, self.key)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_contain_dots_but_not_leave_the_folder() {
        let setting = Setting::new(Family::V4, "eth0.10", "arp_ignore").expect("good name");
        assert_eq!(setting.path(), PathBuf::from("/proc/sys/net/ipv4/conf/eth0.10/arp_ignore"));
        assert_eq!(setting.to_string(), "net.ipv4.conf.eth0/10.arp_ignore");
        for bad in ["", ".", "..", "../../kernel", "a/b"] {
            assert!(matches!(get(Family::V4, bad, "arp_ignore"), Err(Error::BadName(_))), "{bad}");
        }
    }

    #[test]
    fn loopback_has_its_settings() {
        assert!((0..=8).contains(&get(Family::V4, "lo", "arp_ignore").expect("readable")));
        let missing = set(Family::V4, "nosuch.0", "arp_ignore", 8).expect_err("no such interface");
        assert!(
            missing.to_string().starts_with("cannot set net.ipv4.conf.nosuch/0.arp_ignore to 8: "),
            "{missing}"
        );
    }
}
