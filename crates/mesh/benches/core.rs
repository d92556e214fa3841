//! What the core of a mesh costs: merging records, checking signatures, comparing states, and the
//! memory that a member takes. `make bench` runs this.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use selvedge_mesh::wire::{Envelope, Message, Records};
use selvedge_mesh::{
    Config, Endpoint, Identity, Life, Mesh, Profile, Raw, Signed, State, Statement as _, UnixTime,
    Verifier, attached_to,
};
use selvedge_model::{NodeId, Time, WgKey};

const WALL: UnixTime = UnixTime(1_795_000_000);
const MEMBERS: u32 = 3000;

fn identity(number: u32) -> Identity {
    let mut secret = [0x5e; 32];
    secret[..4].copy_from_slice(&number.to_be_bytes());
    Identity::from_secret(&secret)
}

fn wg(number: u32) -> WgKey {
    let mut key = [0x77; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    WgKey(key)
}

fn profile(number: u32) -> Profile {
    let [_, first, second, third] = number.to_be_bytes();
    let endpoint =
        |port| Endpoint::from(std::net::SocketAddr::from(([10, first, second, third], port)));
    Profile {
        endpoints: vec![endpoint(51_820)],
        control: vec![endpoint(7654)],
        alias: format!("host-{number}"),
        ..Profile::default()
    }
}

fn founded() -> State {
    State::found(&identity(0), "bench", [9; 16], wg(0), profile(0)).expect("in bounds")
}

/// What a founder knows that so many members have joined.
fn peopled(count: u32) -> State {
    let life = Life::new(WALL, Config::default().record_life);
    let identities: Vec<Identity> = (1..count).map(identity).collect();
    let numbered = identities.iter().zip(1..);
    let others = numbered.map(|(identity, number)| (identity, wg(number), profile(number), life));
    founded().peopled(&identity(0), 0, others).expect("in bounds")
}

fn mesh(state: State) -> Mesh {
    Mesh::new(identity(0), state, Config::default(), 1, Time::ZERO, WALL).expect("its own state")
}

/// The records of all members, as one that lacks them all is sent them.
fn records(state: &State) -> Vec<Raw> {
    let mut full = mesh(state.kept_by(identity(0).node_id()).expect("a member"));
    let asker = identity(1).node_id();
    let empty = Message::Digest(selvedge_mesh::wire::Summary {
        hash: [0; 16],
        count: 0,
        introduction: None,
        evictions: None,
    });
    let mut records: Vec<Raw> = Vec::new();
    let mut give = |message: Message, full: &mut Mesh| {
        let bytes = Envelope { mesh: full.id(), message }.encode();
        full.handle_message(asker, &bytes, Time::ZERO, WALL);
        let mut parts = Vec::new();
        while let Some(sent) = full.poll_transmit() {
            match Envelope::decode(&sent.bytes).map(|envelope| envelope.message) {
                Ok(Message::Records(more)) => records.extend(more.records),
                Ok(Message::Ranges(ranges)) => parts.push(ranges),
                _ => {}
            }
        }
        parts
    };
    let mut asked = give(empty, &mut full);
    while let Some(ranges) = asked.pop() {
        // To every range: nothing is held of it here.
        let none = selvedge_mesh::reconcile::Part {
            end: None,
            hash: None,
            items: Some(selvedge_mesh::reconcile::Items::default()),
        };
        let answer = selvedge_mesh::reconcile::Ranges {
            start: ranges.start,
            parts: vec![none],
            want: Vec::new(),
        };
        asked.extend(give(Message::Ranges(answer), &mut full));
    }
    records
}

/// Signatures checked, entries merged, and the hashes of all ranges kept: what a new member does
/// with a whole state, and, with signatures that are known, what a simulated one does.
fn merging(criterion: &mut Criterion) {
    let state = peopled(MEMBERS);
    let all = records(&state);
    assert!(all.len() + 1 >= MEMBERS as usize, "{} records", all.len());
    let shared = Verifier::shared();
    let mut group = criterion.benchmark_group("merge");
    group.throughput(Throughput::Elements(all.len() as u64));
    for (name, verifier) in [("checked", Verifier::default()), ("known", shared)] {
        let chunks: Vec<Vec<u8>> =
            all.chunks(500).map(|records| message(&state, records)).collect();
        let fresh = || {
            // It knows one member, who brings it all others.
            let mut state = peopled(2);
            state.verify_by(verifier.clone());
            mesh(state)
        };
        let take = |mut mesh: Mesh| {
            for bytes in &chunks {
                mesh.handle_message(identity(1).node_id(), bytes, Time::ZERO, WALL);
            }
            mesh
        };
        assert_eq!(take(fresh()).members().count(), MEMBERS as usize);
        group.bench_function(BenchmarkId::new(name, all.len()), |it| {
            it.iter_batched(fresh, take, BatchSize::LargeInput);
        });
    }
    group.finish();
}

fn message(state: &State, records: &[Raw]) -> Vec<u8> {
    let message = Message::Records(Records { records: records.to_vec(), ..Records::default() });
    Envelope { mesh: state.mesh(), message }.encode()
}

fn signatures(criterion: &mut Criterion) {
    let state = peopled(3);
    let raw = records(&state).pop().expect("two others");
    let mut group = criterion.benchmark_group("signature");
    group.throughput(Throughput::Elements(1));
    group.bench_function("check a record's", |it| {
        it.iter(|| Signed::<selvedge_mesh::Record>::verify(black_box(raw.clone())).expect("holds"));
    });
    assert!(raw.bytes.len() <= selvedge_mesh::Record::MAX_LEN);
    group.finish();
}

/// A probe from a partner that agrees: what happens every second.
fn probes(criterion: &mut Criterion) {
    let mut mesh = mesh(peopled(MEMBERS));
    let mut hash = [0; 8];
    hash.copy_from_slice(&mesh.digest().hash[..8]);
    let probe =
        selvedge_mesh::wire::Probe { number: 1, hash, down: None, lives: None, evictions: None };
    let bytes = Envelope { mesh: mesh.id(), message: Message::Ping(probe) }.encode();
    let mut now = Time::ZERO;
    criterion.bench_function("answer a probe", |it| {
        it.iter(|| {
            // Nobody asks so often in earnest, and nobody would be answered.
            now = now + Duration::from_millis(20);
            mesh.handle_message(identity(1).node_id(), &bytes, now, WALL);
            mesh.poll_transmit().expect("an answer")
        });
    });
}

fn snapshots(criterion: &mut Criterion) {
    let state = peopled(MEMBERS);
    let bytes = state.encode();
    let mut group = criterion.benchmark_group("snapshot");
    group.throughput(Throughput::Elements(u64::from(MEMBERS)));
    group.bench_function("write", |it| it.iter(|| state.encode()));
    group.bench_function("read", |it| it.iter(|| State::decode(&bytes).expect("valid")));
    group.finish();
}

fn attachments(criterion: &mut Criterion) {
    let peers: Vec<NodeId> = (0..300).map(|number| identity(number).node_id()).collect();
    let client = identity(9999).node_id();
    criterion.bench_function("attach a client to one of 300", |it| {
        it.iter(|| attached_to(black_box(client), peers.iter().copied()));
    });
}

/// Not a time but a size: what one more member takes in a state, as the kernel counts it.
#[allow(clippy::print_stdout, reason = "a benchmark's output")]
fn memory(_: &mut Criterion) {
    let of = |count| {
        let state = State::decode(&peopled(count).encode()).expect("valid");
        let before = resident();
        let copies: Vec<State> =
            (0..20).map(|_| State::decode(&state.encode()).expect("valid")).collect();
        let taken = resident().saturating_sub(before) / copies.len();
        (taken, state.encode().len())
    };
    let (few, bytes_few) = of(100);
    let (many, bytes_many) = of(MEMBERS);
    let members = MEMBERS as usize - 100;
    println!(
        "memory per member: {} bytes resident, of these {} as it travels",
        many.saturating_sub(few) / members,
        (bytes_many - bytes_few) / members
    );
}

/// Bytes that this process has in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}

/// Quick: the figures shall tell twice as slow from as fast as before, no more.
fn quick() -> Criterion {
    let quick = Criterion::default().sample_size(10).without_plots();
    quick.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_secs(1))
}

criterion_group!(
    name = benches;
    config = quick();
    targets = memory, merging, signatures, probes, snapshots, attachments
);
criterion_main!(benches);
