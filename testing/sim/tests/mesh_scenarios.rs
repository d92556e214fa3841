//! The scenario files, and the search for a shorter one.

use std::path::{Path, PathBuf};

use selvedge_sim::mesh::scenario::{Action, Claim, Scenario, chaos, play, shrink};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let entries = std::fs::read_dir(folder).expect("the folder of scenarios");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "toml"));
    files.sort();
    files
}

/// The longer ones are for the soak.
fn is_short(file: &Path) -> bool {
    !file.file_stem().is_some_and(|name| name.to_string_lossy().starts_with("long-"))
}

#[test]
fn short_scenarios_come_out_as_expected() {
    let short: Vec<PathBuf> = files().into_iter().filter(|file| is_short(file)).collect();
    assert!(short.len() >= 8, "{short:?}");
    for file in short {
        let scenario = Scenario::load(&file).expect("a scenario");
        for seed in &scenario.seeds {
            let report = play(&scenario, *seed);
            assert_eq!(report.details, Vec::<String>::new(), "{}", file.display());
            assert_eq!(report.violations, 0, "{}, seed {seed}", file.display());
        }
    }
}

/// Seeds that found something once, and a few others.
#[test]
fn chaos_leaves_nothing_behind() {
    for seed in [20, 66, 122, 131, 180].into_iter().chain(0..6) {
        let report = play(&chaos(seed), seed);
        assert_eq!(report.details, Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn long_scenarios_can_be_read() {
    let long: Vec<PathBuf> = files().into_iter().filter(|file| !is_short(file)).collect();
    assert!(!long.is_empty());
    for file in long {
        Scenario::load(&file).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn a_seed_repeats_to_the_letter() {
    let file = files().into_iter().find(|file| file.ends_with("everything.toml"));
    let scenario = Scenario::load(&file.expect("there")).expect("a scenario");
    let (one, again, other) = (play(&scenario, 7), play(&scenario, 7), play(&scenario, 8));
    assert_eq!(one, again);
    assert_ne!(one.messages, other.messages);
}

/// M6 cannot hold while the parts are apart: what is left of the scenario is that.
#[test]
fn what_fails_is_cut_down_to_what_makes_it_fail() {
    let scenario = Scenario::parse(
        r#"
        about = "Halves that stay apart."
        nodes = 12
        loss = 0.02
        drift-ppm = 100
        [[step]]
        at = 1
        do = { crash = 1 }
        [[step]]
        at = 2
        do = { tear = { parts = [6, 6] } }
        [[step]]
        at = 4
        over = 2
        do = { update = 4 }
        [[step]]
        at = 8
        do = { join = 1 }
        [[expect]]
        from = 9
        within = 3
        that = "agreed"
    "#,
    )
    .expect("a scenario");
    let shrunk = shrink(&scenario, 3).expect("it fails");
    assert_eq!(shrunk.rule, "M6");
    assert!(shrunk.history.iter().any(|what| what.contains("torn")), "{:?}", shrunk.history);
    let Scenario { nodes, steps, loss, drift_ppm, expectations, .. } = shrunk.scenario;
    assert!(nodes < 12 && steps.len() == 2 && drift_ppm == 0, "{nodes} {steps:?}");
    assert!(loss < 0.001, "{loss}");
    assert!(steps.iter().any(|step| matches!(step.action, Action::Tear { .. })), "{steps:?}");
    assert_eq!(expectations.len(), 1);
    assert_eq!(expectations[0].that, Claim::Agreed);
}

#[test]
fn what_holds_is_not_cut_down() {
    let text = "about = \"Calm.\"\nnodes = 3\n\
                [[expect]]\nfrom = 1\nwithin = 5\nthat = \"agreed\"\n";
    assert_eq!(shrink(&Scenario::parse(text).expect("a scenario"), 1), None);
}
