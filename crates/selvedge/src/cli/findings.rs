//! What a look at this host has found, on a terminal.

use anyhow::bail;
use selvedge_api::gateway::{Finding, Place, Severity};

/// What is wrong comes last: that is where people look. What puts it right stands below.
pub(super) fn gravest_last(findings: &[Finding]) -> String {
    let mut findings: Vec<&Finding> = findings.iter().collect();
    findings.sort_by_key(|finding| finding.severity);
    findings.into_iter().map(text).collect()
}

/// In the order in which they were found.
pub(super) fn in_order(findings: &[Finding]) -> String {
    findings.iter().map(text).collect()
}

fn text(finding: &Finding) -> String {
    let Finding { severity, subject, text, place, fix } = finding;
    let lines = fix.iter().map(|line| format!("\n    {line}"));
    let place = match place {
        _ if fix.is_empty() => None,
        Place::Vtysh => Some("\n    vtysh\n    configure terminal".to_owned()),
        Place::Configuration => {
            Some("\n  in the configuration; then start the agent again:".to_owned())
        }
        Place::Shell => None,
    };
    let fix: String = place.into_iter().chain(lines).collect();
    format!("{:<8} {subject}: {text}{fix}\n", severity.as_str())
}

/// An error if there is a problem, so that the program says so by its exit status.
pub(super) fn verdict(findings: &[Finding]) -> anyhow::Result<()> {
    let problem = |finding: &&Finding| finding.severity == Severity::Problem;
    match findings.iter().filter(problem).count() {
        0 => Ok(()),
        1 => bail!("1 problem was found"),
        problems => bail!("{problems} problems were found"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_last_with_what_puts_it_right() {
        let lines = ["router bgp 65000", " advertise-all-vni"];
        let wrong = Finding::problem("bgpd", "no EVPN").shell(lines);
        let findings =
            [Finding { place: Place::Vtysh, ..wrong }, Finding::ok("bgpd", "it answers")];
        let right = "ok       bgpd: it answers\n";
        let wrong = "problem  bgpd: no EVPN\n    vtysh\n    configure terminal\n    router bgp 65000\n     advertise-all-vni\n";
        assert_eq!(gravest_last(&findings), format!("{right}{wrong}"));
        assert_eq!(in_order(&findings), format!("{wrong}{right}"));
        let key = Finding::warning("campus", "too wide").configuration(["[a]", "b = 1"]);
        let lines = "warning  campus: too wide\n  in the configuration; then start the agent \
                     again:\n    [a]\n    b = 1\n";
        assert_eq!(in_order(&[key]), lines);
        assert!(verdict(&findings).is_err());
        verdict(&findings[1..]).expect("nothing is wrong");
    }
}
