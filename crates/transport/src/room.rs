//! Room for messages that wait, in bytes.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many bytes may wait, wherever they do.
#[derive(Clone, Debug)]
pub(crate) struct Room(Arc<Semaphore>);

/// What one message takes up; it is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    _permit: OwnedSemaphorePermit,
}

/// A message on its way out.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) bytes: Vec<u8>,
    #[expect(dead_code, reason = "held until the message is gone")]
    pub(crate) taken: Taken,
}

impl Room {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }

    /// Takes room for a message; `None` if there is not enough.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<Taken> {
        let permit = self.0.clone().try_acquire_many_owned(permits(bytes)).ok()?;
        Some(Taken { _permit: permit })
    }

    /// Waits until there is room for a message.
    pub(crate) async fn take(&self, bytes: usize) -> Option<Taken> {
        // Fails only for a semaphore that was closed, which this one never is.
        let permit = self.0.clone().acquire_many_owned(permits(bytes)).await.ok()?;
        Some(Taken { _permit: permit })
    }
}

/// No message is longer than the room is great, so that each can have its turn.
fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.clamp(1, crate::MAX_MESSAGE)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_taken_is_given_back() {
        let room = Room::new(10);
        let first = room.try_take(7).expect("there is room");
        assert!(room.try_take(4).is_none() && room.try_take(3).is_some());
        let waiting = tokio::spawn({
            let room = room.clone();
            async move { room.take(10).await.is_some() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        assert!(waiting.await.expect("it ends"));
    }
}
