//! `amphi-lab`: the lab by hand. Owns the words of the command line; everything they do is in the library.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use amphi_integration::alone::agent;
use amphi_integration::lab::{
    Lab, Layout, Sizes, UnitStatus, UpOptions, end, guard, leftovers, own_program, run_node, run_underlay,
};
use amphi_integration::{crash, fuzz, races, scale, storm};
use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use nix::sys::signal::Signal;

#[derive(Parser)]
#[command(
    name = "amphi-lab",
    about = "Several real hosts on one machine; state in $AMPHI_LAB_DIR, else target/lab"
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a lab and leave it running
    Up {
        #[arg(long, default_value_t = 2)]
        hosts: u8,
        /// Without amphi-controller and amphi-hostsrv
        #[arg(long)]
        engines_only: bool,
    },
    /// Two hosts, the story, and the lab stays up until Ctrl-C; AMPHI_ONCE=1 ends after the story
    #[command(alias = "run-story")]
    Run,
    /// The story on a lab that is up
    Story,
    /// Measure what is promised, on a lab of its own; one line `name: value` per figure
    Bench {
        /// How many sets are created, each beside plain containers
        #[arg(long, default_value_t = 15)]
        rounds: usize,
        /// Measure only these parts
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<amphi_integration::bench::Part>,
    },
    /// Measure the controller alone, on disk, with hosts in memory, by OpenStack's calls; one line `name: value` per figure
    BenchServices {
        /// Hosts in memory
        #[arg(long, default_value_t = 20)]
        hosts: usize,
        /// Servers beyond those of the single measures
        #[arg(long, default_value_t = 2000)]
        servers: usize,
    },
    /// Try the native face with requests made out of its own description, on a controller alone with hosts in memory
    Fuzz {
        /// A run of the same seed, with --examples, makes the same requests; default: another one each time
        #[arg(long)]
        seed: Option<u32>,
        /// Requests of each kind for each route, in place of a time
        #[arg(long)]
        examples: Option<u32>,
        #[arg(long, default_value_t = 600)]
        seconds: u64,
    },
    /// Measure the controller beside 10, 100 and 1,000 hosts in memory with the agent's own link and reconciler
    Scale {
        /// How many hosts, one measure after the other
        #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1000])]
        hosts: Vec<usize>,
        #[arg(long, default_value_t = 50)]
        instances_per_host: usize,
        /// No further instances are ordered after so long a time
        #[arg(long, default_value_t = 120)]
        seconds: u64,
        /// From so many hosts on they are links alone: all that one machine can bear
        #[arg(long, default_value_t = 5000)]
        thin_from: usize,
    },
    /// Let a seeded storm of orders and faults pass over a controller with hosts in memory, and check all that must hold
    Storm {
        /// The same seed gives the same orders and faults; default: another one each time
        #[arg(long)]
        seed: Option<u64>,
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        #[arg(long, default_value_t = 5)]
        hosts: usize,
        #[arg(long, default_value_t = 8)]
        clients: u64,
    },
    /// Let the controller die at each of its commits, and agents at each of their calls to an engine
    Deaths {
        /// How often at each
        #[arg(long, default_value_t = 2)]
        replays: u32,
    },
    /// Let clients race for the last addresses of a /26 and for the last room of a host
    Races {
        #[arg(long, default_value_t = 64)]
        clients: usize,
        #[arg(long, default_value_t = 100)]
        rounds: usize,
    },
    /// Break hosts in every way that the promises name, on a lab of its own, and look all the time; prints a table, and fails
    /// when an invariant does not hold
    Chaos(amphi_integration::chaos::Options),
    /// Measure placement alone: decisions a second at 10, 100, 1,000 and 10,000 hosts
    BenchPlacement,
    /// End the lab and remove what it made
    Down,
    /// Every daemon of every party
    Status,
    /// Kill a party whole, at once
    PowerCut { host: String },
    /// Power a party on again
    Return { host: String },
    /// Drop everything between two parties
    Cut {
        a: String,
        b: String,
        /// Only what A sends to B
        #[arg(long)]
        one_way: bool,
    },
    /// Undo a cut, both ways
    Heal { a: String, b: String },
    /// Freeze a party (h1) or one daemon (h1/dockerd)
    Pause { what: String },
    /// Undo a pause
    Resume { what: String },
    /// Send a signal to a daemon
    Kill {
        host: String,
        daemon: String,
        #[arg(default_value = "KILL")]
        signal: String,
    },
    /// Start a daemon that has ended
    Start { host: String, daemon: String },
    /// Leave no room on a party's disk
    DiskFull { host: String },
    /// Undo disk-full
    DiskFree { host: String },
    /// A shell, or a command, on a party
    Shell {
        host: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// What a lab that is down has left on the machine; fails when there is anything
    Leftovers,
    /// A host's agent over engines in memory, which another process holds
    #[command(hide = true)]
    Agent {
        #[arg(long)]
        name: String,
        #[arg(long)]
        url: String,
        #[arg(long)]
        state: std::path::PathBuf,
        #[arg(long)]
        run: std::path::PathBuf,
        #[arg(long)]
        socket: std::path::PathBuf,
        #[arg(long)]
        cpus: u32,
        #[arg(long)]
        memory_mib: u64,
    },
    #[command(hide = true)]
    Supervise {
        #[arg(long)]
        hosts: u8,
        #[arg(long)]
        engines_only: bool,
        #[arg(long)]
        pv_bytes: u64,
        #[arg(long, default_value_t = 0)]
        shared_bytes: u64,
    },
    #[command(hide = true)]
    Underlay {
        nodes: Vec<String>,
        #[arg(long)]
        engines_only: bool,
    },
    /// Ask addresses by ping, all the time, and write down who answers when
    #[command(hide = true)]
    Probe { log: std::path::PathBuf, addresses: Vec<std::net::Ipv4Addr> },
    /// Ask HTTP servers all the time, and write down every outcome
    #[command(hide = true)]
    Load { log: std::path::PathBuf, servers: Vec<std::net::SocketAddrV4> },
    #[command(hide = true)]
    Node {
        name: String,
        #[arg(long)]
        engines_only: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("amphi-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    if let Verb::Probe { log, addresses } = &verb {
        amphi_integration::probe::run(log, addresses)?;
    }
    if let Verb::Load { log, servers } = &verb {
        amphi_integration::load::run(log, servers)?;
    }
    if let Verb::Agent { name, url, state, run, socket, cpus, memory_mib } = verb {
        let home = agent::Home { name, state, run, url: Some(url), size: agent::Size { cpus, memory_mib } };
        agent::run(&home, &socket)?;
        return Ok(ExitCode::SUCCESS);
    }
    let layout = Layout::from_env()?;
    match verb {
        Verb::Supervise { hosts, engines_only, pv_bytes, shared_bytes } => {
            guard(&layout, hosts, engines_only, Sizes { pv: pv_bytes, shared: shared_bytes })?
        }
        Verb::Underlay { nodes, engines_only } => run_underlay(&layout, &nodes, engines_only)?,
        Verb::Node { name, engines_only } => run_node(&layout, &name, engines_only)?,
        Verb::Up { hosts, engines_only } => up(layout, hosts, engines_only)?,
        Verb::Run => {
            let program = own_program()?;
            let once = std::env::var_os("AMPHI_ONCE").is_some_and(|v| !v.is_empty() && v != "0");
            return Ok(truth(amphi_integration::run::run(layout, &program, once, show)?));
        }
        Verb::Bench { rounds, only } => {
            let program = own_program()?;
            amphi_integration::bench::run(layout, &program, rounds, &only, show)?;
        }
        Verb::Chaos(options) => amphi_integration::chaos::run(layout, &own_program()?, &options, show)?,
        Verb::BenchServices { hosts, servers } => {
            amphi_integration::bench::services::run(&own_program()?, hosts, servers)?;
        }
        Verb::Fuzz { seed, examples, seconds } => {
            let program = own_program()?;
            let programs = program.parent().context("the program has no directory")?;
            let fresh = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.subsec_nanos());
            let bound = examples.map_or(fuzz::Bound::Seconds(seconds), fuzz::Bound::Examples);
            println!("{}", fuzz::run(programs, seed.unwrap_or(fresh), &bound)?);
        }
        Verb::Scale { hosts, instances_per_host, seconds, thin_from } => {
            let most = std::time::Duration::from_secs(seconds);
            scale::run(&own_program()?, &hosts, &scale::Load { instances_per_host, most, thin_from })?;
        }
        Verb::Storm { seed, seconds, hosts, clients } => {
            let fresh = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| u64::from(time.subsec_nanos()));
            let seed = seed.unwrap_or(fresh);
            println!("storm: seed {seed}, {seconds} s, {hosts} hosts, {clients} clients");
            let lasts = std::time::Duration::from_secs(seconds);
            println!("{}", storm::run(&own_program()?, &storm::Weather { seed, lasts, hosts, clients })?);
        }
        Verb::Deaths { replays } => {
            for who in [crash::Who::Controller, crash::Who::Agents] {
                println!("{}", crash::all(&own_program()?, who, replays)?);
            }
        }
        Verb::Races { clients, rounds } => println!("{}", races::run(&own_program()?, clients, rounds)?),
        Verb::BenchPlacement => {
            let bench = own_program()?.with_file_name("amphi-bench-placement");
            return Err(std::process::Command::new(&bench).exec())
                .with_context(|| format!("start {}", bench.display()));
        }
        Verb::Story => return Ok(truth(amphi_integration::run::tell(layout)?)),
        Verb::Down => match Lab::attach(layout.clone()) {
            Ok(lab) => lab.down()?,
            Err(_) => end(&layout)?,
        },
        Verb::Leftovers => {
            let found = leftovers(&layout);
            found.iter().for_each(|line| println!("{line}"));
            ensure!(found.is_empty(), "{} leftovers", found.len());
        }
        Verb::Shell { host, command } => {
            let words: Vec<&str> =
                if command.is_empty() { vec!["bash"] } else { command.iter().map(String::as_str).collect() };
            return Err(Lab::attach(layout)?.command(&host, &words)?.exec()).context("start the shell");
        }
        other => act(&Lab::attach(layout)?, other)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The exit code tells it.
fn truth(ok: bool) -> ExitCode {
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn act(lab: &Lab, verb: Verb) -> Result<()> {
    match verb {
        Verb::Status => status(lab),
        Verb::PowerCut { host } => lab.power_cut(&host),
        Verb::Return { host } => lab.restore(&host, show),
        Verb::Cut { a, b, one_way } => lab.cut(&a, &b, one_way),
        Verb::Heal { a, b } => lab.heal(&a, &b),
        Verb::Pause { what } => lab.pause(&what),
        Verb::Resume { what } => lab.resume(&what),
        Verb::Kill { host, daemon, signal } => lab.kill(&host, &daemon, parse_signal(&signal)?),
        Verb::Start { host, daemon } => lab.start(&host, &daemon),
        Verb::DiskFull { host } => lab.disk_full(&host),
        Verb::DiskFree { host } => lab.disk_free(&host),
        _ => bail!("not a verb for a running lab"),
    }
}

fn up(layout: Layout, hosts: u8, engines_only: bool) -> Result<()> {
    let began = std::time::Instant::now();
    let mut options = UpOptions::new(layout, own_program()?, hosts);
    options.engines_only = engines_only;
    // Ctrl-C before the end closes the connection that the lab lives by: it goes down by itself.
    let mut lab = Lab::up(&options, show)?;
    lab.detach()?;
    println!("lab up in {:.1} s: {}", began.elapsed().as_secs_f64(), lab.layout().root().display());
    if lab.layout().env().exists() {
        println!(". {}", lab.layout().env().display());
    }
    Ok(())
}

/// One line per unit that came up or was lost.
fn show(unit: &UnitStatus) {
    if matches!(unit.state.as_str(), "waiting" | "starting") {
        return;
    }
    println!(
        "  {:<10} {:<16} {:<7} {:>6.2} s  {}",
        unit.node, unit.name, unit.state, unit.seconds, unit.detail
    );
    let _ = std::io::stdout().flush();
}

fn status(lab: &Lab) -> Result<()> {
    for party in lab.parties()? {
        if !party.powered {
            println!("  {:<10} no power", party.name);
            continue;
        }
        match lab.status(&party.name) {
            Ok(status) => status.units.iter().for_each(show),
            Err(error) => println!("  {:<10} does not answer: {error:#}", party.name),
        }
    }
    Ok(())
}

fn parse_signal(text: &str) -> Result<Signal> {
    let name = text.to_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse().with_context(|| format!("no signal {text}"))
}
