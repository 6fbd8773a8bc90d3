//! Owns who a member's processes run as: a name or number of its description, looked up in the member's own files, as
//! Docker does. Pure.

/// Who something runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    pub uid: u32,
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    pub home: String,
}

/// `text`: `app`, `1000`, `app:staff`, `1000:1000`; empty: root. `passwd` and `group` are the files' texts. A number needs
/// no entry, a name does.
pub fn who(text: &str, passwd: &str, group: &str) -> Result<Who, String> {
    let (user, wanted_group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let lines = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 6);
    let entry = lines().find(|fields| {
        fields[0] == user || (number.is_some() && fields[2].parse() == Ok(number.unwrap_or(0)))
    });
    let (uid, gid, home, name) = match (&entry, number) {
        (Some(fields), _) => {
            let id = |at: usize| {
                fields[at].parse::<u32>().map_err(|_| format!("the entry of user '{user}' has no ids"))
            };
            (id(2)?, id(3)?, fields[5].to_owned(), fields[0].to_owned())
        }
        (None, Some(uid)) => (uid, 0, String::new(), String::new()),
        (None, None) => return Err(format!("the image has no user '{user}'")),
    };
    let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 4);
    let home = if home.is_empty() { "/".to_owned() } else { home };
    if let Some(wanted) = wanted_group.filter(|group| !group.is_empty()) {
        let named = groups().find(|fields| fields[0] == wanted).and_then(|fields| fields[2].parse().ok());
        let gid = named
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| format!("the image has no group '{wanted}'"))?;
        return Ok(Who { uid, gid, groups: Vec::new(), home });
    }
    let in_it = |fields: &Vec<&str>| !name.is_empty() && fields[3].split(',').any(|member| member == name);
    let groups = groups().filter(in_it).filter_map(|fields| fields[2].parse().ok()).collect();
    Ok(Who { uid, gid, groups, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_looked_up_as_docker_does() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\nbroken\nodd:x:a:b::/:/\n";
        let group = "root:x:0:\nstaff:x:50:app,other\napp:x:1001:\nwheel:x:10:other,app\n";
        let is = |text: &str, uid, gid, groups: &[u32], home: &str| {
            let expected = Who { uid, gid, groups: groups.to_vec(), home: home.to_owned() };
            assert_eq!(who(text, passwd, group), Ok(expected), "{text:?}");
        };
        is("", 0, 0, &[], "/root");
        is("app", 1000, 1001, &[50, 10], "/home/app");
        is("1000", 1000, 1001, &[50, 10], "/home/app");
        is("app:staff", 1000, 50, &[], "/home/app");
        is("4711", 4711, 0, &[], "/");
        is("4711:12", 4711, 12, &[], "/");
        is(":50", 0, 50, &[], "/root");
        for (text, says) in
            [("nobody", "no user 'nobody'"), ("app:none", "no group 'none'"), ("odd", "no ids")]
        {
            assert!(who(text, passwd, group).unwrap_err().contains(says), "{text}");
        }
        assert_eq!(who("0", "", "").unwrap().uid, 0);
    }
}
