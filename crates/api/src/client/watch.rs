use std::marker::PhantomData;

use reqwest::Response;
use serde::de::DeserializeOwned;

use super::{ClientError, broken, chain};
use crate::gateway;

/// The longest line that is read. The longest event lists the problems of a host.
const LONGEST: usize = 1 << 20;

/// What happens, from the moment when [`Client::watch`](super::Client::watch) or
/// [`Client::watch_meshes`](super::Client::watch_meshes) returned.
#[derive(Debug)]
pub struct Watch<T = gateway::Event> {
    /// What the messages call the request.
    request: String,
    response: Response,
    /// What was read of the lines that were not given out yet.
    buffer: Vec<u8>,
    events: PhantomData<T>,
}

impl<T: DeserializeOwned> Watch<T> {
    pub(super) const fn new(request: String, response: Response) -> Self {
        Self { request, response, buffer: Vec::new(), events: PhantomData }
    }

    /// The next event; `None` if the agent has ended.
    ///
    /// If this is cancelled, nothing is lost.
    ///
    /// # Errors
    /// [`ClientError::Broken`] if the connection broke, or what came is no event.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(line) = self.take_line() {
                let event = serde_json::from_slice(&line);
                return event.map(Some).map_err(|error| broken(&self.request, error));
            }
            if self.buffer.len() > LONGEST {
                return Err(broken(&self.request, "a line is too long to be an event"));
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) => return Ok(None),
                Err(error) => return Err(broken(&self.request, chain(&error))),
            }
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.buffer.iter().position(|byte| *byte == b'\n')?;
        let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
        line.pop();
        Some(line)
    }
}
