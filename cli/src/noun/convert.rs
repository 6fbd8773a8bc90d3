//! `amphi image convert`: another image of one that is there. Waits, and shows what was found, above all what will not be in a
//! container as it was in the machine.

use crate::failure::Failure;
use crate::session::Session;
use crate::table::{bytes, pairs, rows, word};
use amphi_api::conversion::{Conversion, ConversionReport, ConversionState, ConvertCreate, ConvertTo};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Args)]
pub struct Convert {
    /// Name or id of a disk (qcow2, raw) or of a container image.
    image: String,
    /// `container`: of a disk's root file system. `disk`: that a BIOS boots.
    #[arg(long, value_enum)]
    to: To,
    /// Of the image that comes out. Default: the old one's, with `-container` or `-disk` behind it.
    #[arg(long)]
    name: Option<String>,
    /// Write the description of a set that runs it: for `amphi set create NAME --file FILE`.
    #[arg(long, value_name = "FILE")]
    set: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    Container,
    Disk,
}

impl Convert {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let to = match self.to {
            To::Container => ConvertTo::Container,
            To::Disk => ConvertTo::Disk,
        };
        if self.set.is_some() && to == ConvertTo::Disk {
            return Err(Failure::new(2, "--set is for --to container: a disk is run by `amphi vm create`"));
        }
        if self.set.is_some() && session.wait().is_none() {
            return Err(Failure::new(2, "--set needs what is found: it does not go with --no-wait"));
        }
        let request = ConvertCreate { to, name: self.name };
        request.check()?;
        let client = session.client()?;
        let image = client.find_image(&self.image).await?;
        let begun = client.convert_image(image.id, &request).await?;
        let conversion = match session.wait() {
            None => begun,
            Some(deadline) => {
                let waiting = session.waiting(format!("{} to {}", image.name, begun.image.name));
                client.wait_conversion(begun.image.id, deadline, |now| waiting.state(&state(now))).await?
            }
        };
        if let (Some(path), Some(set)) = (&self.set, &conversion.set) {
            let text = serde_json::to_string_pretty(set)
                .map_err(|e| Failure::new(1, format!("the set cannot be written as JSON: {e}")))?;
            std::fs::write(path, text + "\n")
                .map_err(|e| Failure::new(1, format!("{}: cannot be written: {e}", path.display())))?;
        }
        session.show(&conversion, detail)?;
        if conversion.state == ConversionState::Failed {
            let why = conversion
                .fault
                .map_or("no reason given".to_owned(), |f| format!("{}: {}", f.code, f.message));
            return Err(Failure::new(1, format!("{} was not converted: {why}", image.name))
                .next(format!("remove what is left: amphi image delete {}", conversion.image.id)));
        }
        Ok(())
    }
}

fn state(conversion: &Conversion) -> String {
    let progress = conversion.progress;
    match &conversion.fault {
        Some(fault) => format!("{} ({}: {})", word(conversion.state), fault.code, fault.message),
        None if progress.entries > 0 => {
            format!("{}, {} names, {}", word(conversion.state), progress.entries, bytes(progress.bytes))
        }
        None => word(conversion.state),
    }
}

/// The whole of it, for people.
pub fn detail(conversion: &Conversion) -> String {
    let mut lines = vec![
        ("Image", conversion.image.name.clone()),
        ("Id", conversion.image.id.to_string()),
        ("Made of", format!("{} ({})", conversion.of_name, conversion.of)),
        ("State", state(conversion)),
        ("Host", conversion.host.to_string()),
    ];
    let Some(report) = &conversion.report else { return pairs(&lines) };
    lines.extend(found(report));
    let mut text = pairs(&lines);
    if !report.notes.is_empty() {
        text.push('\n');
        let notes = report.notes.iter().map(|n| vec![n.kind.clone(), n.what.clone(), n.why.clone()]);
        text.push_str(&rows(&["NOT AS IT WAS", "WHAT", "WHY"], notes));
    }
    text
}

fn found(report: &ConversionReport) -> Vec<(&'static str, String)> {
    if report.system.is_empty() {
        return vec![("Files", format!("{} names, {}", report.entries, bytes(report.bytes)))];
    }
    let mut lines = vec![("System", report.system.clone()), ("Root", report.root.clone())];
    let mounted: Vec<_> = report.mounted.iter().map(|(path, from)| format!("{path} from {from}")).collect();
    if !mounted.is_empty() {
        lines.push(("With", mounted.join("\n")));
    }
    lines.push(("Init", format!("{} ({})", report.init.argv.join(" "), report.init.kind)));
    let started: Vec<_> = report.services.iter().filter(|s| s.started).map(|s| s.name.as_str()).collect();
    if !started.is_empty() {
        lines.push(("Services", started.join(", ")));
    }
    let counts = [
        (report.hard_links, "hard links"),
        (report.sparse_files, "sparse files"),
        (report.capabilities, "with capabilities"),
        (report.set_ids, "that run as their owner or group"),
    ];
    let counts: Vec<_> =
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!(", {n} {what}")).collect();
    lines.push(("Files", format!("{} names, {}{}", report.entries, bytes(report.bytes), counts.concat())));
    lines
}
