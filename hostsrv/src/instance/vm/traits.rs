//! Owns what is read out of a domain's XML as libvirt gives it back: the words that Amphi left in its metadata, and which
//! of its devices are ours. Refuses to know the rest of the format: elements of ours carry aliases that say what they are.

use super::disks::{ROOT_ALIAS, VOLUME_ALIAS};
use super::xml::{AGENT_PORT, PORT_ALIAS};
use amphi_api::{PortId, VolumeId};

/// What a domain says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// 0 if it says nothing: older than every epoch.
    pub epoch: u64,
    pub rescued: bool,
    /// Processors that it has, and that it can have; 0: it does not say.
    pub vcpus: u32,
    pub vcpus_most: u32,
    /// What it was started with.
    pub memory_kib: u64,
    pub room: Option<Room>,
    pub devices: Vec<Device>,
    /// Of a set's VM: where the line to its guest ends.
    pub guest: Option<std::path::PathBuf>,
    /// The guest has opened the port of its agent: one listens there.
    pub agent: bool,
}

/// The device by which memory comes and goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub size_kib: u64,
    /// What the guest is asked to have of it, and what it has.
    pub asked_kib: u64,
    pub taken_kib: u64,
    xml: String,
}

impl Room {
    /// Its element with so much asked for.
    pub fn asking(&self, kib: u64) -> String {
        let (open, close) = ("<requested unit='KiB'>", "</requested>");
        self.xml.replace(&format!("{open}{}{close}", self.asked_kib), &format!("{open}{kib}{close}"))
    }
}

/// A device of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub plug: Plug,
    /// `vdb`; empty for ports.
    pub target: String,
    /// Its element as libvirt wrote it, for taking it out again.
    pub xml: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plug {
    Root,
    Volume(VolumeId),
    Port(PortId),
}

impl Traits {
    /// Reads a whole domain's XML.
    pub fn read(domain: &str) -> Self {
        let note = domain.split_once("<amphi:body").map_or("", |(_, rest)| rest);
        // Only the tag: attributes hold numbers and ids, the free text comes after it.
        let tag = note.split('>').next().unwrap_or_default();
        let room = room(domain);
        let beside = room.as_ref().map_or(0, |room| room.size_kib);
        Self {
            epoch: attribute(tag, "epoch").and_then(|digits| digits.parse().ok()).unwrap_or(0),
            rescued: attribute(tag, "rescued") == Some("yes"),
            vcpus: processors(domain).0,
            vcpus_most: processors(domain).1,
            // libvirt counts the device's full size in.
            memory_kib: kib(domain, "memory").saturating_sub(beside),
            room,
            devices: [elements(domain, "disk"), elements(domain, "interface")]
                .concat()
                .into_iter()
                .filter_map(device)
                .collect(),
            guest: guest_socket(domain),
            agent: agent(domain) == Some(true),
        }
    }

    pub fn ports(&self) -> Vec<PortId> {
        let port = |device: &Device| match device.plug {
            Plug::Port(id) => Some(id),
            _ => None,
        };
        self.devices.iter().filter_map(port).collect()
    }

    pub fn volumes(&self) -> Vec<VolumeId> {
        let volume = |device: &Device| match device.plug {
            Plug::Volume(id) => Some(id),
            _ => None,
        };
        self.devices.iter().filter_map(volume).collect()
    }

    /// The disk's name within the domain.
    pub fn target(&self, plug: Plug) -> Option<&str> {
        self.devices.iter().find(|device| device.plug == plug).map(|device| device.target.as_str())
    }
}

/// What an alias says that a device is; None for those that are not plugged in and out.
pub fn plug_of(alias: &str) -> Option<Plug> {
    if alias == ROOT_ALIAS {
        return Some(Plug::Root);
    }
    if let Some(id) = alias.strip_prefix(VOLUME_ALIAS) {
        return id.parse().ok().map(Plug::Volume);
    }
    alias.strip_prefix(PORT_ALIAS)?.parse().ok().map(Plug::Port)
}

