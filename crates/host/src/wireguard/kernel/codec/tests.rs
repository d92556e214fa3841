//! The expected bytes are written by hand, after `include/uapi/linux/wireguard.h`. They are those
//! of a machine with the least significant byte first.

use std::collections::BTreeSet;

use super::*;

const KEY: WgKey = WgKey([0xaa; 32]);

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    data_encoding::HEXLOWER.decode(digits.as_bytes()).expect("hexadecimal")
}

fn spec(endpoint: &str, keepalive: Option<u16>, allowed: &[&str]) -> PeerSpec {
    let allowed = allowed.iter().map(|text| text.parse().expect("a prefix")).collect();
    PeerSpec { endpoint: endpoint.parse().ok(), allowed, keepalive }
}

/// An attribute with the key of the peer.
fn key() -> String {
    format!("24000100 {}", "aa".repeat(32))
}

#[test]
fn a_device_is_told_its_key_its_port_and_its_mark() {
    let expected = format!(
        "08000100 07000000  24000300 {}  06000600 6cca0000  08000700 e1050000",
        "11".repeat(32)
    );
    assert_eq!(device(7, Some(&[0x11; 32]), Some(51820), Some(0x5e1)), hex(&expected));
    assert_eq!(device(7, None, None, Some(0)), hex("08000100 07000000 08000700 00000000"));
}

#[test]
fn a_new_peer_replaces_the_prefixes_of_one_that_was_there() {
    let spec = spec("192.0.2.1:51820", Some(25), &["10.9.1.7/16", "fd77::2/128"]);
    let expected = format!(
        "08000100 07000000
         98000880 94000080
           {}
           08000300 02000000
           14000400 0200ca6c c0000201 0000000000000000
           06000500 19000000
           48000980
             1c000080  06000100 02000000  08000200 0a090000  05000300 10000000
             28000080 06000100 0a000000  14000200 fd770000000000000000000000000002
             05000300 80000000",
        key()
    );
    assert_eq!(peers(7, &[Step::Add(KEY, &spec)]), [hex(&expected)]);
}

#[test]
fn what_changes_about_a_peer_is_all_that_is_told() {
    let one = |step| peers(7, &[step]).remove(0).split_off(16);
    let gone = format!("{} 08000300 01000000", key());
    assert_eq!(one(Step::Remove(KEY)), hex(&gone));
    let endpoint = "[2001:db8::9]:258".parse().ok();
    let moved = format!(
        "{} 08000300 04000000 20000400 0a000102 00000000 20010db8000000000000000000000009 00000000",
        key()
    );
    let update = Update { endpoint, ..Update::default() };
    assert_eq!(one(Step::Update(KEY, update)), hex(&moved));
    let quiet = format!("{} 08000300 04000000 06000500 00000000", key());
    let update = Update { keepalive: Some(None), ..Update::default() };
    assert_eq!(one(Step::Update(KEY, update)), hex(&quiet));
    // Without any prefix those that it has are taken from it.
    let none = spec("", None, &[]);
    let update = Update { allowed: Some(&none), ..Update::default() };
    assert_eq!(one(Step::Update(KEY, update)), hex(&format!("{} 08000300 06000000", key())));
}

/// The flags of all pieces of peers in a command.
fn flags(message: &[u8]) -> Vec<u32> {
    let list = attributes(message).map(|it| it.expect("whole")).find(|it| it.0 == PEERS);
    let pieces = attributes(list.expect("peers").1).map(|it| it.expect("whole").1);
    let of = |piece| {
        let mut found = attributes(piece).map(|it| it.expect("whole"));
        let flags = found.find(|it| it.0 == PEER_FLAGS)?.1;
        Some(u32::from_ne_bytes(exactly(flags).expect("four bytes")))
    };
    pieces.map(|piece| of(piece).unwrap_or(0)).collect()
}

#[test]
fn many_prefixes_of_a_peer_go_on_in_other_messages_and_replace_once() {
    let prefix = |number: u32| Prefix::host(Ipv4Addr::from(0x0a00_0000 + number).into());
    let allowed: BTreeSet<Prefix> = (0..2000).map(prefix).collect();
    let spec = PeerSpec { allowed, ..PeerSpec::default() };
    let messages = peers(7, &[Step::Add(KEY, &spec)]);
    assert!(messages.len() > 2 && messages.iter().all(|it| it.len() < MESSAGE * 2));
    let all: Vec<u32> = messages.iter().flat_map(|message| flags(message)).collect();
    assert_eq!(all.len(), 2000_usize.div_ceil(PIECE));
    assert_eq!(all[0], REPLACE_ALLOWED);
    assert!(all[1..].iter().all(|flags| *flags == UPDATE_ONLY), "{all:?}");
    // The kernel tells it in the same form.
    let mut told = Told::default();
    messages.iter().for_each(|message| told.add(message).expect("well-formed"));
    assert_eq!(told.peers[&KEY].spec, spec);
}

