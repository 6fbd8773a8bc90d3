//! `amphi-lab chaos`: hosts that fail in every way that the promises name, on a lab of its own, while somebody looks all the
//! time. Prints its seed, and a table with what was measured; a broken invariant is an error. Bounded: a part begins no
//! further round after its time, and every wait has an end.

mod bodies;
mod partition;
mod watch;
mod zombie;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use partition::Crowd;
pub use watch::Watch;
pub use zombie::{Breaking, Round, round};

use crate::bench::{Figure, failover};
use crate::failing::Stage;
use crate::lab::{Layout, UnitStatus};
use crate::story::residue;
use crate::wait::{Seen, until};

/// Enough that three are most of them and two are not.
pub const HOSTS: [&str; 5] = ["h1", "h2", "h3", "h4", "h5"];
const CONTROLLER: &str = "controller";
/// After the last delete until nothing is left: leftovers on the switch go after two sweeps.
const QUIET: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// A power cut of a host under instances of both kinds
    Power,
    /// A host frozen past its lease, failed over, thawed
    Zombie,
    /// A host cut off from the controller but not from the tenants' network
    Cut,
    /// Three hosts of five cut off at once
    Most,
    /// Two hosts of five cut off at once
    Few,
    /// The controller gone
    Outage,
}

/// In the order in which they run.
const PARTS: [Part; 6] = [Part::Power, Part::Zombie, Part::Cut, Part::Most, Part::Few, Part::Outage];

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Rounds of each part that has rounds
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Default: another one each time. It decides who is broken, how, and for how long
    #[arg(long)]
    pub seed: Option<u64>,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Part>,
    /// Instances under the power cut, one in four a VM
    #[arg(long, default_value_t = 12)]
    pub instances: usize,
    /// Each of those has a twin that is ready before the cut
    #[arg(long)]
    pub twins: bool,
    /// Seconds without a controller
    #[arg(long, default_value_t = 30)]
    pub outage: u64,
    /// After so many minutes no further round is begun
    #[arg(long, default_value_t = 20)]
    pub minutes: u64,
}

/// One line of the table.
struct Row {
    part: Part,
    rounds: usize,
    seconds: f64,
    told: String,
    broken: Vec<String>,
}

/// Brings the lab up, breaks it, prints, takes it down. The error names what was broken.
pub fn run(layout: Layout, program: &Path, options: &Options, unit: impl FnMut(&UnitStatus)) -> Result<()> {
    let fresh = || std::time::UNIX_EPOCH.elapsed().map_or(1, |time| u64::from(time.subsec_nanos()));
    let seed = options.seed.unwrap_or_else(fresh);
    println!("seed {seed}, load average {}", load());
    let end = Instant::now() + Duration::from_secs(options.minutes * 60);
    let stage = Stage::up(layout.clone(), &layout.images(), program, HOSTS.len() as u8, unit)?;
    crate::bench::widen(&stage.lab)?;
    for host in HOSTS {
        stage.host_is_back(host)?;
    }
    stage.warm(&HOSTS)?;
    let chaos = Chaos { stage: &stage, options, end };
    let mut rows = Vec::new();
    for part in PARTS.into_iter().filter(|p| options.only.is_empty() || options.only.contains(p)) {
        // Each part draws by itself, so that it can be played again alone.
        let mut dice = Dice(seed ^ (part as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        println!("\n{part:?}");
        rows.push(chaos.part(part, &mut dice));
    }
    print(seed, &rows);
    let broken = rows.iter().filter(|r| !r.broken.is_empty()).count();
    ensure!(broken == 0, "{broken} parts broke an invariant; again with --seed {seed}");
    stage.down()
}

struct Chaos<'a> {
    stage: &'a Stage,
    options: &'a Options,
    end: Instant,
}

impl Chaos<'_> {
    fn part(&self, part: Part, dice: &mut Dice) -> Row {
        let began = Instant::now();
        let mut row = Row { part, rounds: 0, seconds: 0.0, told: String::new(), broken: Vec::new() };
        if let Err(error) = self.watched(part, dice, &mut row) {
            row.broken.push(format!("{error:#}"));
        }
        row.seconds = began.elapsed().as_secs_f64();
        row
    }

    fn watched(&self, part: Part, dice: &mut Dice, row: &mut Row) -> Result<()> {
        let before = belongings(self.stage)?;
        let watch = Watch::start(&self.stage.lab, &HOSTS)?;
        let done = self.play(part, dice, &watch, row);
        row.broken.extend(watch.broken());
        ensure!(watch.looks() > 0, "nobody has looked");
        if part == Part::Zombie {
            row.told +=
                &format!("; beside its successor, unheard, {} ms at most", watch.beside().as_millis());
        }
        if done.is_err() {
            // What is left of a part that broke is no fault of the next one.
            for instance in self.stage.ask(self.stage.client.instances())? {
                watch.goes(instance.id);
                self.stage.delete(instance.id)?;
            }
        }
        done?;
        nothing_is_left(self.stage, &before)
    }

    fn play(&self, part: Part, dice: &mut Dice, watch: &Watch, row: &mut Row) -> Result<()> {
        let stage = self.stage;
        match part {
            Part::Power => {
                let vms = self.options.instances / 4;
                let sets = self.options.instances - vms;
                let (figures, ids) =
                    failover::power_cut(stage, sets, vms, self.options.twins, |i| watch.made(i))?;
                row.rounds = 1;
                row.told = figures.iter().map(told).collect::<Vec<_>>().join(", ");
                stage.lab.restore("h1", |_| {})?;
                stage.host_is_back("h1")?;
                for id in ids {
                    stage.buried("h1", id)?;
                    watch.goes(id);
                    stage.delete(id)?;
                }
                Ok(())
            }
            Part::Zombie => self.rounds(dice, watch, row, &[Breaking::Freeze]),
            Part::Cut => self.rounds(dice, watch, row, &[Breaking::Cut, Breaking::Mute, Breaking::Deaf]),
            Part::Most | Part::Few => {
                let mut slowest = Duration::ZERO;
                // Once with the other hosts still in sight, once apart from them as well.
                for apart in [false, true] {
                    let crowd = Crowd::gather(stage, watch, &HOSTS)?;
                    let mut hosts = HOSTS.to_vec();
                    dice.shuffle(&mut hosts);
                    if part == Part::Most {
                        crowd.most_are_cut(&hosts[..3], apart)?;
                    } else {
                        slowest = slowest.max(crowd.few_are_cut(&hosts[..2], apart)?);
                    }
                    row.rounds += 1;
                    crowd.leave()?;
                }
                row.told = match part {
                    Part::Most => format!("no failover, no guest stopped in {} s", partition::CUT.as_secs()),
                    _ => format!("all run elsewhere after {:.1} s at most", slowest.as_secs_f64()),
                };
                Ok(())
            }
            Part::Outage => {
                let crowd = Crowd::gather(stage, watch, &HOSTS)?;
                let time = Duration::from_secs(self.options.outage);
                crowd.without_controller(time)?;
                row.rounds = 1;
                row.told = format!("no guest stopped in {} s", time.as_secs());
                crowd.leave()
            }
        }
    }

    fn rounds(&self, dice: &mut Dice, watch: &Watch, row: &mut Row, ways: &[Breaking]) -> Result<()> {
        let mut all: Vec<Round> = Vec::new();
        for number in 0..self.options.rounds {
            if Instant::now() > self.end {
                break;
            }
            let breaking = ways[number as usize % ways.len()];
            let round = round(self.stage, watch, breaking, Duration::from_millis(dice.below(3_000)))?;
            if !round.is_clean() {
                row.broken.push(format!("round {}: {breaking:?}: {round:?}", number + 1));
            }
            all.push(round);
        }
        row.rounds = all.len();
        ensure!(!all.is_empty(), "there was no time for a round");
        let most = |of: fn(&Round) -> u64| all.iter().map(of).max().unwrap_or(0);
        row.told = format!(
            "overlap on the wire {} ms at most ({} late packets, {} second answers); quiet {} ms at least; answers after {} ms at most",
            most(|r| r.overlap_ms),
            all.iter().map(|r| r.late).sum::<usize>(),
            all.iter().map(|r| r.twice).sum::<usize>(),
            all.iter().map(|r| r.quiet_ms).min().unwrap_or(0),
            most(|r| r.answered_ms),
        );
        Ok(())
    }
}

