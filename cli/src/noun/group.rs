//! `amphi group`: so many instances of one template.

use crate::failure::Failure;
use crate::json_file::JsonFile;
use crate::noun::group_view::{detail, explained, list, rollout};
use crate::session::{Session, say, write_out};
use amphi_api::group::{
    Group, GroupChange, GroupCreate, GroupState, GroupUpdate, MetricPost, RolloutOrder, RolloutState,
    RolloutVerb,
};
use amphi_api::instance::{BodySpec, InstanceCreate};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use yaml_rust2::{Yaml, YamlLoader};

/// How often a group is looked at while its end is awaited.
const LOOK: Duration = Duration::from_millis(300);

#[derive(Subcommand)]
pub enum Command {
    /// Make a group of a description (JSON or YAML), or of an instance's template.
    Create(Create),
    /// Groups with state, size and revision.
    List,
    /// One group in full: its members, their revisions and whether they are ready.
    Show { group: String },
    /// Delete a group and its instances; their volumes go to the recycle bin.
    Delete { group: String },
    /// Have another number of instances, or say what the group's own policy would do.
    Scale(Scale),
    /// Change a group's policies: a file with `update`, `health`, `autoscale`, `ports`.
    Change {
        group: String,
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Exchange members for those of another template, one after the other; all, a share, or one.
    Update(Update),
    /// An update under way: its state, pause, resume, promote, undo.
    #[command(subcommand)]
    Rollout(RolloutCommand),
    /// Where the group answers, for load balancers.
    Endpoints {
        group: String,
        #[arg(long, value_enum, default_value_t = Form::Table)]
        format: Form,
        /// Print them again whenever they change.
        #[arg(long)]
        watch: bool,
    },
    /// Tell the group a number by which it may scale.
    Metric { group: String, name: String, value: f64 },
}

#[derive(Args)]
pub struct Create {
    /// The group's name. Default: the description's.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// The whole description.
    #[arg(
        short,
        long,
        value_name = "FILE",
        conflicts_with = "template",
        required_unless_present = "template"
    )]
    file: Option<PathBuf>,
    /// An instance's request, as `amphi instance create --file` takes it.
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// Instances to have. Default: the description's, else 1.
    #[arg(long)]
    count: Option<u32>,
    /// Ports of the service; may be repeated.
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,
}

#[derive(Args)]
pub struct Scale {
    group: String,
    #[arg(long, value_name = "COUNT", required_unless_present = "explain")]
    to: Option<u32>,
    /// Say how many the group's policy would have now, and why; do nothing.
    #[arg(long, conflicts_with = "to")]
    explain: bool,
}

#[derive(Args)]
pub struct Update {
    group: String,
    /// The new template.
    #[arg(long, value_name = "FILE", required_unless_present = "image")]
    template: Option<PathBuf>,
    /// The present template with this image: of all members of a set, or of `--member`.
    #[arg(long, conflicts_with = "template")]
    image: Option<String>,
    /// The member of a set that `--image` is for.
    #[arg(long, requires = "image")]
    member: Option<String>,
    /// Only so many of a hundred instances, rounded up.
    #[arg(long, value_name = "PERCENT", conflicts_with = "canary")]
    percent: Option<u8>,
    /// Only one instance.
    #[arg(long)]
    canary: bool,
}

