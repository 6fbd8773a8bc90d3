//! `amphi NOUN VERB`: the command line of the native face. Owns words, tables and exit codes; everything it knows of
//! the cloud comes through `amphi_api::client`. Refuses: state of its own, and rules that the server does not have.

mod compose;
mod failure;
mod flags;
mod import;
mod json_file;
mod noun;
mod progress;
mod rule;
mod session;
mod table;
mod terminal;
mod yaml;

use clap::{CommandFactory, Parser, Subcommand};
use failure::Failure;
use session::Session;
use std::process::ExitCode;
use std::time::Duration;

const EXIT_CODES: &str = "\
Environment:
  AMPHI_URL    the controller, http://HOST:PORT
  AMPHI_TOKEN  the API token
  (in the lab: set -a; source target/lab/env; set +a)

Exit codes:
  0  ok
  1  the operation failed, or nothing has room for it
  2  wrong usage, a file that cannot be read, AMPHI_URL or AMPHI_TOKEN missing
  3  no such thing
  4  refused: bad input, or in conflict with what is there; nothing was changed
  5  the controller does not answer, or a wait took too long
  `exec` ends with its command's exit code (255: it has none)";

/// Instances with one address and two bodies: a VM or a set of containers.
#[derive(Parser)]
#[command(name = "amphi", version, after_help = EXIT_CODES, propagate_version = false)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(clap::Args)]
struct Global {
    /// Print the API's JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
    /// Return as soon as an order is taken, do not wait for it.
    #[arg(long, global = true)]
    no_wait: bool,
    /// Longest wait, in seconds.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 300,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

#[derive(Subcommand)]
enum Noun {
    /// Hosts: what they have, join, evacuate.
    #[command(subcommand)]
    Host(noun::host::Command),
    /// Networks and their subnets.
    #[command(subcommand)]
    Network(noun::network::Command),
    /// Security groups and their rules.
    #[command(subcommand, alias = "sg")]
    SecurityGroup(noun::security_group::Command),
    /// Images that bodies start from.
    #[command(subcommand)]
    Image(noun::image::Command),
    /// Repositories of container images, as `docker push` makes them: tags and policies.
    #[command(subcommand, alias = "repo")]
    Repository(noun::repository::Command),
    /// Other controllers that images go to and come from.
    #[command(subcommand)]
    Region(noun::region::Command),
    /// Images on their way to other regions or from them, and which go by themselves.
    #[command(subcommand)]
    Replication(noun::replication::Command),
    /// Sets of containers: check a description, create an instance.
    #[command(subcommand)]
    Set(noun::set::Command),
    /// Groups: so many instances of one template, updated one after the other, scaling by themselves.
    #[command(subcommand)]
    Group(noun::group::Command),
    /// Virtual machines: create an instance.
    #[command(subcommand)]
    Vm(noun::vm::Command),
    /// Instances of both kinds.
    #[command(subcommand)]
    Instance(noun::instance::Command),
    /// Give an instance its other body; address and volume stay.
    Exchange(noun::exchange::Arguments),
    /// Bring an instance to another host, as either kind of body.
    Move(noun::moving::Arguments),
    /// Level the hosts' load: a plan first, then moves.
    Rebalance(noun::moving::Rebalance),
    /// Where an order would go, and why not elsewhere.
    Place(noun::place::Arguments),
    /// Hosts that were taken for dead, and what became of their instances.
    #[command(alias = "failover")]
    Failovers(noun::failovers::Arguments),
    /// Run a command in a set's member, or in a VM whose guest agent answers.
    Exec(noun::looking_in::Exec),
    /// A VM's serial console, or a shell in a set's member.
    Console(noun::looking_in::Console),
    /// A member's output, or what a VM wrote on its console.
    Logs(noun::logs::Logs),
    /// Copy files out of a set's member or a VM, or into it.
    Cp(noun::copying::Copy),
    /// What has happened: orders, states, faults, restarts, failovers.
    Events(noun::events::Events),
    /// What members and VMs use: CPU, memory, I/O, network.
    Top(noun::top::Top),
    /// A set without probes and hooks, a member's command another: beside it, or instead.
    Debug(noun::debug::Debug),
    /// Run a command of another image beside a set's member.
    Tools(noun::tools::Tools),
    /// Volumes.
    #[command(subcommand)]
    Volume(noun::volume::Command),
    /// Snapshots of volumes.
    #[command(subcommand)]
    Snapshot(noun::snapshot::Command),
    /// Deleted volumes, until they are purged.
    #[command(subcommand)]
    RecycleBin(noun::recycle_bin::Command),
    /// Ports: which address belongs to which instance.
    #[command(subcommand)]
    Port(noun::port::Command),
    /// Bring workloads in: disks, OVA files, libvirt domains, OpenStack projects. A plan first, then what it says.
    #[command(subcommand)]
    Import(import::Command),
    /// Print a completion script: `amphi completion bash > /etc/bash_completion.d/amphi`.
    Completion { shell: clap_complete::Shell },
    /// Print the version.
    Version,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Fails only if one is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::new(1, format!("no runtime: {error}")).report(),
    };
    let global = arguments.global;
    let wait = (!global.no_wait).then(|| Duration::from_secs(global.timeout));
    let session = Session::new(global.json, wait);
    match runtime.block_on(run(arguments.noun, &session)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(noun: Noun, session: &Session) -> Result<(), Failure> {
    match noun {
        Noun::Host(command) => command.run(session).await,
        Noun::Network(command) => command.run(session).await,
        Noun::SecurityGroup(command) => command.run(session).await,
        Noun::Image(command) => command.run(session).await,
        Noun::Repository(command) => command.run(session).await,
        Noun::Region(command) => command.run(session).await,
        Noun::Replication(command) => command.run(session).await,
        Noun::Set(command) => command.run(session).await,
        Noun::Group(command) => command.run(session).await,
        Noun::Vm(command) => command.run(session).await,
        Noun::Instance(command) => command.run(session).await,
        Noun::Failovers(arguments) => arguments.run(session).await,
        Noun::Exchange(arguments) => arguments.run(session).await,
        Noun::Move(arguments) => arguments.run(session).await,
        Noun::Rebalance(arguments) => arguments.run(session).await,
        Noun::Place(arguments) => arguments.run(session).await,
        Noun::Exec(arguments) => arguments.run(session).await,
        Noun::Console(arguments) => arguments.run(session).await,
        Noun::Logs(arguments) => arguments.run(session).await,
        Noun::Cp(arguments) => arguments.run(session).await,
        Noun::Top(arguments) => arguments.run(session).await,
        Noun::Events(arguments) => arguments.run(session).await,
        Noun::Debug(arguments) => arguments.run(session).await,
        Noun::Tools(arguments) => arguments.run(session).await,
        Noun::Volume(command) => command.run(session).await,
        Noun::Snapshot(command) => command.run(session).await,
        Noun::RecycleBin(command) => command.run(session).await,
        Noun::Port(command) => command.run(session).await,
        Noun::Import(command) => command.run(session).await,
        Noun::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "amphi", &mut script);
            session::write_out(&script)
        }
        Noun::Version => session::say(&format!("amphi {}", env!("CARGO_PKG_VERSION"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_fit_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn moves_and_maintenance() {
        let parse = |words: &[&str]| Arguments::try_parse_from([&["amphi"], words].concat()).is_ok();
        assert!(parse(&["move", "web", "--to", "h2", "--kind", "vm", "--reason", "fans"]));
        assert!(parse(&["move", "cancel", "web"]) && parse(&["move", "list"]));
        assert!(!parse(&["move", "web"]), "a reason is wanted");
        assert!(parse(&["rebalance", "--plan"]) && parse(&["rebalance", "--apply", "--at-a-time", "4"]));
        assert!(!parse(&["rebalance"]) && !parse(&["rebalance", "--plan", "--apply"]));
        assert!(
            parse(&["host", "maintenance", "h1", "--reason", "fans"])
                && parse(&["host", "maintenance", "h1", "--end"])
        );
        assert!(!parse(&["host", "maintenance", "h1"]));
        assert!(parse(&["place", "--explain", "--body", "vm", "--qos", "guaranteed"]));
        assert!(!parse(&["place", "--qos", "gold"]));
    }

    #[test]
    fn groups() {
        let parse = |words: &[&str]| Arguments::try_parse_from([&["amphi", "group"], words].concat()).is_ok();
        assert!(parse(&["create", "-f", "group.yaml", "--count", "3"]));
        assert!(parse(&["create", "web", "--template", "web.json"]) && !parse(&["create", "web"]));
        assert!(parse(&["scale", "web", "--to", "5"]) && parse(&["scale", "web", "--explain"]));
        assert!(!parse(&["scale", "web"]) && !parse(&["scale", "web", "--to", "5", "--explain"]));
        assert!(parse(&["update", "web", "--template", "web.json", "--percent", "30"]));
        assert!(parse(&["update", "web", "--template", "web.json", "--canary"]));
        assert!(!parse(&["update", "web", "--template", "web.json", "--canary", "--percent", "30"]));
        assert!(parse(&["update", "web", "--image", "shop:2"]) && !parse(&["update", "web"]));
        assert!(
            parse(&["rollout", "status", "web"]) && parse(&["rollout", "promote", "web", "--percent", "50"])
        );
        assert!(parse(&["endpoints", "web", "--format", "hosts", "--watch"]));
        assert!(parse(&["metric", "web", "queue", "120.5"]));
    }

    #[test]
    fn repositories() {
        let parse =
            |words: &[&str]| Arguments::try_parse_from([&["amphi", "repository"], words].concat()).is_ok();
        assert!(parse(&["list"]) && parse(&["tags", "web"]) && parse(&["untag", "web", "v1"]));
        assert!(parse(&["policy", "web", "--immutable", "v*", "--keep-last", "5", "--untagged-days", "-1"]));
        assert!(!parse(&["policy", "web", "--visibility", "shared"]) && !parse(&["untag", "web"]));
    }

    #[test]
    fn regions() {
        let parse = |words: &[&str]| Arguments::try_parse_from([&["amphi"], words].concat()).is_ok();
        assert!(parse(&[
            "region",
            "create",
            "north",
            "--url",
            "https://h",
            "--token-file",
            "-",
            "--rate",
            "1024"
        ]));
        assert!(parse(&["region", "set", "north", "--credential", "id", "--secret-file", "f"]));
        assert!(!parse(&["region", "set", "north", "--credential", "id"]), "no secret on the command line");
        assert!(!parse(&[
            "region",
            "set",
            "n",
            "--credential",
            "i",
            "--secret-file",
            "f",
            "--token-file",
            "f"
        ]));
        assert!(parse(&["image", "replicate", "web", "--to", "north", "--tags", "--no-wait"]));
        assert!(parse(&["image", "fetch", "web", "--from", "north"]) && !parse(&["image", "fetch", "web"]));
        assert!(parse(&["replication", "policy", "create", "all", "--to", "north", "--property", "a=b"]));
        assert!(parse(&["replication", "cancel", "web", "--region", "north"]));
    }

    #[test]
    fn the_orders_of_pages_are_orders() {
        for (page, least) in [("convert", 5), ("groups", 15), ("images", 12), ("import", 9), ("registry", 5)]
        {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/{page}.md"));
            let text = std::fs::read_to_string(path).unwrap();
            let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
            let lines: Vec<&str> =
                blocks.flat_map(str::lines).filter(|line| line.starts_with("amphi ")).collect();
            assert!(lines.len() >= least, "{lines:?}");
            for line in lines {
                let order = line.split('#').next().unwrap_or_default();
                let parsed = Arguments::try_parse_from(order.split_whitespace());
                assert!(parsed.is_ok(), "{line}: {}", parsed.err().unwrap());
            }
        }
    }

    #[test]
    fn exchange_takes_an_instance_or_a_verb() {
        let parse = |words: &[&str]| Arguments::try_parse_from([&["amphi"], words].concat()).is_ok();
        assert!(parse(&["exchange", "web", "--to", "vm", "--image", "debian"]));
        assert!(parse(&["exchange", "list", "web", "--json"]));
        assert!(!parse(&["exchange", "web"]));
        assert!(!parse(&["exchange", "web", "--to", "bird"]));
        assert!(!parse(&["instance", "list", "--timeout", "0"]));
        assert!(parse(&["exec", "-it", "web", "--", "sh", "-c", "ls"]));
        assert!(parse(&["exec", "web", "ls", "-l", "--json"]));
        assert!(!parse(&["exec", "web"]));
        assert!(
            parse(&["logs", "web", "-m", "a", "-m", "b", "-f", "-t"]) && parse(&["logs", "web", "--all"])
        );
        assert!(!parse(&["logs", "web", "--all", "-m", "a"]));
        assert!(
            parse(&["cp", "web:a:/etc", "."])
                && parse(&["cp", "-", "web:/data"])
                && !parse(&["cp", "web:/etc"])
        );
        assert!(parse(&["top"]) && parse(&["top", "web", "--once", "--sort", "memory"]));
        assert!(!parse(&["top", "--sort", "colour"]));
        assert!(parse(&["tools", "-it", "web", "-m", "a", "--image", "tools", "--", "strace", "-p", "1"]));
        assert!(!parse(&["tools", "web", "--", "sh"]));
        assert!(
            parse(&["debug", "web", "-m", "a", "--instead", "--", "sleep", "9"])
                && parse(&["debug", "web", "--end"])
        );
        assert!(!parse(&["debug", "web", "--end", "--instead"]));
    }
}