fn told(figure: &Figure) -> String {
    format!("{} {:.0}", figure.name.trim_start_matches("failover_").trim_end_matches("_ms"), figure.value)
}

/// What lies on every host and in OVN's northbound database.
fn belongings(stage: &Stage) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for party in [CONTROLLER].into_iter().chain(HOSTS) {
        found.extend(residue::on(&stage.lab, party)?.into_iter().map(|thing| format!("{party}: {thing}")));
    }
    Ok(found)
}

fn nothing_is_left(stage: &Stage, before: &BTreeSet<String>) -> Result<()> {
    until("nothing is left", QUIET, || {
        for volume in stage.ask(stage.client.recycle_bin())? {
            // One that is being purged already refuses a second order.
            let _ = stage.ask(stage.client.purge_volume(volume.id));
        }
        let now = belongings(stage)?;
        let left: Vec<_> = now.difference(before).collect();
        Ok(if left.is_empty() { Seen::Enough(()) } else { Seen::Not(format!("{left:?}")) })
    })
    .context("leaked")
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

fn print(seed: u64, rows: &[Row]) {
    println!("\n{:<8} {:>6} {:>8} {:>6}  SEEN", "PART", "ROUNDS", "SECONDS", "BROKEN");
    for row in rows {
        let part = format!("{:?}", row.part).to_lowercase();
        println!("{part:<8} {:>6} {:>8.1} {:>6}  {}", row.rounds, row.seconds, row.broken.len(), row.told);
    }
    for row in rows {
        row.broken.iter().for_each(|fault| println!("\nBROKEN in {:?}: {fault}", row.part));
    }
    println!("\nseed {seed}, load average {}", load());
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers for the same seed, everywhere.
pub struct Dice(pub u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound.max(1)
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for at in (1..all.len()).rev() {
            all.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_rolls_the_same() {
        // The first number of the reference implementation for seed 0.
        assert_eq!(Dice(0).roll(), 0xe220_a839_7b1d_cdaf);
        let mut all = [1, 2, 3, 4, 5];
        Dice(7).shuffle(&mut all);
        let mut again = [1, 2, 3, 4, 5];
        Dice(7).shuffle(&mut again);
        assert_eq!(all, again);
        assert!((0..100).all(|n| Dice(n).below(3) < 3));
    }
}
