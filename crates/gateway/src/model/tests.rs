//! What the model promises, and a naive oracle that it is compared with.

use proptest::prelude::*;

use super::*;
use crate::kv::MAX_NESTED;

const TTL: Duration = Duration::from_secs(3);

fn put(key: &str, value: &str, lease: Option<LeaseId>) -> Op {
    Op::Put { key: key.to_owned(), value: value.into(), lease }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.to_owned() }
}

fn then(ops: impl IntoIterator<Item = Op>) -> Txn {
    Txn { compare: Vec::new(), then: ops.into_iter().collect() }
}

fn nest(compare: impl IntoIterator<Item = Compare>, ops: impl IntoIterator<Item = Op>) -> Op {
    let (compare, then) = (compare.into_iter().collect(), ops.into_iter().collect());
    Op::Nested(Txn { compare, then })
}

fn absent(key: &str) -> Compare {
    Compare::Absent { key: key.to_owned() }
}

fn reply<const N: usize>(committed: bool, revision: i64, nested: [bool; N]) -> TxnReply {
    TxnReply { committed, revision: Revision(revision), nested: nested.into() }
}

fn all() -> Vec<String> {
    vec![String::new()]
}

fn secs(secs: u64) -> Time {
    Time::ZERO + Duration::from_secs(secs)
}

#[test]
fn only_a_transaction_that_changes_something_makes_a_revision() {
    let mut model = Model::new();
    let unchanged = model.txn(&then([delete("a")])).expect("a form that is accepted");
    assert_eq!(unchanged, reply(true, 1, []));
    let changed = model.txn(&then([put("a", "1", None), put("b", "1", None)]));
    assert_eq!(changed, Ok(reply(true, 2, [])));
    let same = model.txn(&then([put("a", "1", None)])).expect("a form that is accepted");
    assert_eq!(same.revision, Revision(3), "a put of the same value is a change");
    assert_eq!(model.get("a").map(|kv| (kv.create, kv.modified)), Some((Revision(2), Revision(3))));
}

#[test]
fn refuses_what_etcd_refuses() {
    let mut model = Model::new();
    let refused = |r: Result<TxnReply, StoreError>| matches!(r, Err(StoreError::Refused(_)));
    assert!(refused(model.txn(&then([put("a", "1", None), delete("a")]))));
    assert!(refused(model.txn(&then([delete("")]))));
    let ops = |n: usize| (0..n).map(|i| put(&format!("k{i}"), "", None));
    assert!(refused(model.txn(&then(ops(MAX_OPS + 1)))));
    let big = "x".repeat(MAX_TXN_BYTES);
    assert!(refused(model.txn(&then([put("big", &big, None)]))));
    assert_eq!(model.revision(), Revision(1));
    assert!(model.txn(&then(ops(MAX_OPS))).is_ok());
}

#[test]
fn nested_transactions_decide_for_themselves_at_one_revision() {
    let mut model = Model::new();
    model.txn(&then([put("c", "0", None)])).expect("accepted");
    let mut txn = then([
        nest([absent("a")], [put("a", "1", None), put("b", "1", None)]),
        put("d", "1", None),
        nest([absent("c")], [put("e", "1", None)]),
        // It is about the state before the transaction, in which there was no such key.
        nest([absent("a")], [delete("c")]),
    ]);
    assert_eq!(model.txn(&txn), Ok(reply(true, 3, [true, false, true])));
    let snapshot = model.read(&all());
    let keys = snapshot.keys.iter().map(|kv| (kv.key.as_str(), kv.modified.0));
    assert_eq!(keys.collect::<Vec<_>>(), [("a", 3), ("b", 3), ("d", 3)]);
    txn.compare.push(absent("a"));
    assert_eq!(model.txn(&txn), Ok(reply(false, 3, [])), "the outer conditions decide first");
    let idle = then([nest([absent("a")], [put("a", "2", None)]), nest([], [])]);
    assert_eq!(model.txn(&idle), Ok(reply(true, 3, [false, true])), "nothing is changed");
}

