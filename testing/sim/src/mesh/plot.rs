//! A picture of how fast news spreads: the share of the nodes that know of it, against time.

use std::fmt::Write as _;
use std::time::Duration;

use super::scale::{Options, spread_updates};
use super::{predecessor, scale};

/// The size of the picture, and the margins around the curves.
const SIZE: (f64, f64) = (720.0, 400.0);
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;
/// The time axis is logarithmic, from 10 ms to 100 s.
const FIRST_MS: f64 = 10.0;
const DECADES: u32 = 4;
/// So many points make a curve.
const POINTS: usize = 200;
/// Changes that are followed by each scheme.
const UPDATES: usize = 5;
const COLOURS: [&str; 4] = ["#0b6e99", "#d9730d", "#448361", "#9b2d5c"];

/// A curve: after how long which rank among the nodes knew, in the worst of several runs.
struct Curve {
    name: &'static str,
    times: Vec<Duration>,
}

/// Compares the ways of spreading news on one network; returns an SVG.
#[must_use]
pub fn comparison(options: &Options) -> String {
    let some = Options { updates: UPDATES, ..options.clone() };
    let with = |copies| worst(&spread_updates(&Options { copies, ..some.clone() }));
    let curves = [
        Curve { name: "broadcast tree, 5 copies tolerated (the default)", times: with(5) },
        Curve { name: "broadcast tree, 1 copy", times: with(1) },
        Curve { name: "all links flood", times: with(9) },
        Curve { name: "the predecessor's rounds", times: worst(&predecessor::spread(&some)) },
    ];
    let Options { nodes, seed, loss, .. } = some;
    let below = format!(
        "time since the change (worst of {UPDATES}; {nodes} members, loss {} %, seed {seed})",
        scale::round(loss * 100.0)
    );
    draw(&curves, &below)
}

/// For each rank the longest time.
fn worst(runs: &[Vec<Duration>]) -> Vec<Duration> {
    let ranks = runs.iter().map(Vec::len).min().unwrap_or(0);
    (0..ranks).map(|rank| runs.iter().map(|run| run[rank]).max().unwrap_or_default()).collect()
}

fn draw(curves: &[Curve], below: &str) -> String {
    let (width, height) = SIZE;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>Share of the members that know of a change, against time</title>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    grid(&mut svg);
    for (number, (curve, colour)) in curves.iter().zip(COLOURS).enumerate() {
        add_curve(&mut svg, curve, colour);
        #[allow(clippy::cast_precision_loss, reason = "one of a few")]
        let y = TOP + 18.0 + 18.0 * number as f64;
        add(
            &mut svg,
            &format!(
                "<rect x=\"68\" y=\"{}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>",
                y - 6.0
            ),
        );
        add(&mut svg, &format!("<text x=\"88\" y=\"{y}\">{}</text>", curve.name));
    }
    let middle = LEFT + (width - LEFT - RIGHT) / 2.0;
    let text = format!(
        "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{below}</text>",
        height - 8.0
    );
    add(&mut svg, &text);
    svg.push_str("</svg>\n");
    svg
}

fn grid(svg: &mut String) {
    let (right, bottom) = (SIZE.0 - RIGHT, SIZE.1 - BOTTOM);
    for share in [0, 25, 50, 75, 100] {
        let y = at_share(f64::from(share) / 100.0);
        add(svg, &format!("<path d=\"M{LEFT} {y}H{right}\" stroke=\"#ddd\"/>"));
        let (x, y) = (LEFT - 6.0, y + 4.0);
        add(svg, &format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\">{share} %</text>"));
    }
    for (decade, name) in (0..=DECADES).zip(["10 ms", "100 ms", "1 s", "10 s", "100 s"]) {
        let x = at_time(FIRST_MS * 10_f64.powi(decade.cast_signed()));
        add(svg, &format!("<path d=\"M{x} {TOP}V{bottom}\" stroke=\"#ddd\"/>"));
        let y = bottom + 16.0;
        add(svg, &format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{name}</text>"));
    }
}

#[allow(clippy::cast_precision_loss, reason = "a number of nodes")]
fn add_curve(svg: &mut String, curve: &Curve, colour: &str) {
    let count = curve.times.len();
    let mut path = String::new();
    for point in 0..=POINTS.min(count.saturating_sub(1)) {
        let rank = point * count.saturating_sub(1) / POINTS.min(count.saturating_sub(1)).max(1);
        let Some(time) = curve.times.get(rank) else { continue };
        let (x, y) =
            (at_time(time.as_secs_f64() * 1000.0), at_share((rank + 1) as f64 / count as f64));
        let command = if path.is_empty() { 'M' } else { 'L' };
        write!(path, "{command}{x:.1} {y:.1}").expect("a string takes all");
    }
    add(svg, &format!("<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"));
}

fn add(svg: &mut String, element: &str) {
    svg.push_str(element);
    svg.push('\n');
}

fn at_time(ms: f64) -> f64 {
    let part = (ms.max(FIRST_MS) / FIRST_MS).log10() / f64::from(DECADES);
    LEFT + (SIZE.0 - LEFT - RIGHT) * part.min(1.0)
}

fn at_share(share: f64) -> f64 {
    TOP + (SIZE.1 - TOP - BOTTOM) * (1.0 - share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_run_from_end_to_end() {
        assert!((at_time(1.0) - LEFT).abs() < 1e-9 && (at_time(10.0) - LEFT).abs() < 1e-9);
        assert!((at_time(100_000.0) - (SIZE.0 - RIGHT)).abs() < 1e-9);
        assert!((at_share(0.0) - (SIZE.1 - BOTTOM)).abs() < 1e-9 && at_share(1.0) < at_share(0.5));
    }

    #[test]
    fn curves_are_the_worst_of_the_runs_and_all_are_drawn() {
        let ms = Duration::from_millis;
        let times = worst(&[vec![ms(10), ms(50)], vec![ms(20), ms(40)]]);
        assert_eq!(times, [ms(20), ms(50)]);
        let curves = [Curve { name: "one", times: times.clone() }, Curve { name: "two", times }];
        let svg = draw(&curves, "below");
        assert_eq!(svg.matches("stroke-width").count(), 2);
        assert!(svg.contains(">one<") && svg.contains(">two<") && svg.contains(">below<"));
        assert!(svg.ends_with("</svg>\n"));
    }
}
