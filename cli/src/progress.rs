//! Progress on stderr: a spinner or a bar on a terminal, else one line per change.

use amphi_api::client::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// A wait for something that has a state.
pub struct Waiting {
    what: String,
    bar: Option<ProgressBar>,
    since: Instant,
    last: RefCell<String>,
}

impl Waiting {
    pub fn new(what: String) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar.set_message(what.clone());
            bar
        });
        Self { what, bar, since: Instant::now(), last: RefCell::new(String::new()) }
    }

    /// The state as it is now; said again only when it differs.
    pub fn state(&self, state: &str) {
        if *self.last.borrow() == state {
            return;
        }
        self.last.replace(state.to_owned());
        let state = crate::table::clean(state);
        match &self.bar {
            Some(bar) => bar.set_message(format!("{}: {state}", self.what)),
            None => eprintln!("{}: {state} ({:.1} s)", self.what, self.since.elapsed().as_secs_f32()),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Progress of an upload of `length` bytes.
pub fn upload(what: &str, length: u64) -> Progress {
    if !std::io::stderr().is_terminal() {
        eprintln!("upload {what}: {}", crate::table::bytes(length));
        return Box::new(|_, _| {});
    }
    let bar = ProgressBar::new(length);
    // The template is a constant that was tried; without it the bar is only plainer.
    if let Ok(style) =
        ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    bar.set_message(format!("upload {what}"));
    Box::new(move |sent, total| {
        bar.set_position(sent);
        if sent >= total {
            bar.finish_and_clear();
        }
    })
}