#[test]
fn a_nested_lease_that_is_unknown_matters_only_if_its_conditions_hold() {
    let mut model = Model::new();
    let leased = || put("b", "1", Some(LeaseId(9)));
    let exists = Compare::Exists { key: "b".to_owned() };
    let held = then([put("a", "1", None), nest([absent("b")], [leased()])]);
    assert_eq!(model.txn(&held), Err(StoreError::NoLease(LeaseId(9))));
    assert_eq!(model.read(&all()).keys, Vec::new(), "nothing was changed");
    let not_held = then([put("a", "1", None), nest([exists], [leased()])]);
    assert_eq!(model.txn(&not_held), Ok(reply(true, 2, [false])));
}

#[test]
fn refuses_nested_what_etcd_refuses() {
    let refused = |txn: &Txn| matches!(check(txn), Err(StoreError::Refused(_)));
    let one = |key: &str| nest([absent("x")], [put(key, "1", None)]);
    assert!(refused(&then([one("a"), one("a")])), "two of them change one key");
    assert!(refused(&then([put("a", "1", None), nest([absent("a")], [delete("a")])])));
    assert!(refused(&then([nest([absent("")], [])])), "an empty key in a condition");
    assert!(refused(&then([one("")])), "an empty key in a change");
    assert!(refused(&then([nest([], [one("a")])])), "two levels deep");
    let big = "x".repeat(MAX_TXN_BYTES);
    assert!(refused(&then([nest([], [put("big", &big, None)])])));
    let many = |count: usize, conditions: usize| {
        then((0..count).map(|n| {
            let put = put(&format!("k{n}"), "", None);
            nest((0..conditions).map(|n| absent(&format!("c{n}"))), [put])
        }))
    };
    assert_eq!(check(&many(MAX_NESTED, 7)), Ok(()));
    assert!(refused(&many(MAX_NESTED + 1, 7)) && refused(&many(MAX_NESTED, 8)));
}

#[test]
fn an_unknown_lease_matters_only_if_the_conditions_hold() {
    let mut model = Model::new();
    let mut txn = then([put("a", "1", None), put("b", "1", Some(LeaseId(9)))]);
    assert_eq!(model.txn(&txn), Err(StoreError::NoLease(LeaseId(9))));
    assert_eq!(model.read(&all()).keys, Vec::new(), "nothing was changed");
    txn.compare.push(Compare::Exists { key: "a".to_owned() });
    assert_eq!(model.txn(&txn), Ok(reply(false, 1, [])));
}

#[test]
fn a_lease_takes_all_its_keys_at_one_revision() {
    let mut model = Model::new();
    let (one, two) = (model.grant(TTL, secs(0)), model.grant(TTL, secs(1)));
    let puts = ["a", "b", "c", "d"].map(|key| put(key, "", Some(one)));
    model.txn(&then(puts)).expect("the lease exists");
    model.txn(&then([put("b", "", Some(two)), put("c", "", None)])).expect("both exist");
    assert_eq!(model.next_expiry(), Some(secs(3)));
    assert_eq!(model.expire(Time::from_micros(2_999_999)), Vec::new());
    assert_eq!(model.expire(secs(3)), vec![one]);
    let gone = |key: &str| Event::Delete { key: key.to_owned(), modified: Revision(4) };
    let batch = model.events_after(&all(), Revision(3)).expect("nothing is compacted");
    assert_eq!(batch, Batch { revision: Revision(4), events: vec![gone("a"), gone("d")] });
    assert_eq!(model.keep_alive(one, secs(3)), Err(StoreError::NoLease(one)));
    assert_eq!(model.keep_alive(two, secs(3)), Ok(()));
    assert_eq!(model.next_expiry(), Some(secs(6)));
    assert_eq!(model.revoke(two), Ok(()));
    assert_eq!(model.read(&all()).keys.len(), 1, "only the detached key is left");
    assert_eq!(model.next_expiry(), None);
}

