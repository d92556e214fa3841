//! Makes batches of whole revisions out of the answers of a watch.

use etcd_client::proto::{PbEvent, PbKeyValue, PbWatchResponse};
use selvedge_gateway::kv::{Batch, Event, KeyValue, Revision};
use selvedge_gateway::model::event_key;

/// etcd's number for an event that removes a key.
const DELETE: i32 = 1;

/// Collects fragments, and drops what was seen before or lies outside the prefixes.
///
/// An answer with events may bear a revision that is later than its events, while earlier ones
/// are still to come; so only the events themselves, and answers without events, say how far the
/// watch is.
#[derive(Debug)]
pub(super) struct Assembler {
    prefixes: Vec<String>,
    seen: Revision,
    /// The revision of the last event.
    open: Revision,
    /// Whether more fragments of that revision are to come.
    partial: bool,
    events: Vec<Event>,
}

impl Assembler {
    /// For a watch of what happens under `prefixes` after `after`.
    pub(super) fn new(prefixes: Vec<String>, after: Revision) -> Self {
        Self { prefixes, seen: after, open: after, partial: false, events: Vec::new() }
    }

    /// Up to which revision everything was passed on.
    pub(super) fn seen(&self) -> Revision {
        self.seen
    }

    /// For a new watch of the same, begun after [`seen`](Self::seen): what was not complete comes
    /// again.
    pub(super) fn restarted(self) -> Self {
        Self::new(self.prefixes, self.seen)
    }

    /// Takes an answer; returns what is complete by now, if it is more than before.
    pub(super) fn take(
        &mut self,
        answer: PbWatchResponse,
        translate: impl Fn(PbKeyValue) -> Option<KeyValue>,
    ) -> Option<Batch> {
        if answer.events.is_empty() {
            let revision = answer.header.map_or(0, |header| header.revision);
            // Between fragments, only the last one tells that the revision is complete.
            return if self.partial { None } else { self.finish(Revision(revision)) };
        }
        self.partial = answer.fragment;
        let mut before = None;
        for event in answer.events {
            let revision = Revision(event.kv.as_ref().map_or(0, |kv| kv.mod_revision));
            if answer.fragment && revision > self.open && self.open > self.seen {
                before = Some((self.open, self.events.len()));
            }
            self.push(event, revision, &translate);
        }
        if !answer.fragment {
            return self.finish(self.open);
        }
        // All revisions before the last one are complete.
        let (revision, complete) = before?;
        let rest = self.events.split_off(complete);
        let batch = self.finish(revision);
        self.events = rest;
        batch
    }

