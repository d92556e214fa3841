//! What the core costs where it matters: at the start of an agent, at the loss of a gateway, and
//! with every probe. `make bench` runs this.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use selvedge_gateway::kv::{Revision, Snapshot};
use selvedge_gateway::placement::{DEFAULT_IDS, Ring, ids_of};
use selvedge_gateway::probe::{Body, Electorate, Message, News};
use selvedge_gateway::wire::{self, PairKey};
use selvedge_gateway::{Config, Gateway, StoreInput, keys};
use selvedge_model::{NodeName, Time, Vni};

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/core/bench.rs"]
mod bench;

use bench::{Bench, MS, SECOND, config, name};

const GATEWAYS: u8 = 3;
/// Three gateways have about 3,333 each.
const NETWORKS: u32 = 10_000;

fn gateway(number: u8) -> Config {
    let address = format!("192.0.2.{number}:7947").parse().expect("an address");
    // Ids in even steps, so that each gateway gets about the same.
    let step = u64::MAX / 256;
    let ids = (0..85).map(|turn| (3 * turn + u64::from(number)) * step).collect();
    Config {
        probe: vec![address],
        budget: NETWORKS as usize,
        hold_down: Duration::ZERO,
        ..config(&format!("gw{number}"), ids, NETWORKS)
    }
}

/// All networks are served, each by the gateway that the placement wants.
fn cluster() -> Bench {
    let mut bench = Bench::new();
    for number in 1..=GATEWAYS {
        bench.add(gateway(number));
    }
    bench.pass(SECOND * 40);
    bench
}

/// The first gateway has been silent for a while, and is about to be suspected.
fn about_to_be_lost() -> Bench {
    let mut bench = cluster();
    bench.agents[0].runs = false;
    bench.agents[0].linked = false;
    bench.pass(MS * 150);
    bench
}

/// Suspicion, votes, the verdict, and all claims: cores and model of the store, without any delay
/// between them.
fn follow(mut bench: Bench) -> Bench {
    bench.pass(MS * 150);
    bench
}

fn owned_by_the_first(bench: &Bench) -> usize {
    bench.cache().owned(&name("gw1")).count()
}

fn takeover(criterion: &mut Criterion) {
    let before = about_to_be_lost();
    let lost = owned_by_the_first(&before);
    assert!(lost > NETWORKS as usize / 4, "{lost} networks are at stake");
    assert_eq!(owned_by_the_first(&follow(before)), 0, "all have a new owner");
    let mut group = criterion.benchmark_group("takeover");
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function(BenchmarkId::from_parameter(lost), |bencher| {
        bencher.iter_batched(about_to_be_lost, follow, BatchSize::PerIteration);
    });
    group.finish();
}

fn snapshot(criterion: &mut Criterion) {
    let (read, lease) = {
        let mut bench = cluster();
        let lease = bench.lease();
        (bench.store.read(&keys::PREFIXES.map(str::to_owned)), lease)
    };
    let start = |read: Snapshot| {
        let mut core = Gateway::new(gateway(GATEWAYS + 1), 1, Time::from_micros(1));
        core.handle_store(StoreInput::Lease(lease), Time::from_micros(2));
        core.handle_store(StoreInput::Snapshot(read), Time::from_micros(3));
        assert!(core.poll_transaction().is_some(), "it registers");
        core
    };
    criterion.bench_function("snapshot/10000", |bencher| {
        bencher.iter_batched(|| read.clone(), start, BatchSize::PerIteration);
    });
}

/// Eight gateways with as many ids as they have unless told otherwise.
fn placement(criterion: &mut Criterion) {
    let names: Vec<NodeName> = (1..=8).map(|number| name(&format!("gw{number}"))).collect();
    let ids: Vec<Vec<u64>> = names.iter().map(|name| ids_of(name, DEFAULT_IDS)).collect();
    let ring = || Ring::new(names.iter().zip(ids.iter().map(Vec::as_slice)));
    let vnis: Vec<Vni> = (1..=NETWORKS).filter_map(|vni| Vni::try_from(vni).ok()).collect();
    let placed = ring();
    criterion.bench_function("ring/8", |it| it.iter(ring));
    criterion.bench_function("place/10000", |it| {
        it.iter(|| vnis.iter().filter(|vni| black_box(placed.owner(**vni)).is_some()).count());
    });
}

fn probe(voters: &[NodeName]) -> Message {
    let electorate = Electorate { revision: Revision(4711), voters: voters.to_vec() };
    let news = News { sequence: 70_000, electorate, hears: voters.to_vec(), ..News::default() };
    Message { incarnation: Revision(4242), body: Body::Probe { nonce: 7 }, news }
}

fn probes(criterion: &mut Criterion) {
    let key = PairKey::derive(&[7; 32], &[1; 32], &[2; 32]);
    for count in [3, 8] {
        let voters: Vec<_> = (1..=count).map(|number| name(&format!("gw{number}"))).collect();
        let message = probe(&voters);
        let seal = || wire::seal(black_box(&message), &voters[0], &key).expect("short enough");
        let datagram = seal();
        criterion.bench_function(&format!("seal/{count} voters"), |it| it.iter(seal));
        criterion.bench_function(&format!("open/{count} voters"), |it| {
            it.iter(|| wire::open(black_box(&datagram), |_| Some(&key)).expect("authentic"));
        });
    }
}

/// Quick: the figures shall tell twice as slow from as fast as before, no more.
fn quick() -> Criterion {
    let quick = Criterion::default().sample_size(10).without_plots();
    quick.warm_up_time(MS * 100).measurement_time(SECOND)
}

criterion_group!(name = benches; config = quick(); targets = snapshot, takeover, placement, probes);
criterion_main!(benches);
