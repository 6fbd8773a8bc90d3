//! How long a set takes from the API call until it runs, against plain Docker; and the controller's own part of it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures_util::future::try_join_all;

use super::bare::{Bare, Plug};
use super::{Bench, Figure, HOST, median, runs, set};

const AT_ONCE: usize = 20;
const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks at the record; what it adds is in the figure.
const POLL: Duration = Duration::from_millis(10);
/// The same where many look: two thousand looks a second would take a good part of the CPUs from what is measured.
const POLL_AT_ONCE: Duration = Duration::from_millis(100);

pub(super) fn measure(bench: &Bench, rounds: usize) -> Result<Vec<Figure>> {
    // The first one brings the image to the host.
    bench.runtime.block_on(one(bench, "warm", true, POLL))?;
    let warm = bench.runtime.block_on(bench.client.find_instance("warm"))?;
    let bare = bench.runtime.block_on(Bare::beside(bench.lab, HOST, &format!("amphi-{}-one", warm.id)))?;
    bench.runtime.block_on(bare.create())?;
    let (mut ours, mut plain, mut posts) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let name = format!("round-{round}");
        let (post, all) = bench.runtime.block_on(one(bench, &name, true, POLL))?;
        bench.delete(&name, true)?;
        let beside = bench.runtime.block_on(bare.create())?;
        println!(
            "  round {:>2}: set {:>6.0} ms, bare {:>6.0} ms, POST {:>5.1} ms",
            round + 1,
            milliseconds(all),
            milliseconds(beside),
            milliseconds(post)
        );
        ours.push(milliseconds(all));
        plain.push(milliseconds(beside));
        posts.push(milliseconds(post));
    }
    let [ours_at_once, bare_at_once, networked_at_once] = at_once(bench, &bare)?;
    bench.delete("warm", true)?;
    Ok(vec![
        Figure { name: "set_create_ms_p50", value: median(&ours), goal: "below 3000" },
        Figure { name: "bare_create_ms_p50", value: median(&plain), goal: "" },
        Figure { name: "set_create_ratio", value: median(&ours) / median(&plain), goal: "at most 1.3" },
        Figure { name: "controller_create_ms_p50", value: median(&posts), goal: "below 15" },
        Figure { name: "sets_20_at_once_ms", value: milliseconds(ours_at_once), goal: "" },
        Figure { name: "bare_20_at_once_ms", value: milliseconds(bare_at_once), goal: "" },
        Figure {
            name: "sets_20_at_once_ratio",
            value: milliseconds(ours_at_once) / milliseconds(bare_at_once),
            goal: "at most 1.2",
        },
        Figure { name: "bare_networked_20_at_once_ms", value: milliseconds(networked_at_once), goal: "" },
        Figure {
            name: "sets_20_at_once_networked_ratio",
            value: milliseconds(ours_at_once) / milliseconds(networked_at_once),
            goal: "",
        },
    ])
}

/// So many sets of two members without a volume, ordered at once, and the same containers by plain Docker, as many side by
/// side as the agent does, without a network and on Docker's own; how long each took altogether: ours, without, with.
fn at_once(bench: &Bench, bare: &Bare) -> Result<[Duration; 3]> {
    let abreast = std::thread::available_parallelism()?.get().max(2) * 2;
    let plain = |plug| bench.runtime.block_on(bare.at_once(AT_ONCE, 2, abreast, plug));
    let last = |times: Vec<Duration>| times.into_iter().max().unwrap_or_default();
    let (without, with) = (last(plain(Plug::Nothing)?), last(plain(Plug::Docker)?));
    let names: Vec<String> = (0..AT_ONCE).map(|n| format!("at-once-{n}")).collect();
    let began = Instant::now();
    bench.runtime.block_on(try_join_all(names.iter().map(|name| one(bench, name, false, POLL_AT_ONCE))))?;
    let ours = began.elapsed();
    names.iter().try_for_each(|name| bench.delete(name, false))?;
    Ok([ours, without, with])
}

/// Orders a set; how long the order took, and how long until it ran.
async fn one(bench: &Bench<'_>, name: &str, volume: bool, poll: Duration) -> Result<(Duration, Duration)> {
    let request = set(name, volume, 64)?;
    let began = Instant::now();
    let ordered = bench.client.create_instance(&request).await?;
    let post = began.elapsed();
    loop {
        let instance = bench.client.instance(ordered.id).await?;
        if runs(&instance) {
            return Ok((post, began.elapsed()));
        }
        if began.elapsed() > LIMIT {
            bail!("{name} does not run within {LIMIT:?}: {} {:?}", instance.state, instance.fault);
        }
        tokio::time::sleep(poll).await;
    }
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
