//! From what a person types to the thing meant: an id, else a name that only one thing has.

use super::{Client, ClientError};
use crate::group::Group;
use crate::host::Host;
use crate::image::Image;
use crate::instance::Instance;
use crate::network::{Network, SecurityGroup};
use crate::repository::Repository;
use crate::volume::{Snapshot, Volume};

/// A thing of a list, as people call it.
pub trait Named {
    /// For messages: `instance`.
    const NOUN: &'static str;
    fn id(&self) -> String;
    fn name(&self) -> &str;
}

macro_rules! named {
    ($($type:ty: $noun:literal),* $(,)?) => {$(
        impl Named for $type {
            const NOUN: &'static str = $noun;
            fn id(&self) -> String {
                self.id.to_string()
            }
            fn name(&self) -> &str {
                &self.name
            }
        }
    )*};
}

named! {
    Host: "host", Network: "network", SecurityGroup: "security group", Image: "image",
    Instance: "instance", Volume: "volume", Snapshot: "snapshot", Group: "group", Repository: "repository",
}

/// The one thing that `text` means: the one with this id (also in other letter case), else the only one of this name.
pub fn pick<T: Named>(things: Vec<T>, text: &str) -> Result<T, ClientError> {
    if let Some(at) = things.iter().position(|t| t.id().eq_ignore_ascii_case(text)) {
        return things.into_iter().nth(at).ok_or_else(|| no_such::<T>(text));
    }
    let mut matching: Vec<T> = things.into_iter().filter(|t| t.name() == text).collect();
    match matching.len() {
        0 => Err(no_such::<T>(text)),
        1 => Ok(matching.remove(0)),
        _ => Err(ClientError::Ambiguous {
            noun: T::NOUN,
            name: text.to_owned(),
            ids: matching.iter().map(Named::id).collect(),
        }),
    }
}

fn no_such<T: Named>(text: &str) -> ClientError {
    ClientError::NoSuch { noun: T::NOUN, name: text.to_owned() }
}

macro_rules! find {
    ($($(#[$doc:meta])* $method:ident, $list:ident, $type:ty);* $(;)?) => {
        impl Client {$(
            $(#[$doc])*
            pub async fn $method(&self, text: &str) -> Result<$type, ClientError> {
                pick(self.$list().await?, text)
            }
        )*}
    };
}

find! {
    /// A host by id or name.
    find_host, hosts, Host;
    /// A network by id or name.
    find_network, networks, Network;
    /// A security group by id or name.
    find_security_group, security_groups, SecurityGroup;
    /// An image by id or name.
    find_image, images, Image;
    /// A repository by id or name.
    find_repository, repositories, Repository;
    /// A scaling group by id or name.
    find_group, groups, Group;
    /// An instance by id or name.
    find_instance, instances, Instance;
    /// A volume by id or name; volumes in the recycle bin are not looked at.
    find_volume, volumes, Volume;
    /// A volume of the recycle bin by id or name.
    find_trashed, recycle_bin, Volume;
    /// A snapshot by id or name.
    find_snapshot, snapshots, Snapshot;
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing(&'static str, &'static str);
    impl Named for Thing {
        const NOUN: &'static str = "thing";
        fn id(&self) -> String {
            self.0.to_owned()
        }
        fn name(&self) -> &str {
            self.1
        }
    }

    #[test]
    fn an_id_wins_a_name_must_be_unique() {
        let things = || vec![Thing("aa", "web"), Thing("bb", "db"), Thing("cc", "web"), Thing("dd", "aa")];
        let got = |text: &str| pick(things(), text).map(|t| t.0).map_err(|e| e.to_string());
        assert_eq!(got("db"), Ok("bb"));
        assert_eq!(got("aa"), Ok("aa"));
        assert_eq!(got("CC"), Ok("cc"));
        assert_eq!(got("x"), Err("no thing 'x'".to_owned()));
        assert_eq!(got("web"), Err("2 things are named 'web'; use an id: aa, cc".to_owned()));
    }
}
