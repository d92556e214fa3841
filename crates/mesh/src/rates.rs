//! How much one partner may ask of this node: a bucket of tokens for each kind of message, and one
//! for nonsense. What is more than a partner in good order ever sends is dropped and counted; who
//! sends nonsense again and again is not heard for a while. No partner's doings take from what
//! another may ask; all strangers share one account, for anybody can make up identities. A member
//! pays for what it is answered too, afterwards: it may fall into debt, and is not heard on the
//! matter until that is paid.

use std::collections::BTreeMap;
use std::time::Duration;

use selvedge_model::{NodeId, Time};

/// Tokens that a message takes beside one for each so many bytes of it.
const BYTES_PER_TOKEN: usize = 1200;
/// How long a node that sends nonsense is not heard.
const SILENCE: Duration = Duration::from_secs(60);
/// The greatest number of accounts. Who has asked nothing for a while needs none.
const MAX_ACCOUNTS: usize = 8192;

/// What a message is about, as far as its price goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Probes and accusations.
    Probe,
    /// What is new, and doubts.
    News,
    /// Reconciliation.
    Repair,
    /// Admission.
    Join,
    /// What clients say to each other.
    Call,
    /// An eviction that a stranger brings: its signatures are checked, whoever that is.
    Eviction,
    /// What nobody in good order sends.
    Nonsense,
}

/// Why a message is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    /// The sender has asked too much.
    TooMuch,
    /// The sender is not heard, for what it sent before.
    Silenced,
}

impl Purpose {
    /// By the number of a message's kind.
    pub(crate) const fn of(kind: u64) -> Self {
        match kind {
            8..=13 => Self::News,
            16..=18 => Self::Join,
            24..=28 => Self::Probe,
            29 => Self::Call,
            _ => Self::Repair,
        }
    }

    /// Tokens per second, and the greatest number of tokens that are saved. Many times what was
    /// seen in simulations of thousands of nodes that lose half of the mesh and find it again.
    const fn terms(self) -> (u32, u32) {
        match self {
            Self::Probe => (100, 1_000),
            Self::News => (1_000, 10_000),
            Self::Repair => (1_000, 30_000),
            Self::Join => (10, 200),
            Self::Call => (100, 2_000),
            Self::Eviction => (20, 500),
            Self::Nonsense => (1, 20),
        }
    }
}

const PURPOSES: [Purpose; 7] = [
    Purpose::Probe,
    Purpose::News,
    Purpose::Repair,
    Purpose::Join,
    Purpose::Call,
    Purpose::Eviction,
    Purpose::Nonsense,
];

/// The accounts of all partners.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rates {
    members: BTreeMap<NodeId, Account>,
    strangers: Option<Account>,
    silenced: BTreeMap<NodeId, Time>,
}

/// Thousandths of tokens that are left, by purpose, as of a moment; less than none is a debt.
#[derive(Clone, Copy, Debug)]
struct Account {
    left: [i64; PURPOSES.len()],
    as_of: Time,
}

impl Rates {
    /// Takes the price of a message of `len` bytes; says why it is not to be taken in.
    pub(crate) fn take(
        &mut self,
        from: NodeId,
        is_member: bool,
        (purpose, len): (Purpose, usize),
        now: Time,
    ) -> Result<(), Excess> {
        if self.silenced.get(&from).is_some_and(|until| now < *until) {
            return Err(Excess::Silenced);
        }
        let price = 1 + u64::try_from(len / BYTES_PER_TOKEN).unwrap_or(u64::MAX);
        let paid = self.account(from, is_member, now).is_some_and(|a| a.pay(purpose, price));
        paid.then_some(()).ok_or(Excess::TooMuch)
    }

    /// Takes the price of an answer of `len` bytes to a member, be there so much or not.
    pub(crate) fn charge(&mut self, member: NodeId, (purpose, len): (Purpose, usize), now: Time) {
        let price = u64::try_from(len / BYTES_PER_TOKEN).unwrap_or(u64::MAX);
        if price > 0
            && let Some(account) = self.account(member, true, now)
        {
            account.owe(purpose, price);
        }
    }

    /// Notes that a node sent nonsense. Says whether it is not heard from now on.
    pub(crate) fn note_nonsense(&mut self, from: NodeId, is_member: bool, now: Time) -> bool {
        // Who has no account, because there are too many, may be in good order.
        let Some(account) = self.account(from, is_member, now) else { return false };
        if account.pay(Purpose::Nonsense, 1) || !is_member {
            return false;
        }
        self.silenced.insert(from, now + SILENCE);
        true
    }

