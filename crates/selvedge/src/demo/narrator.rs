use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Tells the story on standard error: lines, and below them live figures if that is a terminal.
pub(super) struct Narrator {
    began: Instant,
    bar: Option<ProgressBar>,
    refreshed: Instant,
}

impl Narrator {
    pub(super) fn new(plain: bool) -> Self {
        let terminal = !plain && io::stderr().is_terminal();
        let began = Instant::now();
        Self { began, bar: terminal.then(bar), refreshed: began }
    }

    /// A step of the story.
    pub(super) fn step(&mut self, text: &str) {
        self.line(&format!("[{:5.1} s] {text}", self.began.elapsed().as_secs_f64()));
    }

    /// What came of it: one or more lines.
    pub(super) fn note(&mut self, text: &str) {
        for line in text.lines() {
            self.line(&format!("          {line}"));
        }
    }

    /// The figures of this moment; asked for only if they are shown.
    pub(super) fn live(&mut self, text: impl FnOnce() -> String) {
        let Some(bar) = &self.bar else { return };
        if self.refreshed.elapsed() >= Duration::from_millis(200) {
            bar.set_message(text());
            self.refreshed = Instant::now();
        }
    }

    /// Removes the live figures.
    pub(super) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            // Nobody reads it any more: no reason to stop.
            None => drop(writeln!(io::stderr(), "{text}")),
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::default_spinner());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
