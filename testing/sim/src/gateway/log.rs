//! What the store's leader was told and has not committed yet.
//!
//! A proposal is committed when the leader and a majority have written it to their disks, in the
//! order in which the leader was told. Who asked may have given up by then, or be dead. If the
//! leader is lost meanwhile, the next one decides: of the log it has a beginning, which it commits,
//! and the rest is lost.

use std::time::Duration;

use rand::RngExt;
use selvedge_gateway::Token;
use selvedge_gateway::kv::{StoreError, Txn, TxnReply};
use selvedge_model::Time;

use super::host::Input;
use super::world::{Action, World};

/// How long an agent's driver waits for the answer to a transaction.
const LIMIT: Duration = Duration::from_secs(2);

/// Something that the leader is to commit.
#[derive(Debug)]
pub(super) struct Proposal {
    host: usize,
    run: u64,
    due: Time,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A transaction; whoever waits for the answer knows it by the token.
    Txn(Txn, Option<Token>),
    /// A lease for the host's agent.
    Grant,
}

impl World {
    /// The leader is told a transaction.
    pub(super) fn propose(&mut self, host: usize, run: u64, token: Token, txn: Txn) {
        if txn.then.is_empty() {
            // What only reads waits for no disk.
            let reply = self.store.txn(&txn);
            return self.answer(host, run, token, reply);
        }
        self.push(self.now + LIMIT, Action::GiveUp(host, run, token));
        self.enter(host, run, What::Txn(txn, Some(token)));
    }

    /// A leader that is lost had been told; nobody waits for the answer.
    pub(super) fn propose_unheard(&mut self, host: usize, run: u64, txn: Txn) {
        self.enter(host, run, What::Txn(txn, None));
    }

    /// The leader is told to grant a lease.
    pub(super) fn propose_grant(&mut self, host: usize, run: u64) {
        self.enter(host, run, What::Grant);
    }

    fn enter(&mut self, host: usize, run: u64, what: What) {
        let longest = self.cluster.commit_time();
        let time = if longest == 0 { 0 } else { self.rng.random_range(0..longest) };
        let last = self.log.back().map_or(self.now, |last| last.due);
        let due = last.max(self.now + Duration::from_micros(time));
        self.log.push_back(Proposal { host, run, due, what });
        self.push(due, Action::Commit);
    }

    /// Commits what has been written, if there is a leader to do it.
    pub(super) fn commit(&mut self) {
        if !self.cluster.members.is_empty() && self.cluster.acting_leader().is_none() {
            return;
        }
        while self.log.front().is_some_and(|first| first.due <= self.now) {
            if let Some(proposal) = self.log.pop_front() {
                self.carry_out(proposal);
            }
        }
        self.store_changed();
    }

    /// A new leader commits what it has of the log.
    pub(super) fn inherit_log(&mut self) {
        let log = std::mem::take(&mut self.log);
        let all = self.rng.random_bool(0.5);
        let kept = if all { log.len() } else { self.rng.random_range(0..=log.len()) };
        for (number, proposal) in log.into_iter().enumerate() {
            if number < kept {
                self.carry_out(proposal);
            } else {
                self.lose(proposal);
            }
        }
    }

    /// Nobody has anything of the log.
    pub(super) fn lose_log(&mut self) {
        std::mem::take(&mut self.log).into_iter().for_each(|proposal| self.lose(proposal));
    }

    fn carry_out(&mut self, proposal: Proposal) {
        let Proposal { host, run, what, .. } = proposal;
        match what {
            What::Txn(txn, token) => {
                // It may be refused like any other.
                let reply = self.store.txn(&txn);
                if let Some(token) = token {
                    self.answer(host, run, token, reply);
                }
            }
            What::Grant => {
                let lease = self.store.grant(self.setup.timing.lease, self.now);
                let at = self.delay_micros(100, 1000);
                self.push(at, Action::ToAgent(host, run, Input::Granted(Some(lease))));
            }
        }
    }

    fn lose(&mut self, proposal: Proposal) {
        let Proposal { host, run, what, .. } = proposal;
        let at = self.delay(5, 100);
        let input = match what {
            What::Txn(_, Some(token)) => Input::Reply(token, Err(unavailable())),
            What::Txn(_, None) => return,
            What::Grant => Input::Granted(None),
        };
        self.push(at, Action::ToAgent(host, run, input));
    }

    /// Nobody waits any longer for the answer; the transaction may be committed all the same.
    pub(super) fn give_up(&mut self, host: usize, run: u64, token: Token) {
        let mine = |proposal: &&mut Proposal| {
            let asked = matches!(proposal.what, What::Txn(_, Some(it)) if it == token);
            proposal.host == host && proposal.run == run && asked
        };
        let Some(proposal) = self.log.iter_mut().find(mine) else { return };
        if let What::Txn(_, token) = &mut proposal.what {
            *token = None;
        }
        let reply = Input::Reply(token, Err(unavailable()));
        self.push(self.now, Action::ToAgent(host, run, reply));
    }

    /// The member that a host talks to answers when it has written too.
    fn answer(&mut self, host: usize, run: u64, token: Token, reply: Result<TxnReply, StoreError>) {
        let disk = self.disk_of(host);
        let at = self.delay_micros(200, 2000 + disk);
        self.push(at, Action::ToAgent(host, run, Input::Reply(token, reply)));
    }

    /// How long the member that a host talks to takes at most to write, in microseconds.
    pub(super) fn disk_of(&self, host: usize) -> u64 {
        let member = self.hosts[host].member.and_then(|member| self.cluster.members.get(member));
        member.map_or(0, |member| member.disk)
    }
}

/// Why there is no answer.
pub(super) fn unavailable() -> StoreError {
    StoreError::Unavailable("simulated".to_owned())
}