#[derive(Subcommand)]
pub enum RolloutCommand {
    /// How far it is.
    Status { group: String },
    /// Exchange nothing more for now.
    Pause { group: String },
    /// Go on.
    Resume { group: String },
    /// Have it for more members, or for all.
    Promote {
        group: String,
        #[arg(long)]
        percent: Option<u8>,
    },
    /// Back to the revision before.
    Undo { group: String },
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Form {
    Table,
    /// Prometheus' HTTP service discovery.
    HttpSd,
    /// One `ADDRESS:PORT NAME` a line.
    Hosts,
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::Create(create) => {
                let made = session.client()?.create_scaling_group(&create.request()?).await?;
                finish(session, made).await
            }
            Self::List => session.list("groups", &session.client()?.groups().await?, list),
            Self::Show { group } => {
                let group = session.client()?.find_group(&group).await?;
                session.show(&group, |g| detail(g, Timestamp::now()))
            }
            Self::Delete { group } => delete(session, &group).await,
            Self::Scale(Scale { group, to, .. }) => {
                let client = session.client()?;
                let group = client.find_group(&group).await?;
                match to {
                    Some(to) => finish(session, client.scale_group(group.id, to).await?).await,
                    None => session.show(&client.explain_scaling(group.id).await?, explained),
                }
            }
            Self::Change { group, file } => {
                let change: GroupChange = load(&file)?;
                change.check()?;
                let client = session.client()?;
                let group = client.find_group(&group).await?;
                let changed = client.change_group(group.id, &change).await?;
                session.show(&changed, |g| detail(g, Timestamp::now()))
            }
            Self::Update(update) => update.run(session).await,
            Self::Rollout(command) => command.run(session).await,
            Self::Endpoints { group, format, watch } => endpoints(session, &group, format, watch).await,
            Self::Metric { group, name, value } => {
                let client = session.client()?;
                let group = client.find_group(&group).await?;
                client.post_metric(group.id, &MetricPost { name: name.clone(), value }).await?;
                session.note(&format!("group {}: {name} is {value}", group.name))
            }
        }
    }
}

impl Create {
    fn request(self) -> Result<GroupCreate, Failure> {
        let mut request: GroupCreate = match (&self.file, &self.template) {
            (Some(file), _) => load(file)?,
            (None, Some(template)) => {
                GroupCreate { count: 1, template: load(template)?, ..GroupCreate::default() }
            }
            (None, None) => return Err(Failure::new(2, "give --file or --template")),
        };
        if let Some(name) = self.name {
            request.name = name;
        }
        request.count = self.count.unwrap_or(request.count);
        if !self.port.is_empty() {
            request.ports = self.port;
        }
        request.check()?;
        Ok(request)
    }
}

impl Update {
    async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let group = client.find_group(&self.group).await?;
        let template = match (&self.template, &self.image) {
            (Some(file), _) => load(file)?,
            (None, Some(image)) => with_image(group.template.clone(), image, self.member.as_deref())?,
            (None, None) => return Err(Failure::new(2, "give --template or --image")),
        };
        let order = GroupUpdate { template, percent: self.percent, canary: self.canary };
        order.check()?;
        finish(session, client.update_group(group.id, &order).await?).await
    }
}

/// The template with another image.
fn with_image(
    mut template: InstanceCreate,
    image: &str,
    member: Option<&str>,
) -> Result<InstanceCreate, Failure> {
    let mut changed = false;
    for body in &mut template.bodies {
        match body {
            BodySpec::Set(set) => {
                for one in set.members.iter_mut().filter(|m| member.is_none_or(|name| m.name == name)) {
                    one.image = image.to_owned();
                    changed = true;
                }
            }
            BodySpec::Vm(vm) if member.is_none() => {
                vm.image = image.to_owned();
                changed = true;
            }
            BodySpec::Vm(_) => {}
        }
    }
    match (changed, template.bodies.len()) {
        (true, 1) => Ok(template),
        (true, _) => Err(Failure::new(2, "the template lists two bodies: give --template")),
        (false, _) => {
            Err(Failure::new(4, format!("the template has no member '{}'", member.unwrap_or_default())))
        }
    }
}

impl RolloutCommand {
    async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let (text, verb, percent) = match self {
            Self::Status { group } => {
                let group = client.find_group(&group).await?;
                return session.show(&group.rollout, |r| rollout(r, &group, Timestamp::now()));
            }
            Self::Pause { group } => (group, RolloutVerb::Pause, None),
            Self::Resume { group } => (group, RolloutVerb::Resume, None),
            Self::Promote { group, percent } => (group, RolloutVerb::Promote, percent),
            Self::Undo { group } => (group, RolloutVerb::Undo, None),
        };
        let order = RolloutOrder { verb, percent };
        order.check()?;
        let group = client.find_group(&text).await?;
        finish(session, client.order_rollout(group.id, &order).await?).await
    }
}