#[test]
fn a_lease_that_has_ended_cannot_be_kept_alive() {
    let mut model = Model::new();
    let lease = model.grant(Duration::from_millis(2_001), secs(0));
    assert_eq!(model.next_expiry(), Some(secs(3)), "raised to whole seconds");
    assert_eq!(model.keep_alive(lease, secs(3)), Err(StoreError::NoLease(lease)));
    assert!(model.grant_with_id(lease, TTL, secs(3)).is_err(), "it is still there");
    assert_eq!(model.grant_with_id(LeaseId(70), TTL, secs(3)), Ok(()));
    assert_eq!(model.grant(TTL, secs(3)), LeaseId(71));
}

#[test]
fn prefixes_that_overlap_yield_each_key_once() {
    let mut model = Model::new();
    let keys = ["a", "ab", "abc", "b", "ba"].map(|key| put(key, "", None));
    model.txn(&then(keys)).expect("a form that is accepted");
    let prefixes = ["b", "ab", "abc"].map(str::to_owned);
    let keys: Vec<_> = model.read(&prefixes).keys.into_iter().map(|kv| kv.key).collect();
    assert_eq!(keys, ["ab", "abc", "b", "ba"]);
    let events = model.events_after(&prefixes, Revision(1)).expect("not compacted").events;
    assert_eq!(events.len(), 4);
}

#[test]
fn history_is_bounded_by_whole_revisions() {
    let mut model = Model::with_history(3);
    for _ in 0..3 {
        model.txn(&then([put("a", "", None), put("b", "", None)])).expect("accepted");
    }
    assert_eq!(model.compacted(), Revision(3));
    let old = model.events_after(&all(), Revision(2));
    assert_eq!(old, Err(StoreError::Compacted(Revision(3))));
    let new = model.events_after(&all(), Revision(3)).expect("remembered");
    assert_eq!((new.revision, new.events.len()), (Revision(4), 2));
    assert!(matches!(model.events_after(&all(), Revision(5)), Err(StoreError::Refused(_))));
}

/// The naive oracle: every state that there ever was.
struct Oracle {
    /// The index is the revision; index 0 stands for the time before.
    states: Vec<BTreeMap<String, KeyValue>>,
    /// Each with its time to live and its end, in seconds.
    leases: Vec<(LeaseId, u64, u64)>,
    compacted: usize,
    now: u64,
}

impl Oracle {
    fn new() -> Self {
        let states = vec![BTreeMap::new(), BTreeMap::new()];
        Self { states, leases: Vec::new(), compacted: 0, now: 0 }
    }

    fn current(&self) -> BTreeMap<String, KeyValue> {
        self.states.last().cloned().unwrap_or_default()
    }

    fn next(&self) -> Revision {
        Revision(i64::try_from(self.states.len()).expect("few states"))
    }

    fn commit(&mut self, state: BTreeMap<String, KeyValue>) {
        if state != self.current() {
            self.states.push(state);
        }
    }

    fn txn(&mut self, txn: &Txn) {
        let mut state = self.current();
        let changes: Vec<&Op> = txn.changes().collect();
        let unique: BTreeSet<_> = changes.iter().map(|op| op.key()).collect();
        if !holds(&state, txn) || unique.len() < changes.len() {
            return;
        }
        let held = txn.then.iter().filter(|op| match op {
            Op::Nested(txn) => holds(&state, txn),
            Op::Put { .. } | Op::Delete { .. } => true,
        });
        let due: Vec<&Op> = held.flat_map(Op::parts).collect();
        if !self.leases_exist(&due) {
            return;
        }
        for op in due {
            match op {
                Op::Put { key, value, lease } => {
                    let create = state.get(key).map_or(self.next(), |kv| kv.create);
                    let (key, value, lease) = (key.clone(), value.clone(), *lease);
                    let modified = self.next();
                    let kv = KeyValue { key: key.clone(), value, create, modified, lease };
                    state.insert(key, kv);
                }
                Op::Delete { key } => {
                    state.remove(key);
                }
                Op::Nested(_) => {}
            }
        }
        self.commit(state);
    }

    fn leases_exist(&self, ops: &[&Op]) -> bool {
        ops.iter().all(|op| match op {
            Op::Put { lease: Some(id), .. } => self.leases.iter().any(|(l, ..)| l == id),
            Op::Put { .. } | Op::Delete { .. } | Op::Nested(_) => true,
        })
    }

