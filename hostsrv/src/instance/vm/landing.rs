//! The definition of a guest that comes over: what the old host's engine says of the running one, with the new host's
//! paths and epoch in it. The addresses of its devices have to stay as the guest knows them, so it cannot be rendered anew.
//! Pure; reads libvirt's own writing and ours.

use super::traits::elements;

/// `running`: the guest as libvirt writes it for a migration. `there`: as the new host would make it.
pub fn definition(running: &str, there: &str) -> Result<String, String> {
    let mut text = running.to_owned();
    let note =
        between(there, "<amphi:body", "</amphi:body>").ok_or("the new host's definition says no epoch")?;
    replace(&mut text, "<amphi:body", "</amphi:body>", note).ok_or("the guest's definition says no epoch")?;
    for (open, close) in [("<kernel>", "</kernel>"), ("<initrd>", "</initrd>")] {
        if let Some(path) = between(there, open, close) {
            replace(&mut text, open, close, path);
        }
    }
    if let Some(log) = between(there, "<log ", "/>") {
        replace_all(&mut text, "<log ", "/>", log);
    }
    each(&mut text, "disk", there, |disk, own| {
        for tag in ["driver", "source"] {
            let wanted = element(own, tag).ok_or_else(|| format!("a disk has no {tag}"))?.to_owned();
            let found =
                element(disk, tag).ok_or_else(|| format!("a disk of the guest has no {tag}"))?.to_owned();
            *disk = disk.replacen(&found, &wanted, 1);
        }
        // What lies under a disk is for the new host to find.
        while let Some(found) = element(disk, "backingStore").map(str::to_owned) {
            *disk = disk.replacen(&found, "", 1);
        }
        Ok(())
    })?;
    each(&mut text, "interface", there, |port, own| {
        let wanted = element(own, "source").ok_or("a port has no bridge")?.to_owned();
        let found = element(port, "source").ok_or("a port of the guest has no bridge")?.to_owned();
        *port = port.replacen(&found, &wanted, 1);
        Ok(())
    })?;
    Ok(text)
}

/// Every outermost element of a name with the one of the same alias on the new host.
fn each(
    text: &mut String,
    name: &str,
    there: &str,
    change: impl Fn(&mut String, &str) -> Result<(), String>,
) -> Result<(), String> {
    let theirs = elements(there, name);
    let ours: Vec<String> = elements(text, name).into_iter().map(str::to_owned).collect();
    for old in ours {
        let alias = alias(&old).ok_or_else(|| format!("a {name} of the guest is not ours"))?;
        let own = theirs.iter().find(|own| self::alias(own) == Some(alias));
        let own = own.ok_or_else(|| format!("{alias} is not known on the new host"))?;
        let mut new = old.clone();
        change(&mut new, own)?;
        *text = text.replacen(&old, &new, 1);
    }
    let count = elements(text, name).len();
    if count != theirs.len() {
        return Err(format!("the guest has {count} of {name}, the new host expects {}", theirs.len()));
    }
    Ok(())
}

fn alias(element: &str) -> Option<&str> {
    let (_, rest) = element.split_once("<alias name=")?;
    let quote = rest.chars().next()?;
    rest[1..].split(quote).next()
}

/// The first element of a name: empty (`<x …/>`) or with what is in it, its own like included.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let open = format!("<{name}");
    let begin = text
        .match_indices(&open)
        .map(|(at, _)| at)
        .find(|at| text[at + open.len()..].starts_with([' ', '/', '>', '\n']))?;
    let tag_end = begin + text[begin..].find('>')? + 1;
    if text[begin..tag_end].ends_with("/>") {
        return Some(&text[begin..tag_end]);
    }
    let close = format!("</{name}>");
    let mut end = tag_end;
    let mut depth = 1;
    while depth > 0 {
        let next_close = end + text[end..].find(&close)?;
        let inner = &text[end..next_close];
        // One of its own like inside that is not empty.
        let opened = inner.match_indices(&open).filter(|(at, _)| {
            let tag = &inner[*at..];
            let whole = tag[open.len()..].starts_with([' ', '>']);
            whole && tag.find('>').is_some_and(|close| !tag[..=close].ends_with("/>"))
        });
        depth += opened.count();
        depth -= 1;
        end = next_close + close.len();
    }
    Some(&text[begin..end])
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(open)?;
    rest.split_once(close).map(|(inside, _)| inside)
}

