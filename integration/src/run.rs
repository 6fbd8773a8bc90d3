//! `amphi-lab run` and `amphi-lab story`: a lab, the story on it, and what to try next. Owns Ctrl-C: whatever it
//! interrupts, the lab is down when this process ends.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use amphi_api::client::Client;
use anyhow::{Context, Result, ensure};

use crate::lab::{Lab, Layout, UnitStatus, UpOptions, leftovers};
use crate::story::{self, Lines, Outcome, Progress, read_env};

/// Set as soon as a signal asks for the end: what fails from then on is no news.
static ENDING: AtomicBool = AtomicBool::new(false);
/// Set once the story is over: then Ctrl-C is the way it should end.
static STAYING: AtomicBool = AtomicBool::new(false);
/// The exit code once the story is over.
static FAILED: AtomicBool = AtomicBool::new(false);

/// A client for the lab's API.
pub fn client(layout: &Layout) -> Result<Client> {
    // Fails only when one is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let env = read_env(&layout.env())?;
    let value = |name: &str| {
        let found = env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        found.with_context(|| format!("no {name} in {}", layout.env().display()))
    };
    Ok(Client::new(value("AMPHI_URL")?, value("AMPHI_TOKEN")?)?)
}

/// Plays the story on a lab that is up already.
pub fn tell(layout: Layout) -> Result<bool> {
    let client = client(&layout)?;
    let outcome = story::run(&Lab::attach(layout)?, &client, &Lines)?;
    println!("\n{outcome}");
    Ok(outcome.all_ok())
}

/// Two hosts and the story. With `once` the lab is taken down after it, else at Ctrl-C. Whether all went well.
pub fn run(layout: Layout, program: &Path, once: bool, unit: impl FnMut(&UnitStatus)) -> Result<bool> {
    let began = Instant::now();
    end_on_signal(layout.clone())?;
    // Joining is the story's first step.
    let options = UpOptions { join: false, ..UpOptions::new(layout.clone(), program.to_owned(), 2) };
    let lab = or_park(Lab::up(&options, unit));
    println!("lab up in {:.1} s", began.elapsed().as_secs_f32());
    let outcome = or_park(client(&layout).and_then(|client| story::run(&lab, &client, &Told(Lines))));
    if !once {
        println!("\n{outcome}");
        next(&layout, &outcome);
        FAILED.store(!outcome.all_ok(), Ordering::Relaxed);
        STAYING.store(true, Ordering::Relaxed);
        park();
    }
    let down = down(lab, &layout);
    println!("\n{outcome}");
    down.map(|()| outcome.all_ok())
}

fn down(lab: Lab, layout: &Layout) -> Result<()> {
    lab.down().context("take the lab down")?;
    let left = leftovers(layout);
    ensure!(left.is_empty(), "the lab left behind: {}", left.join(", "));
    Ok(())
}

fn next(layout: &Layout, outcome: &Outcome) {
    let env = layout.env();
    if !outcome.all_ok() {
        println!("logs: {}/*/log/*.log", layout.root().display());
    }
    println!(
        "
The lab stays up until Ctrl-C. In another terminal:

  . {}; alias amphi=target/debug/amphi
  amphi host list
  amphi network create mine --cidr 10.8.0.0/24; amphi security-group create mine --allow icmp --allow tcp:80
  amphi image create web {images}/web.tar; amphi image create busybox {images}/busybox.tar
  amphi set create hello --file {}/story/web.json --network mine --security-group mine --volume-gib 1
  amphi image create vm --kernel {images}/vm-kernel --initramfs {images}/vm-initramfs
  amphi exchange hello --to vm --image vm && amphi instance show hello
  target/debug/amphi-lab power-cut h1; amphi host evacuate h1; target/debug/amphi-lab return h1",
        env.display(),
        layout.root().display(),
        images = layout.images().display(),
    );
}

/// Takes the lab down and ends the process when it is told to.
fn end_on_signal(layout: Layout) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    std::thread::spawn(move || {
        runtime.block_on(signal());
        ENDING.store(true, Ordering::Relaxed);
        println!("\ntaking the lab down");
        let ended = match Lab::attach(layout.clone()) {
            Ok(lab) => down(lab, &layout),
            // Nothing is up yet; what is starting ends with this process.
            Err(_) => Ok(()),
        };
        let failed = FAILED.load(Ordering::Relaxed) || ended.is_err();
        if let Err(error) = ended {
            eprintln!("amphi-lab: {error:#}");
        }
        std::process::exit(match (failed, STAYING.load(Ordering::Relaxed)) {
            (false, true) => 0,
            (true, true) => 1,
            // As a shell tells that a signal ended it.
            (_, false) => 130,
        });
    });
    Ok(())
}

async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut stream) => drop(stream.recv().await),
            // Without a handler the default one ends the process, and the lab with it.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::hangup()) => {}
    }
}

/// For good: the signal's thread ends the process.
fn park() -> ! {
    loop {
        std::thread::park_timeout(Duration::from_secs(3600));
    }
}

/// An error of a lab that is being taken down is none: then the end is awaited.
fn or_park<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(_) if ENDING.load(Ordering::Relaxed) => park(),
        Err(error) => {
            eprintln!("amphi-lab: {error:#}");
            // The lab ends with this process; its guardian cleans up.
            std::process::exit(1)
        }
    }
}

/// Says nothing any more once the end was asked for.
struct Told(Lines);

impl Progress for Told {
    fn step(&self, number: usize, title: &str) {
        self.0.step(number, title);
    }

    fn check(&self, text: &str, took: Duration) {
        self.0.check(text, took);
    }

    fn note(&self, text: &str) {
        self.0.note(text);
    }

    fn failed(&self, number: usize, error: &anyhow::Error) {
        if ENDING.load(Ordering::Relaxed) {
            park();
        }
        self.0.failed(number, error);
    }

    fn not_run(&self, number: usize, title: &str, because: usize) {
        self.0.not_run(number, title, because);
    }
}