    fn revoke(&mut self, id: LeaseId) {
        self.leases.retain(|(lease, ..)| *lease != id);
        let mut state = self.current();
        state.retain(|_, kv| kv.lease != Some(id));
        self.commit(state);
    }

    fn expire(&mut self) {
        let mut ended: Vec<_> = self.leases.clone();
        ended.retain(|(.., deadline)| *deadline <= self.now);
        ended.sort_by_key(|(id, _, deadline)| (*deadline, *id));
        for (id, ..) in ended {
            self.revoke(id);
        }
    }

    fn events(&self, prefix: &str, after: usize) -> Vec<Event> {
        let mut events = Vec::new();
        for (at, pair) in self.states.windows(2).enumerate().skip(after) {
            let revision = Revision(i64::try_from(at + 1).expect("few states"));
            let keys: BTreeSet<_> = pair.iter().flat_map(BTreeMap::keys).collect();
            for key in keys.into_iter().filter(|key| key.starts_with(prefix)) {
                match (pair[0].get(key), pair[1].get(key)) {
                    (_, Some(kv)) if kv.modified == revision => {
                        events.push(Event::Put(kv.clone()));
                    }
                    (Some(_), None) => {
                        events.push(Event::Delete { key: key.clone(), modified: revision });
                    }
                    (None, None) | (_, Some(_)) => {}
                }
            }
        }
        events
    }
}

fn holds(state: &BTreeMap<String, KeyValue>, txn: &Txn) -> bool {
    txn.compare.iter().all(|compare| match compare {
        Compare::Absent { key } => !state.contains_key(key),
        Compare::Exists { key } => state.contains_key(key),
        Compare::Modified { key, at } => state.get(key).map(|kv| kv.modified) == Some(*at),
        Compare::Created { key, at } => state.get(key).map(|kv| kv.create) == Some(*at),
    })
}

#[derive(Clone, Debug)]
enum Step {
    Txn(Txn),
    Grant(u64),
    KeepAlive(usize),
    Revoke(usize),
    Wait(u64),
    Compact(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => txns().prop_map(Step::Txn),
        2 => (2..6u64).prop_map(Step::Grant),
        1 => (0..4usize).prop_map(Step::KeepAlive),
        1 => (0..4usize).prop_map(Step::Revoke),
        2 => (0..4u64).prop_map(Step::Wait),
        1 => (0..6usize).prop_map(Step::Compact),
    ];
    prop::collection::vec(step, 0..60)
}

fn txns() -> impl Strategy<Value = Txn> {
    let key = || prop::sample::select(vec!["a", "a/1", "a/2", "b", "b/1"]).prop_map(str::to_owned);
    let at = (1..12i64).prop_map(Revision);
    let lease = prop::option::of((1..4i64).prop_map(LeaseId));
    let compare = prop_oneof![
        key().prop_map(|key| Compare::Absent { key }),
        key().prop_map(|key| Compare::Exists { key }),
        (key(), at.clone()).prop_map(|(key, at)| Compare::Modified { key, at }),
        (key(), at).prop_map(|(key, at)| Compare::Created { key, at }),
    ];
    let op = prop_oneof![
        2 => (key(), any::<u8>(), lease)
            .prop_map(|(key, value, lease)| Op::Put { key, value: vec![value], lease }),
        1 => key().prop_map(|key| Op::Delete { key }),
    ];
    let txn = |op: BoxedStrategy<Op>| {
        (prop::collection::vec(compare.clone(), 0..2), prop::collection::vec(op, 0..4))
            .prop_map(|(compare, then)| Txn { compare, then })
    };
    let nested = txn(op.clone().boxed()).prop_map(Op::Nested);
    txn(prop_oneof![3 => op, 1 => nested].boxed())
}