/// What stands between the first pair.
fn replace(text: &mut String, open: &str, close: &str, with: &str) -> Option<()> {
    let begin = text.find(open)? + open.len();
    let end = begin + text[begin..].find(close)?;
    text.replace_range(begin..end, with);
    Some(())
}

fn replace_all(text: &mut String, open: &str, close: &str, with: &str) {
    let mut from = 0;
    while let Some(at) = text[from..].find(open) {
        let begin = from + at + open.len();
        let Some(length) = text[begin..].find(close) else { return };
        text.replace_range(begin..begin + length, with);
        from = begin + with.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: &str = r#"<domain type='qemu' id='3'>
  <metadata>
    <amphi:body xmlns:amphi="urn:amphi:body:1" epoch="3" spec="ff"><amphi:name>web</amphi:name></amphi:body>
  </metadata>
  <os><kernel>/a/images/k</kernel><initrd>/a/images/i</initrd></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='writeback'/>
      <source file='/a/root.qcow2' index='3'>
        <privateData/>
      </source>
      <backingStore type='file' index='4'>
        <format type='qcow2'/>
        <source file='/a/images/base'/>
        <backingStore/>
      </backingStore>
      <target dev='vda' bus='virtio'/>
      <alias name='ua-root'/>
      <address type='pci' slot='0x09'/>
    </disk>
    <interface type='bridge'>
      <source bridge='br-int'/>
      <alias name='ua-port-1'/>
      <address type='pci' slot='0x03'/>
    </interface>
    <serial type='pty'><log file='/a/vm-3/console.log' append='on'/></serial>
    <console type='pty'><log file='/a/vm-3/console.log' append='on'/></console>
  </devices>
</domain>"#;

    const THERE: &str = r#"<domain type="qemu">
  <os><kernel>/b/images/k</kernel><initrd>/b/images/i</initrd></os>
  <devices>
    <disk type="file" device="disk">
      <driver name="qemu" type="qcow2" cache="none"/>
      <source file="/b/root.qcow2"/>
      <alias name="ua-root"/>
    </disk>
    <interface type="bridge">
      <source bridge="br-two"/>
      <alias name="ua-port-1"/>
    </interface>
    <serial type="pty"><log file="/b/vm-4/console.log" append="on"/></serial>
  </devices>
  <metadata>
    <amphi:body xmlns:amphi="urn:amphi:body:1" epoch="4" spec="ee"><amphi:name>web</amphi:name></amphi:body>
  </metadata>
</domain>"#;

    #[test]
    fn paths_and_epoch_are_the_new_hosts_and_addresses_the_guests() {
        let text = definition(RUNNING, THERE).unwrap();
        assert!(
            !text.contains("/a/") && !text.contains("backingStore") && !text.contains("epoch=\"3\""),
            "{text}"
        );
        for kept in ["slot='0x09'", "slot='0x03'", "<target dev='vda' bus='virtio'/>"] {
            assert!(text.contains(kept), "{kept}: {text}");
        }
        for new in ["/b/root.qcow2", "cache=\"none\"", "epoch=\"4\"", "/b/images/i</initrd>", "br-two"] {
            assert!(text.contains(new), "{new}: {text}");
        }
        assert_eq!(text.matches("/b/vm-4/console.log").count(), 2);
    }

    #[test]
    fn devices_that_do_not_match_are_refused() {
        for (running, there) in [
            (RUNNING.replace("ua-root", "ua-vol-1"), THERE.to_owned()),
            (RUNNING.to_owned(), THERE.replace("<interface ", "<interfaces ")),
            (RUNNING.replace("amphi:body", "body"), THERE.to_owned()),
            (RUNNING.to_owned(), THERE.replace("<source file", "<sauce file")),
        ] {
            definition(&running, &there).unwrap_err();
        }
    }
}