    fn push(
        &mut self,
        event: PbEvent,
        revision: Revision,
        translate: impl Fn(PbKeyValue) -> Option<KeyValue>,
    ) {
        if revision <= self.seen {
            return;
        }
        self.open = self.open.max(revision);
        let Some(kv) = event.kv.and_then(translate) else { return };
        let event = if event.r#type == DELETE {
            Event::Delete { key: kv.key, modified: revision }
        } else {
            Event::Put(kv)
        };
        if self.prefixes.iter().any(|prefix| event_key(&event).starts_with(prefix)) {
            self.events.push(event);
        }
    }

    fn finish(&mut self, revision: Revision) -> Option<Batch> {
        if revision <= self.seen {
            return None;
        }
        self.seen = revision;
        self.open = self.open.max(revision);
        Some(Batch { revision, events: std::mem::take(&mut self.events) })
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::PbResponseHeader;
    use proptest::prelude::*;
    use selvedge_gateway::kv::LeaseId;

    use super::*;

    fn translate(kv: PbKeyValue) -> Option<KeyValue> {
        let (create, modified) = (Revision(kv.create_revision), Revision(kv.mod_revision));
        let lease = (kv.lease != 0).then_some(LeaseId(kv.lease));
        Some(KeyValue {
            key: String::from_utf8(kv.key).ok()?,
            value: kv.value,
            create,
            modified,
            lease,
        })
    }

    fn event(key: &str, revision: i64) -> PbEvent {
        let kv = PbKeyValue { key: key.into(), mod_revision: revision, ..PbKeyValue::default() };
        PbEvent { kv: Some(kv), ..PbEvent::default() }
    }

    fn answer(revision: i64, events: Vec<PbEvent>, fragment: bool) -> PbWatchResponse {
        let header = Some(PbResponseHeader { revision, ..PbResponseHeader::default() });
        PbWatchResponse { header, events, fragment, ..PbWatchResponse::default() }
    }

    fn keys(batch: &Batch) -> Vec<&str> {
        batch.events.iter().map(event_key).collect()
    }

    fn assembler(after: i64) -> Assembler {
        Assembler::new(vec!["/a/".to_owned(), "/c/".to_owned()], Revision(after))
    }

    #[test]
    fn the_revision_of_an_answer_with_events_is_not_trusted() {
        let mut assembler = assembler(4);
        let events = vec![event("/a/1", 5), event("/c/1", 5), event("/a/1", 6)];
        let batch = assembler.take(answer(90, events, false), translate).expect("new");
        assert_eq!((batch.revision, keys(&batch)), (Revision(6), vec!["/a/1", "/c/1", "/a/1"]));
        assert_eq!(assembler.take(answer(5, vec![], false), translate), None);
        let progress = assembler.take(answer(90, vec![], false), translate).expect("new");
        assert_eq!(progress, Batch { revision: Revision(90), events: vec![] });
    }

    #[test]
    fn what_was_seen_and_what_is_foreign_is_dropped() {
        let mut assembler = assembler(5);
        assert_eq!(assembler.take(answer(5, vec![event("/a/1", 5)], false), translate), None);
        let mut odd = event("", 6);
        odd.kv.as_mut().expect("given").key = vec![b'/', b'a', b'/', 0xff];
        let events = vec![odd, event("/b/1", 7)];
        let batch = assembler.take(answer(7, events, false), translate).expect("progress");
        assert_eq!(batch, Batch { revision: Revision(7), events: vec![] });
    }

    #[test]
    fn a_revision_in_fragments_comes_whole() {
        let mut assembler = assembler(1);
        let first = answer(9, vec![event("/a/1", 2), event("/a/1", 3), event("/a/2", 3)], true);
        let batch = assembler.take(first, translate).expect("revision 2");
        assert_eq!((batch.revision, keys(&batch)), (Revision(2), vec!["/a/1"]));
        assert_eq!(assembler.take(answer(9, vec![event("/a/3", 3)], true), translate), None);
        let last = assembler.take(answer(9, vec![event("/a/4", 3)], false), translate);
        let batch = last.expect("revision 3");
        assert_eq!(
            (batch.revision, keys(&batch)),
            (Revision(3), vec!["/a/1", "/a/2", "/a/3", "/a/4"])
        );
    }

    proptest! {
        /// However a history is cut into answers, each revision comes whole, once and in order.
        #[test]
        fn cuts_do_not_matter(
            history in prop::collection::vec(1..5usize, 1..12),
            cuts in prop::collection::vec(any::<bool>(), 60),
            after in 0..6i64,
        ) {
            let events: Vec<(i64, PbEvent)> = (1..)
                .zip(&history)
                .flat_map(|(rev, n)| (0..*n).map(move |i| (rev, event(&format!("/a/{i}"), rev))))
                .collect();
            let (mut assembler, mut got, mut chunk) = (assembler(after), Vec::new(), Vec::new());
            for (i, (revision, event)) in events.iter().enumerate() {
                chunk.push(event.clone());
                let next = events.get(i + 1).map(|(revision, _)| *revision);
                if cuts[i] || next.is_none() {
                    let fragment = next == Some(*revision);
                    let cut = answer(99, std::mem::take(&mut chunk), fragment);
                    got.extend(assembler.take(cut, translate));
                }
            }
            let mut seen = Revision(after);
            for batch in &got {
                prop_assert!(batch.revision > seen);
                for rev in seen.0 + 1..=batch.revision.0 {
                    let of_rev = |e: &&Event| matches!(e, Event::Put(kv) if kv.modified.0 == rev);
                    let at = usize::try_from(rev - 1).expect("positive");
                    prop_assert_eq!(batch.events.iter().filter(of_rev).count(), history[at]);
                }
                seen = batch.revision;
            }
            let last = i64::try_from(history.len()).expect("few").max(after);
            prop_assert_eq!(seen, Revision(last));
        }
    }
}