    /// Who is not heard at `now`.
    pub(crate) fn silenced(&self, now: Time) -> impl Iterator<Item = NodeId> {
        self.silenced.iter().filter(move |(_, until)| now < **until).map(|(node, _)| *node)
    }

    /// Forgets those who may ask for all again.
    pub(crate) fn forget(&mut self, now: Time) {
        self.silenced.retain(|_, until| now < *until);
        self.members.retain(|_, account| {
            account.save(now);
            !account.is_full()
        });
    }

    fn account(&mut self, from: NodeId, is_member: bool, now: Time) -> Option<&mut Account> {
        let account = if !is_member {
            self.strangers.get_or_insert_with(|| Account::new(now))
        } else if self.members.len() >= MAX_ACCOUNTS {
            self.members.get_mut(&from)?
        } else {
            self.members.entry(from).or_insert_with(|| Account::new(now))
        };
        account.save(now);
        Some(account)
    }
}

impl Account {
    fn new(now: Time) -> Self {
        Self { left: PURPOSES.map(most), as_of: now }
    }

    /// Adds what has come in since, for whole milliseconds: a token per second is a thousandth per
    /// millisecond, so that nothing is lost however often this is called.
    fn save(&mut self, now: Time) {
        let passed = u64::try_from(now.since(self.as_of).as_millis()).unwrap_or(u64::MAX);
        self.as_of = self.as_of + Duration::from_millis(passed);
        let passed = i64::try_from(passed).unwrap_or(i64::MAX);
        for (left, purpose) in self.left.iter_mut().zip(PURPOSES) {
            let (rate, _) = purpose.terms();
            let more = passed.saturating_mul(i64::from(rate));
            *left = left.saturating_add(more).min(most(purpose));
        }
    }

    /// Takes so many tokens if they are there. Says whether they were.
    fn pay(&mut self, purpose: Purpose, tokens: u64) -> bool {
        let (left, price) = (self.left(purpose), thousandths(tokens));
        let paid = left.is_some_and(|left| *left >= price);
        if paid {
            self.owe(purpose, tokens);
        }
        paid
    }

    /// Takes so many tokens.
    fn owe(&mut self, purpose: Purpose, tokens: u64) {
        if let Some(left) = self.left(purpose) {
            *left = left.saturating_sub(thousandths(tokens));
        }
    }

    fn left(&mut self, purpose: Purpose) -> Option<&mut i64> {
        let places = self.left.iter_mut().zip(PURPOSES);
        places.filter(|(_, of)| *of == purpose).map(|(left, _)| left).next()
    }

    fn is_full(&self) -> bool {
        self.left.iter().zip(PURPOSES).all(|(left, purpose)| *left >= most(purpose))
    }
}

/// The greatest number of thousandths of tokens that are saved.
fn most(purpose: Purpose) -> i64 {
    let (_, burst) = purpose.terms();
    i64::from(burst) * 1000
}

