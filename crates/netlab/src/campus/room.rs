//! Limits of the machine that all of its namespaces share.

use std::fs;

use crate::Error;

/// One limit counts the neighbours of all namespaces of a machine: with thousands of stations
/// traffic would just stop. One queue per processor takes what hosts send each other: a packet
/// that is flooded into thousands of tunnels would overrun it. Both are raised where they are too
/// low, and put back on drop.
#[derive(Debug)]
pub(super) struct Room {
    /// The files that were changed, with what stood there and what stands there now.
    changed: Vec<(String, u32, u32)>,
}

impl Room {
    /// Makes room for that many neighbours, with a margin.
    pub(super) fn make(neighbours: u32) -> Result<Self, Error> {
        let mut room = Self { changed: Vec::new() };
        let wanted = neighbours.saturating_mul(2);
        for family in ["ipv4", "ipv6"] {
            let limit = |number| format!("/proc/sys/net/{family}/neigh/default/gc_thresh{number}");
            // The greatest first: above the second, entries that are in use are looked up anew.
            for number in [3, 2, 1] {
                room.raise(limit(number), wanted)?;
            }
        }
        room.raise("/proc/sys/net/core/netdev_max_backlog".to_owned(), BACKLOG)?;
        Ok(room)
    }

    fn raise(&mut self, file: String, wanted: u32) -> Result<(), Error> {
        let found = read(&file)?;
        if found < wanted {
            write(&file, wanted)?;
            self.changed.push((file, found, wanted));
        }
        Ok(())
    }
}

const BACKLOG: u32 = 20_000;

impl Drop for Room {
    fn drop(&mut self) {
        for (file, before, ours) in &self.changed {
            // Somebody else may have raised it further meanwhile.
            if read(file).is_ok_and(|now| now == *ours)
                && let Err(error) = write(file, *before)
            {
                tracing::warn!(%error, "a limit of the machine stays raised");
            }
        }
    }
}

fn read(file: &str) -> Result<u32, Error> {
    let text = fs::read_to_string(file).map_err(Error::io(format!("read {file}")))?;
    let reason = |error: std::num::ParseIntError| error.to_string();
    text.trim()
        .parse()
        .map_err(|error| Error::Answer { of: file.to_owned(), reason: reason(error) })
}

fn write(file: &str, value: u32) -> Result<(), Error> {
    fs::write(file, value.to_string()).map_err(Error::io(format!("set {file} to {value}")))
}