#[test]
fn many_peers_take_many_messages_and_are_read_from_many() {
    let specs: BTreeMap<WgKey, PeerSpec> = (0..3000_u32)
        .map(|number| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            let at = format!("[2001:db8::{number:x}]:7");
            (WgKey(key), spec(&at, Some(25), &["fd77::/64", "10.0.0.0/8"]))
        })
        .collect();
    let steps: Vec<Step<'_>> = specs.iter().map(|(key, spec)| Step::Add(*key, spec)).collect();
    let messages = peers(7, &steps);
    assert!(messages.len() > 10 && messages.iter().all(|it| it.len() <= MESSAGE + 8 * 1024));
    let mut told = Told::default();
    messages.iter().for_each(|message| told.add(message).expect("well-formed"));
    let found: BTreeMap<_, _> = told.peers.into_iter().map(|(key, it)| (key, it.spec)).collect();
    assert_eq!(found, specs);
}

#[test]
fn what_the_kernel_tells_is_put_together_by_key() {
    let first = format!(
        "08000100 07000000  08000200 77673000  24000400 {}  06000600 6cca0000  08000700 e1050000
         c0000880 bc000080
           {}
           24000200 {}
           14000400 0200ca6c c0000201 0000000000000000
           06000500 19000000
           14000600 00f1536500000000 0065cd1d00000000
           0c000700 0001000000000000
           0c000800 ffffffffffffffff
           08000a00 01000000
           20000980 1c000080  06000100 02000000  08000200 0a090000  05000300 10000000",
        "bb".repeat(32),
        key(),
        "00".repeat(32),
    );
    let second = format!(
        "4c000880 48000080 {} 20000980 1c000080 06000100 02000000 08000200 0a0a0000 05000300 10000000",
        key()
    );
    let (first, second) = (hex(&first), hex(&second));
    let mut told = Told::default();
    told.add(&first).expect("well-formed");
    told.add(&second).expect("well-formed");
    assert_eq!((told.public_key, told.port, told.mark), (Some(WgKey([0xbb; 32])), 51820, 0x5e1));
    let expected = spec("192.0.2.1:51820", Some(25), &["10.9.0.0/16", "10.10.0.0/16"]);
    assert_eq!(told.peers[&KEY].spec, expected);
    // 1 700 000 000 s and half a second.
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_003_500);
    let status = PeerStatus {
        key: KEY,
        endpoint: expected.endpoint,
        last_handshake: Some(Duration::from_secs(3)),
        rx: 256,
        tx: u64::MAX,
    };
    assert_eq!(told.statuses(now), [status]);
    let earlier = told.statuses(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    assert_eq!(earlier[0].last_handshake, Some(Duration::ZERO), "the clock was set back");
    let fresh = Told { peers: [(KEY, ToldPeer::default())].into(), ..Told::default() };
    assert_eq!(fresh.statuses(now)[0].last_handshake, None);
}

/// Whatever a byte is changed to, the decoder comes to an end.
#[test]
fn broken_messages_do_no_harm() {
    let spec = spec("[2001:db8::1]:7", Some(25), &["10.9.0.0/16", "fd77::2/128"]);
    let message = peers(7, &[Step::Add(KEY, &spec)]).remove(0);
    let mut refused = 0;
    for at in 0..message.len() {
        for value in [0, 1, 3, 4, 5, 0x7f, 0x80, 0xff] {
            let mut broken = message.clone();
            broken[at] = value;
            refused += usize::from(Told::default().add(&broken).is_err());
        }
    }
    assert!(refused > message.len(), "{refused}");
}

#[test]
fn what_is_malformed_is_refused() {
    let spec = spec("192.0.2.1:7", None, &["10.9.0.0/16"]);
    let message = peers(7, &[Step::Add(KEY, &spec)]).remove(0);
    for length in 9..message.len() {
        assert!(Told::default().add(&message[..length]).is_err(), "{length} bytes");
    }
    for bad in [
        // A prefix with too many bits, one without any, a peer without a key, an empty length.
        "1c000080 06000100 02000000 08000200 0a090000 05000300 21000000",
        "14000080 06000100 02000000 08000200 0a090000",
        "1b000080 06000100 02000000 08000200 0a090000 04000300",
    ] {
        let (mut allowed, mut peer, mut list) = (Vec::new(), Vec::new(), Vec::new());
        put(&mut peer, PEER_PUBLIC_KEY, KEY.as_bytes());
        put_nested(&mut allowed, PEER_ALLOWED, &hex(bad));
        peer.extend(allowed);
        put_nested(&mut list, 0, &peer);
        let mut message = Vec::new();
        put_nested(&mut message, PEERS, &list);
        assert!(Told::default().add(&message).is_err(), "{bad}");
    }
}
