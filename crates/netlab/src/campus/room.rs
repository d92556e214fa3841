//! Room for neighbours.

use std::fs;

use crate::Error;

/// One limit counts the neighbours of all namespaces of a machine. With thousands of stations
/// traffic would just stop, so it is raised where it is too low, and put back on drop.
#[derive(Debug)]
pub(super) struct NeighbourRoom {
    /// The files that were changed, with what stood there and what stands there now.
    changed: Vec<(String, u32, u32)>,
}

impl NeighbourRoom {
    /// Makes room for that many, with a margin.
    pub(super) fn make(neighbours: u32) -> Result<Self, Error> {
        let mut room = Self { changed: Vec::new() };
        let wanted = neighbours.saturating_mul(2);
        for family in ["ipv4", "ipv6"] {
            let file = format!("/proc/sys/net/{family}/neigh/default/gc_thresh3");
            let found = read(&file)?;
            if found < wanted {
                write(&file, wanted)?;
                room.changed.push((file, found, wanted));
            }
        }
        Ok(room)
    }
}

impl Drop for NeighbourRoom {
    fn drop(&mut self) {
        for (file, before, ours) in &self.changed {
            // Somebody else may have raised it further meanwhile.
            if read(file).is_ok_and(|now| now == *ours)
                && let Err(error) = write(file, *before)
            {
                tracing::warn!(%error, "the limit of neighbours stays raised");
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
