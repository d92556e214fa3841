//! Word names: what a node is called that has no other name.

use selvedge_model::NodeId;

/// The word name of a node: two words and a number, such as `calm-otter-4711`. It follows from
/// the identity alone, so that it is the same on every node, in every mesh, and after every
/// restart. Two nodes may have the same one; [`crate::names`] tells them apart.
#[must_use]
pub fn word_name(node: NodeId) -> String {
    let hash = blake3::derive_key("selvedge 2026-11 word name", node.as_bytes());
    let [adjective, noun, high, low, ..] = hash;
    let pick = |words: &[&'static str; 128], byte: u8| words[usize::from(byte % 128)];
    let number = u16::from_be_bytes([high, low]) % 10_000;
    format!("{}-{}-{number:04}", pick(&ADJECTIVES, adjective), pick(&NOUNS, noun))
}

const ADJECTIVES: [&str; 128] = [
    "able", "agile", "airy", "amber", "ample", "apt", "arid", "azure", "balmy", "bold", "brave",
    "brief", "bright", "brisk", "broad", "calm", "candid", "chief", "civil", "clean", "clear",
    "clever", "cool", "coral", "cosy", "crisp", "curly", "deep", "deft", "dense", "dry", "eager",
    "early", "easy", "even", "exact", "fair", "famed", "fast", "fine", "firm", "fit", "fleet",
    "fond", "frank", "free", "fresh", "full", "gentle", "glad", "golden", "good", "grand", "great",
    "green", "handy", "happy", "hardy", "hazel", "hearty", "honest", "humble", "ideal", "indigo",
    "ivory", "jolly", "jovial", "keen", "kind", "large", "late", "lean", "level", "light",
    "lively", "long", "loyal", "lucid", "lucky", "lunar", "mellow", "merry", "mild", "misty",
    "modest", "neat", "new", "nimble", "noble", "novel", "olive", "open", "patient", "plain",
    "polite", "prime", "proud", "pure", "quick", "quiet", "rapid", "ready", "rich", "robust",
    "round", "royal", "rural", "sane", "sharp", "shiny", "silent", "silver", "sleek", "smart",
    "smooth", "snug", "solar", "solid", "spry", "steady", "still", "stout", "sunny", "swift",
    "tidy", "vivid", "warm", "wise",
];

const NOUNS: [&str; 128] = [
    "acorn", "alder", "anchor", "apple", "arch", "aspen", "badger", "bamboo", "barley", "basil",
    "beacon", "beaver", "beech", "birch", "bison", "bobbin", "bridge", "brook", "camel", "canyon",
    "cedar", "cherry", "cliff", "clover", "cobalt", "comet", "condor", "copper", "cotton",
    "cricket", "crystal", "cypress", "daisy", "dolphin", "dune", "eagle", "elm", "ember", "fabric",
    "falcon", "fern", "finch", "fjord", "forest", "fox", "garnet", "gecko", "ginger", "glacier",
    "grove", "gull", "harbor", "hazel", "hedge", "heron", "hill", "ibis", "iris", "island", "ivy",
    "jasmine", "juniper", "kestrel", "lagoon", "lake", "lantern", "larch", "lark", "laurel",
    "lemon", "lichen", "lilac", "linen", "llama", "lotus", "lynx", "magnet", "maple", "marble",
    "marten", "meadow", "mesa", "mint", "moose", "moss", "needle", "nutmeg", "oak", "oasis",
    "ocean", "onyx", "opal", "orchid", "osprey", "otter", "owl", "panda", "pebble", "pelican",
    "pepper", "pine", "plover", "pond", "poplar", "prairie", "puffin", "quail", "quartz", "rabbit",
    "raven", "reed", "ridge", "river", "robin", "saffron", "salmon", "sequoia", "shuttle",
    "sparrow", "spindle", "spruce", "thistle", "thread", "tiger", "tulip", "valley", "walnut",
    "willow",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn word_names_are_stable_and_differ() {
        // A change of the words or of the hash would rename nodes out there.
        assert_eq!(word_name(NodeId([7; 32])), "crisp-clover-8473");
        let names: BTreeSet<_> = (0..100).map(|byte| word_name(NodeId([byte; 32]))).collect();
        assert_eq!(names.len(), 100);
    }

    #[test]
    fn words_are_short_plain_and_listed_once() {
        for words in [ADJECTIVES, NOUNS] {
            let plain =
                |word: &&str| word.len() <= 8 && word.bytes().all(|b| b.is_ascii_lowercase());
            assert!(words.iter().all(plain));
            assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len());
        }
    }
}