fn device(element: &str) -> Option<Device> {
    let of = |tag: &str, name| attribute(element.split_once(tag)?.1.split('>').next()?, name);
    let plug = plug_of(of("<alias", "name")?)?;
    let target = of("<target", "dev").filter(|_| !matches!(plug, Plug::Port(_))).unwrap_or_default();
    Some(Device { plug, target: target.to_owned(), xml: element.to_owned() })
}

/// `<vcpu placement='static' current='1'>2</vcpu>`: those that are there, and the most.
fn processors(domain: &str) -> (u32, u32) {
    let Some((tag, text)) = domain.split_once("<vcpu").and_then(|(_, rest)| rest.split_once('>')) else {
        return (0, 0);
    };
    let most = text.split('<').next().and_then(|digits| digits.trim().parse().ok()).unwrap_or(0);
    (attribute(tag, "current").and_then(|digits| digits.parse().ok()).unwrap_or(most), most)
}

/// `<memory unit='KiB'>131072</memory>`, as libvirt writes it back.
fn kib(text: &str, name: &str) -> u64 {
    let text = text.split_once(&format!("<{name} unit='KiB'>")).map_or("", |(_, rest)| rest);
    text.split('<').next().and_then(|digits| digits.trim().parse().ok()).unwrap_or(0)
}

fn room(domain: &str) -> Option<Room> {
    let begin = domain.find("<memory model='virtio-mem'")?;
    let (inside, _) = domain[begin..].split_once("</memory>")?;
    Some(Room {
        size_kib: kib(inside, "size"),
        asked_kib: kib(inside, "requested"),
        taken_kib: kib(inside, "current"),
        xml: format!("{inside}</memory>"),
    })
}

/// The outermost elements of a name that cannot hold its like. Text and attributes are escaped, so a tag is a tag.
/// The pseudo-terminal of a running domain's serial line.
pub fn serial_pty(domain: &str) -> Option<&str> {
    let serial = elements(domain, "serial").into_iter().next()?;
    let (_, source) = serial.split_once("<source")?;
    attribute(source.split('>').next()?, "path")
}

/// The socket of a running domain's screen.
pub fn screen_socket(domain: &str) -> Option<&str> {
    let (_, graphics) = domain.split_once("<graphics")?;
    attribute(graphics.split('>').next()?, "socket")
}

/// The channel of this name.
fn channel<'a>(domain: &'a str, name: &str) -> Option<&'a str> {
    let target = |element: &&str| {
        element.split_once("<target").is_some_and(|(_, target)| attribute(target, "name") == Some(name))
    };
    elements(domain, "channel").into_iter().find(target)
}

/// Where the line to its guest ends.
fn guest_socket(domain: &str) -> Option<std::path::PathBuf> {
    let (_, source) = channel(domain, amphi_guest::PORT)?.split_once("<source")?;
    attribute(source.split('>').next()?, "path").map(Into::into)
}

/// Whether an agent listens in a running domain's guest; none: it was started without a port for one.
pub fn agent(domain: &str) -> Option<bool> {
    let (_, target) = channel(domain, AGENT_PORT)?.split_once("<target")?;
    Some(attribute(target.split('>').next()?, "state") == Some("connected"))
}

/// The outermost elements of this name, as they are written.
pub(super) fn elements<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name} "), format!("</{name}>"));
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find(&open) {
        let Some(length) = rest[begin..].find(&close) else { break };
        let end = begin + length + close.len();
        found.push(&rest[begin..end]);
        rest = &rest[end..];
    }
    found
}

fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    ['"', '\''].iter().find_map(|quote| {
        let (_, rest) = tag.split_once(&format!(" {name}={quote}"))?;
        rest.split(*quote).next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_read_back() {
        for (text, epoch, rescued) in [
            (
                r#"<amphi:body xmlns:amphi="urn:amphi:body:1" epoch="7" spec="0"><amphi:name>epoch="9"</amphi:name></amphi:body>"#,
                7,
                false,
            ),
            ("<amphi:body epoch='12' rescued='yes'/>", 12, true),
            (r#"<amphi:body><amphi:name> epoch="9"</amphi:name></amphi:body>"#, 0, false),
            (r#"<amphi:body epoch="-1"/>"#, 0, false),
            ("", 0, false),
        ] {
            let traits = Traits::read(text);
            assert_eq!((traits.epoch, traits.rescued), (epoch, rescued), "{text}");
        }
    }

    #[test]
    fn where_a_running_domain_is_looked_into() {
        let text = "<domain><devices><serial type='pty'>\n <source path='/dev/pts/7'/>\n <log file='/x'/></serial>\
            <console type='pty' tty='/dev/pts/7'/><graphics type='vnc' socket='/v/vnc.sock'>\n\
            <listen type='socket' socket='/v/vnc.sock'/></graphics></devices></domain>";
        assert_eq!((serial_pty(text), screen_socket(text)), (Some("/dev/pts/7"), Some("/v/vnc.sock")));
        let stopped = "<serial type='pty'><log file='/x'/></serial><graphics type='vnc'><listen type='socket'/></graphics>";
        assert_eq!((serial_pty(stopped), screen_socket(stopped)), (None, None));
    }

    #[test]
    fn a_guest_s_socket_is_found_where_it_runs() {
        let other = "<channel type='unix'><source mode='bind' path='/q/agent'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";
        let ours = "<channel type='unix'>\n<source mode='bind' path='/q/guest'/>\n<target type='virtio' name='org.amphi.guest.0' state='connected'/></channel>";
        let stopped = "<channel type='unix'><target type='virtio' name='org.amphi.guest.0'/></channel>";
        for (text, path) in [
            (format!("{other}{ours}"), Some("/q/guest")),
            (other.to_owned(), None),
            (stopped.to_owned(), None),
        ] {
            assert_eq!(Traits::read(&text).guest.as_deref(), path.map(std::path::Path::new), "{text}");
        }
    }

    #[test]
    fn an_agent_listens_where_its_port_is_open() {
        let with = |state: &str| {
            format!(
                "<channel type='unix'>\n<source mode='bind' path='/q/a'/>\n<target type='virtio' name='org.qemu.guest_agent.0'{state}/>\n</channel>"
            )
        };
        let ours = "<channel type='unix'><target type='virtio' name='org.amphi.guest.0' state='connected'/></channel>";
        for (text, wanted) in [
            (with(" state='connected'"), Some(true)),
            (ours.to_owned() + &with(" state='disconnected'"), Some(false)),
            (with(""), Some(false)),
            (ours.to_owned(), None),
        ] {
            assert_eq!(agent(&text), wanted, "{text}");
            assert_eq!(Traits::read(&text).agent, wanted == Some(true));
        }
    }

    #[test]
    fn devices_of_ours_are_known_by_their_alias() {
        let (volume, port) = (VolumeId::new(), PortId::new());
        let disk = format!(
            "<disk type='block' device='disk'>\n<source dev='/dev/loop1' index='2'/><backingStore/><target dev='vdb' bus='virtio'/><alias name='ua-vol-{volume}'/></disk>"
        );
        let interface = format!(
            "<interface type='bridge'><mac address='fa:16:3e:00:00:01'/><target dev='va0'/><alias name='ua-port-{port}'/></interface>"
        );
        let text = format!(
            "<domain><devices>{disk}<disk type='file'><alias name='virtio-disk3'/></disk>{interface}<interface type='user'/></devices></domain>"
        );
        let traits = Traits::read(&text);
        assert_eq!((traits.volumes(), traits.ports()), (vec![volume], vec![port]));
        assert_eq!(traits.target(Plug::Volume(volume)), Some("vdb"));
        let xml: Vec<&str> = traits.devices.iter().map(|device| device.xml.as_str()).collect();
        assert_eq!(xml, [disk, interface]);
        assert_eq!(plug_of("ua-root"), Some(Plug::Root));
        assert_eq!((plug_of("ua-config"), plug_of("ua-vol-x")), (None, None));
    }
}
