//! The task that seals and opens.

use std::net::SocketAddr;
use std::sync::Arc;

use selvedge_model::NodeId;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::detour::Detour;
use super::post::Post;
use crate::mux::{Diverted, Mux};
use crate::{AccessList, Agreement, BindError, Counters, Received};

/// What handles ask for.
pub(crate) enum Request {
    Send { to: NodeId, addrs: Vec<SocketAddr>, message: Vec<u8> },
    Close,
}

/// Seals what is sent, and opens what arrives.
pub(crate) struct Courier {
    post: Post,
    socket: Arc<Mux>,
    access: watch::Receiver<AccessList>,
    inbox: mpsc::Sender<Received>,
    counters: Arc<Counters>,
    detour: Detour,
}

impl Courier {
    pub(crate) fn new(
        agreement: Agreement,
        socket: Arc<Mux>,
        access: watch::Receiver<AccessList>,
        inbox: mpsc::Sender<Received>,
        counters: Arc<Counters>,
        detour: Detour,
    ) -> Result<Self, BindError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| BindError::Random(error.to_string()))?;
        let post = Post::new(agreement, seed, counters.clone(), Instant::now());
        Ok(Self { post, socket, access, inbox, counters, detour })
    }

    /// Runs until the last handle is gone or one asks for the end.
    pub(crate) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut diverted: mpsc::Receiver<Diverted>,
    ) {
        loop {
            let due = self.post.poll_timeout();
            tokio::select! {
                request = requests.recv() => match request {
                    Some(Request::Send { to, addrs, message }) => self.send(to, &addrs, message),
                    Some(Request::Close) | None => return,
                },
                Some((remote, datagram)) = diverted.recv() => self.receive(remote, &datagram),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.post.handle_timeout(Instant::now());
                }
                Ok(()) = self.access.changed() => self.follow(),
            }
            while let Some((to, datagram)) = self.post.poll_transmit() {
                self.transmit(to, &datagram);
            }
            self.detour();
        }
    }

    fn send(&mut self, to: NodeId, addrs: &[SocketAddr], message: Vec<u8>) {
        let access = self.access.borrow();
        let linked = self.detour.is_linked(to);
        self.post.send(to, addrs, message, linked, &access, Instant::now());
    }

    /// What does not get through as a datagram goes over a stream.
    fn detour(&mut self) {
        let now = Instant::now();
        while let Some(detoured) = self.post.poll_detoured() {
            match self.detour.send(detoured, now) {
                true => self.counters.datagrams_detoured.bump(),
                false => self.counters.datagrams_dropped.bump(),
            }
        }
    }

    fn receive(&mut self, remote: SocketAddr, datagram: &[u8]) {
        let received = {
            let access = self.access.borrow();
            self.post.receive(remote, datagram, &access, Instant::now())
        };
        let Some((from, bytes)) = received else { return };
        // A datagram may be lost; it must not wait for whoever reads slowly.
        match self.inbox.try_send(Received::new(from, remote, bytes)) {
            Ok(()) => self.counters.datagrams_received.bump(),
            Err(_) => self.counters.datagrams_dropped.bump(),
        }
    }

    fn follow(&mut self) {
        let access = self.access.borrow_and_update();
        self.post.follow(&access);
    }

    fn transmit(&self, to: SocketAddr, datagram: &[u8]) {
        if let Err(error) = self.socket.send(to, datagram) {
            tracing::trace!(%to, %error, "a datagram was not sent");
            self.counters.datagrams_dropped.bump();
        }
    }
}