/// Waits until the group is as it should be, and shows it.
async fn finish(session: &Session, ordered: Group) -> Result<(), Failure> {
    let Some(deadline) = session.wait() else {
        return session.show(&ordered, |g| detail(g, Timestamp::now()));
    };
    let began = Instant::now();
    let waiting = session.waiting(format!("group {}", ordered.name));
    let client = session.client()?;
    let failed = |group: &Group, what: &str| {
        let why = match (&group.trouble, &group.rollout.reason) {
            (Some(trouble), _) => format!(": {}: {}", trouble.code, trouble.message),
            (None, Some(reason)) => format!(": {reason}"),
            (None, None) => String::new(),
        };
        let next = format!("see: amphi group show {}", group.id);
        Failure::new(1, format!("group {} {what}{why}", group.name)).next(next)
    };
    loop {
        let group = client.group(ordered.id).await?;
        waiting.state(&format!("{} of {} ready", group.ready, group.count));
        let paused = group.rollout.state == RolloutState::Paused;
        if group.state == GroupState::Steady || (paused && group.rollout.reason.is_none()) {
            drop(waiting);
            if group.rollout.to != ordered.rollout.to {
                return Err(failed(&group, "is back at the revision before"));
            }
            return session.show(&group, |g| detail(g, Timestamp::now()));
        }
        if paused {
            return Err(failed(&group, "is paused"));
        }
        // What keeps it from its size passes by itself only if somebody makes room.
        if group.state == GroupState::Short && began.elapsed() >= super::instance::GRACE {
            return Err(failed(&group, "is short of members"));
        }
        if began.elapsed() >= deadline {
            return Err(Failure { code: 5, ..failed(&group, "is not as ordered yet") });
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn delete(session: &Session, text: &str) -> Result<(), Failure> {
    let client = session.client()?;
    let group = client.find_group(text).await?;
    client.delete_group(group.id).await?;
    let Some(deadline) = session.wait() else {
        return session.note(&format!("group {} is being deleted", group.name));
    };
    let began = Instant::now();
    let waiting = session.waiting(format!("group {}", group.name));
    loop {
        let Some(left) = client.groups().await?.into_iter().find(|g| g.id == group.id) else { break };
        let leaving = left.members.len() + left.leaving.len();
        waiting.state(&format!("deleting, {leaving} instances left"));
        if began.elapsed() >= deadline {
            let why = format!("{leaving} instances of group {} are still there", group.name);
            return Err(Failure::new(5, why).next(format!("see: amphi group show {}", group.id)));
        }
        tokio::time::sleep(LOOK).await;
    }
    drop(waiting);
    session.note(&format!("deleted group {} and its {} instances", group.name, group.members.len()))
}

async fn endpoints(session: &Session, text: &str, format: Form, watch: bool) -> Result<(), Failure> {
    let client = session.client()?;
    let group = client.find_group(text).await?;
    let mut seen = client.group_endpoints(group.id, None).await?;
    loop {
        match format {
            Form::Table => session.show(&seen, super::group_view::endpoints)?,
            Form::Hosts => write_out(seen.lines().as_bytes())?,
            Form::HttpSd => {
                let text = serde_json::to_string_pretty(&seen.http_sd());
                say(&text.map_err(|e| Failure::new(1, format!("cannot be printed: {e}")))?)?;
            }
        }
        if !watch {
            return Ok(());
        }
        let known = seen.version.clone();
        while seen.version == known {
            seen = client.group_endpoints(group.id, Some(&known)).await?;
        }
    }
}

/// A description out of a file: YAML by its name's end, else JSON.
fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let yaml = path.extension().is_some_and(|end| end == "yaml" || end == "yml");
    if !yaml {
        return JsonFile::read(path)?.parse();
    }
    let name = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|e| Failure::new(2, format!("{name}: cannot be read: {e}")))?;
    let bad = |why: String| Failure::new(4, format!("{name}: {why}"));
    let mut documents = YamlLoader::load_from_str(&text).map_err(|e| bad(format!("no YAML: {e}")))?;
    if documents.len() != 1 {
        return Err(bad(format!("one document is expected, there are {}", documents.len())));
    }
    let tree = json(documents.remove(0), 0).map_err(bad)?;
    let text = serde_json::to_string_pretty(&tree).map_err(|e| bad(e.to_string()))?;
    JsonFile::of(&name, text).parse()
}

/// YAML's values as JSON's.
fn json(tree: Yaml, depth: usize) -> Result<serde_json::Value, String> {
    use serde_json::Value;
    if depth > 64 {
        return Err("nested too deep".to_owned());
    }
    Ok(match tree {
        Yaml::Real(text) => {
            let number = text.parse::<f64>().ok().and_then(serde_json::Number::from_f64);
            Value::Number(number.ok_or_else(|| format!("'{text}' is no number"))?)
        }
        Yaml::Integer(number) => number.into(),
        Yaml::String(text) => text.into(),
        Yaml::Boolean(value) => value.into(),
        Yaml::Null => Value::Null,
        Yaml::Array(all) => {
            Value::Array(all.into_iter().map(|one| json(one, depth + 1)).collect::<Result<_, _>>()?)
        }
        Yaml::Hash(map) => {
            let pair = |(key, value)| match key {
                Yaml::String(key) => Ok((key, json(value, depth + 1)?)),
                Yaml::Integer(key) => Ok((key.to_string(), json(value, depth + 1)?)),
                other => Err(format!("a key must be text, is {other:?}")),
            };
            Value::Object(map.into_iter().map(pair).collect::<Result<_, _>>()?)
        }
        Yaml::Alias(_) | Yaml::BadValue => return Err("a value cannot be read".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_read_as_json_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("group.yaml");
        let text = "name: web\ncount: 3\nports: [80]\ntemplate:\n  name: web-{index}\n  vcpus: 1\n  memory_mib: 64\n  \
                    bodies:\n  - set:\n      members:\n      - {index: 0, image: busybox}\n\
                    autoscale: {metric: queue, target: 10.5, min: 1, max: 4}\n";
        std::fs::write(&path, text).unwrap();
        let group: GroupCreate = load(&path).unwrap();
        group.check().unwrap();
        assert_eq!((group.count, group.autoscale.unwrap().target), (3, 10.5));
        std::fs::write(&path, "a: [").unwrap();
        assert_eq!(load::<GroupCreate>(&path).unwrap_err().code, 4);
        std::fs::write(&path, "name: web\ncolour: red\n").unwrap();
        assert_eq!(load::<GroupCreate>(&path).unwrap_err().code, 4);
    }

    #[test]
    fn the_examples_of_the_documentation_are_accepted() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/groups.md");
        let text = std::fs::read_to_string(page).unwrap();
        let block = |kind: &str| {
            text.split(kind).nth(1).and_then(|rest| rest.split("```").next()).unwrap().to_owned()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("group.yaml");
        std::fs::write(&path, block("```yaml\n")).unwrap();
        load::<GroupCreate>(&path).unwrap().check().unwrap();
        let change = format!("{{\"autoscale\": {}}}", block("```json\n"));
        serde_json::from_str::<GroupChange>(&change).unwrap().check().unwrap();
    }

    #[test]
    fn an_image_goes_where_it_is_meant() {
        let template: InstanceCreate = serde_json::from_str(
            r#"{"name": "w", "vcpus": 1, "memory_mib": 64, "bodies": [{"set": {"members": [
                {"name": "web", "index": 0, "image": "a"}, {"name": "log", "index": 1, "image": "b"}]}}]}"#,
        )
        .unwrap();
        let images = |template: &InstanceCreate| match &template.bodies[0] {
            BodySpec::Set(set) => set.members.iter().map(|m| m.image.clone()).collect::<Vec<_>>(),
            BodySpec::Vm(_) => Vec::new(),
        };
        assert_eq!(images(&with_image(template.clone(), "c", Some("web")).unwrap()), ["c", "b"]);
        assert_eq!(images(&with_image(template.clone(), "c", None).unwrap()), ["c", "c"]);
        assert!(with_image(template, "c", Some("db")).is_err());
    }
}