fn thousandths(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX).saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBE: (Purpose, usize) = (Purpose::Probe, 50);

    fn node(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1000)
    }

    fn accepted(rates: &mut Rates, from: u8, what: (Purpose, usize), now: Time) -> usize {
        (0..50_000).take_while(|_| rates.take(node(from), true, what, now).is_ok()).count()
    }

    #[test]
    fn each_partner_and_each_purpose_has_tokens_of_its_own() {
        let mut rates = Rates::default();
        assert_eq!(accepted(&mut rates, 1, PROBE, at(0)), 1000);
        assert_eq!(rates.take(node(1), true, PROBE, at(0)), Err(Excess::TooMuch));
        assert_eq!(accepted(&mut rates, 1, (Purpose::Join, 0), at(0)), 200);
        assert_eq!(accepted(&mut rates, 2, PROBE, at(0)), 1000);
    }

    #[test]
    fn tokens_come_in_again_and_are_saved_up_to_a_bound() {
        let mut rates = Rates::default();
        accepted(&mut rates, 1, PROBE, at(0));
        assert_eq!(accepted(&mut rates, 1, PROBE, at(1000)), 100);
        // Often and little is the same as seldom and much.
        let often: usize = (1..=1000).map(|ms| accepted(&mut rates, 1, PROBE, at(1000 + ms))).sum();
        assert_eq!(often, 100);
        assert_eq!(accepted(&mut rates, 1, PROBE, at(3_600_000)), 1000);
    }

    #[test]
    fn long_messages_cost_more() {
        let mut rates = Rates::default();
        assert_eq!(accepted(&mut rates, 1, (Purpose::Repair, 1 << 20), at(0)), 34);
    }

    #[test]
    fn who_is_answered_at_length_pays_for_it() {
        let mut rates = Rates::default();
        let ask = (Purpose::Repair, 50);
        rates.charge(node(1), (Purpose::Repair, 31_000 * BYTES_PER_TOKEN), at(0));
        assert_eq!(rates.take(node(1), true, ask, at(0)), Err(Excess::TooMuch));
        assert_eq!(rates.take(node(1), true, PROBE, at(0)), Ok(()), "of other things it may speak");
        assert_eq!(rates.take(node(1), true, ask, at(1000)), Err(Excess::TooMuch));
        assert_eq!(accepted(&mut rates, 1, ask, at(1010)), 10);
        rates.charge(node(2), (Purpose::Repair, BYTES_PER_TOKEN - 1), at(0));
        assert_eq!(accepted(&mut rates, 2, ask, at(0)), 30_000);
    }

    #[test]
    fn nothing_is_lost_however_often_an_account_is_looked_at() {
        let mut rates = Rates::default();
        while !rates.note_nonsense(node(1), true, at(0)) {}
        let half_ms = |count: u64| Time::from_micros(500 * count);
        for count in 1..=2_000 {
            let _ = rates.take(node(1), true, PROBE, half_ms(count));
            if let Some(account) = rates.members.get_mut(&node(1)) {
                account.save(half_ms(count));
            }
        }
        assert!(!rates.note_nonsense(node(1), true, half_ms(2_000)), "one token in a second");
    }

    #[test]
    fn who_has_no_account_is_not_silenced_for_it() {
        let mut rates = Rates::default();
        for number in 0..=u16::try_from(MAX_ACCOUNTS).expect("a few thousand") {
            let mut id = [7; 32];
            id[..2].copy_from_slice(&number.to_be_bytes());
            let _ = rates.take(NodeId(id), true, PROBE, at(0));
        }
        assert_eq!(rates.members.len(), MAX_ACCOUNTS);
        assert!(!rates.note_nonsense(node(1), true, at(0)));
        assert_eq!(rates.silenced(at(0)).count(), 0);
    }

    #[test]
    fn strangers_share_one_account() {
        let mut rates = Rates::default();
        let heard = (0..5000_u16).filter(|number| {
            let mut id = [9; 32];
            id[..2].copy_from_slice(&number.to_be_bytes());
            rates.take(NodeId(id), false, (Purpose::Join, 100), at(0)).is_ok()
        });
        assert_eq!(heard.count(), 200);
        assert!(rates.members.is_empty());
    }

    #[test]
    fn who_sends_nonsense_again_and_again_is_not_heard_for_a_while() {
        let mut rates = Rates::default();
        let times = (0..100).take_while(|_| !rates.note_nonsense(node(1), true, at(0))).count();
        assert_eq!(times, 20);
        assert_eq!(rates.silenced(at(0)).collect::<Vec<_>>(), [node(1)]);
        assert_eq!(rates.take(node(1), true, PROBE, at(59_999)), Err(Excess::Silenced));
        assert_eq!(rates.take(node(2), true, PROBE, at(0)), Ok(()));
        assert_eq!(rates.take(node(1), true, PROBE, at(60_000)), Ok(()));
        // Now and then does no harm.
        let seldom = (0..1000).any(|n| rates.note_nonsense(node(3), true, at(n * 1000)));
        assert!(!seldom);
    }

    #[test]
    fn accounts_are_bounded_and_forgotten() {
        let mut rates = Rates::default();
        for number in 0..20_000_u16 {
            let mut id = [7; 32];
            id[..2].copy_from_slice(&number.to_be_bytes());
            let _ = rates.take(NodeId(id), true, PROBE, at(0));
        }
        assert_eq!(rates.members.len(), MAX_ACCOUNTS);
        rates.forget(at(1));
        assert_eq!(rates.members.len(), MAX_ACCOUNTS, "a token is still missing from each");
        rates.forget(at(1000));
        assert!(rates.members.is_empty() && rates.silenced.is_empty());
    }
}
