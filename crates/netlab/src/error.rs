use std::io;
use std::time::Duration;

use selvedge_host::netns;

/// Why the laboratory could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A namespace could not be made, entered or removed.
    #[error(transparent)]
    Namespace(#[from] netns::Error),
    /// A tool said no. What it did before that stays until the laboratory ends.
    #[error("`{command}` failed: {message}")]
    Command {
        /// The command line, and the offending line of its input where it names one.
        command: String,
        /// What it printed on its standard error.
        message: String,
    },
    /// The operating system said no.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// Something that was waited for did not happen. What was started goes on.
    #[error("{what} did not happen within {limit:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// A tool answered with something else than expected.
    #[error("cannot understand what {of} says: {reason}")]
    Answer {
        /// Whose answer.
        of: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A host, gateway or member of that name does not exist. Nothing was done.
    #[error("there is no {what} named {name:?}")]
    Unknown {
        /// What kind of thing.
        what: &'static str,
        /// The name.
        name: String,
    },
}

impl Error {
    /// Wraps an error of the operating system: `map_err(Error::io("open the file"))`.
    pub(crate) fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |error| Self::Io { what: what.into(), source: error.into() }
    }
}
