//! What an error of etcd means to a caller.

use etcd_client::{Error, WatchResponse};
use selvedge_gateway::kv::{LeaseId, Revision, StoreError};

/// Why a try at one endpoint failed.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// The store's answer, which another endpoint would give as well.
    Final(StoreError),
    /// This endpoint cannot serve now. Whether it did what was asked is unknown.
    Again {
        /// Why, for people.
        reason: String,
        /// Whether the connection is of no use any more.
        broken: bool,
    },
}

impl Fault {
    /// A fault of the endpoint that leaves its connection usable.
    pub(super) fn again(reason: impl Into<String>) -> Self {
        Self::Again { reason: reason.into(), broken: false }
    }

    /// The fault as the caller sees it if it is not tried again.
    pub(super) fn into_error(self, what: &str) -> StoreError {
        match self {
            Self::Final(error) => error,
            Self::Again { reason, .. } => StoreError::Unavailable(format!("{what}: {reason}")),
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Final(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => from_status(status.code().into(), status.message()),
            Error::LeaseKeepAliveError(reason) if reason == "lease not found" => {
                Self::Final(StoreError::NoLease(UNNAMED))
            }
            Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
                Self::Final(StoreError::Refused(error.to_string()))
            }
            Error::IoError(_)
            | Error::TransportError(_)
            | Error::WatchError(_)
            | Error::Utf8Error(_)
            | Error::LeaseKeepAliveError(_)
            | Error::ElectError(_)
            | Error::EndpointError(_)
            | Error::EndpointsNotManaged
            | Error::Internal(_) => Self::Again { reason: error.to_string(), broken: true },
        }
    }
}

/// Why etcd cancelled a watch, if this answer says that it did.
pub(super) fn cancelled(answer: &WatchResponse) -> Option<Fault> {
    if answer.compact_revision() > 0 {
        let revision = Revision(answer.compact_revision());
        return Some(Fault::Final(StoreError::Compacted(revision)));
    }
    if !answer.canceled() {
        return None;
    }
    let reason = answer.cancel_reason();
    // Also what etcd says of a token that it does not know (any more): a new connection gets a
    // new token. If the permission is really missing, the next try says so again.
    let broken = reason.contains("permission denied") || reason.contains("auth");
    Some(Fault::Again { reason: format!("etcd cancelled the watch: {reason}"), broken })
}

/// Whether an answer was too long to be decoded; less may be asked for at once then.
pub(super) fn is_too_long(error: &StoreError) -> bool {
    matches!(error, StoreError::Refused(reason) if reason.contains(TOO_LONG))
}

/// The id in [`StoreError::NoLease`] until whoever knows it puts it in.
const UNNAMED: LeaseId = LeaseId(0);

/// What the gRPC library says of an answer that is longer than allowed.
const TOO_LONG: &str = "message length too large";

/// The status codes of gRPC (<https://grpc.io/docs/guides/status-codes/>) that etcd uses to say
/// no.
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

fn from_status(code: i32, message: &str) -> Fault {
    let refused = || Fault::Final(StoreError::Refused(message.to_owned()));
    match code {
        code::NOT_FOUND if message.contains("lease not found") => {
            Fault::Final(StoreError::NoLease(UNNAMED))
        }
        code::OUT_OF_RANGE if message.contains("compacted") => {
            Fault::Final(StoreError::Compacted(Revision(0)))
        }
        code::OUT_OF_RANGE | code::RESOURCE_EXHAUSTED if message.contains(TOO_LONG) => refused(),
        // The member lags behind the authentication that the token was issued with.
        code::INVALID_ARGUMENT if message.contains("auth store is old") => {
            Fault::Again { reason: message.to_owned(), broken: true }
        }
        code::INVALID_ARGUMENT
        | code::NOT_FOUND
        | code::PERMISSION_DENIED
        | code::RESOURCE_EXHAUSTED
        | code::FAILED_PRECONDITION
        | code::UNIMPLEMENTED
        | code::UNAUTHENTICATED => refused(),
        // A member's own words ("etcdserver: no leader") show that the connection works.
        _ => {
            Fault::Again { reason: message.to_owned(), broken: !message.starts_with("etcdserver:") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_no_is_final() {
        let lease = from_status(5, "etcdserver: requested lease not found");
        assert!(matches!(lease, Fault::Final(StoreError::NoLease(_))));
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        let compacted = from_status(11, compacted);
        assert!(matches!(compacted, Fault::Final(StoreError::Compacted(_))));
        let large = from_status(3, "etcdserver: request is too large");
        assert!(matches!(large, Fault::Final(StoreError::Refused(_))));
        for (code, message, is_broken) in [
            (14, "etcdserver: no leader", false),
            (14, "etcdserver: request timed out", false),
            (14, "error trying to connect: tcp connect error", true),
            (2, "h2 protocol error: error reading a body from connection", true),
            (4, "Timeout expired", true),
        ] {
            match from_status(code, message) {
                Fault::Again { broken, .. } => assert_eq!(broken, is_broken, "{message}"),
                Fault::Final(error) => panic!("{message} is not final: {error}"),
            }
        }
    }
}