fn take(step: Step, model: &mut Model, oracle: &mut Oracle) {
    let now = |oracle: &Oracle| secs(oracle.now);
    let nth = |oracle: &Oracle, n: usize| oracle.leases.get(n).map(|(id, ..)| *id);
    match step {
        Step::Txn(txn) => {
            let _ = model.txn(&txn);
            oracle.txn(&txn);
        }
        Step::Grant(ttl) => {
            let id = model.grant(Duration::from_secs(ttl), now(oracle));
            oracle.leases.push((id, ttl, oracle.now + ttl));
        }
        Step::KeepAlive(n) => {
            if let Some(id) = nth(oracle, n) {
                model.keep_alive(id, now(oracle)).expect("expired ones were removed");
                oracle.leases[n].2 = oracle.now + oracle.leases[n].1;
            }
        }
        Step::Revoke(n) => {
            if let Some(id) = nth(oracle, n) {
                model.revoke(id).expect("it exists");
                oracle.revoke(id);
            }
        }
        Step::Wait(time) => {
            oracle.now += time;
            model.expire(now(oracle));
            oracle.expire();
        }
        Step::Compact(back) => {
            let to = oracle.states.len().saturating_sub(1 + back);
            if model.compact(Revision(i64::try_from(to).expect("few"))).is_ok() {
                oracle.compacted = to;
            }
        }
    }
}

proptest! {
    #[test]
    fn agrees_with_the_oracle(steps in steps()) {
        let (mut model, mut oracle) = (Model::new(), Oracle::new());
        for step in steps {
            take(step, &mut model, &mut oracle);
            let keys: Vec<_> = oracle.current().into_values().collect();
            let snapshot = model.read(&all());
            prop_assert_eq!(snapshot.keys, keys);
            prop_assert_eq!(snapshot.revision.0 + 1, oracle.next().0);
            let first = oracle.leases.iter().map(|(.., deadline)| secs(*deadline)).min();
            prop_assert_eq!(model.next_expiry(), first);
        }
        for after in 0..oracle.states.len() {
            for prefix in ["", "a", "b/"] {
                let from = Revision(i64::try_from(after).expect("few"));
                let got = model.events_after(&[prefix.to_owned()], from);
                if after < oracle.compacted {
                    prop_assert_eq!(got, Err(StoreError::Compacted(model.compacted())));
                    continue;
                }
                let mut events = got.expect("neither compacted nor in the future").events;
                events.sort_by_key(|e| (modified(e), event_key(e).to_owned()));
                prop_assert_eq!(events, oracle.events(prefix, after));
            }
        }
    }

    #[test]
    fn pages_of_events_make_up_the_whole(steps in steps(), limit in 1..5usize) {
        let (mut model, mut oracle) = (Model::new(), Oracle::new());
        for step in steps.into_iter().filter(|step| !matches!(step, Step::Compact(_))) {
            take(step, &mut model, &mut oracle);
        }
        let (mut after, mut events) = (Revision(0), Vec::new());
        while after < model.revision() {
            let page = model.events_after_up_to(&all(), after, limit).expect("not compacted");
            prop_assert!(page.revision > after);
            after = page.revision;
            events.extend(page.events);
        }
        let whole = model.events_after(&all(), Revision(0)).expect("not compacted");
        prop_assert_eq!(events, whole.events);
    }
}

fn modified(event: &Event) -> Revision {
    match event {
        Event::Put(kv) => kv.modified,
        Event::Delete { modified, .. } => *modified,
    }
}

#[test]
fn a_bumped_store_is_read_anew_and_goes_on_from_there() {
    let mut model = Model::new();
    let put = |key: &str| Txn {
        compare: vec![],
        then: vec![Op::Put { key: key.to_owned(), value: vec![], lease: None }],
    };
    let before = model.txn(&put("a")).expect("valid").revision;
    model.bump_beyond(Revision(77));
    let prefixes = [String::new()];
    assert!(matches!(model.events_after(&prefixes, before), Err(StoreError::Compacted(_))));
    let snapshot = model.read(&prefixes);
    assert_eq!((snapshot.revision, snapshot.keys[0].modified), (Revision(77 + BUMP), before));
    let after = model.txn(&put("b")).expect("valid").revision;
    let batch = model.events_after(&prefixes, snapshot.revision).expect("it is remembered");
    assert_eq!((batch.revision, batch.events.len()), (after, 1));
}
