//! Identifiers of identity's records. Shown as 32 hexadecimal digits without dashes, as OpenStack shows them; both
//! forms are read.

pub use amphi_api::UserId;

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id, ordered by time of creation (UUID version 7).
            #[allow(clippy::new_without_default)]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id that belongs to these words and to no others (UUID version 5).
            pub fn of(words: &str) -> Self {
                Self(Uuid::new_v5(&Uuid::from_u128(0x616d_7068_6900_5000_8000_0000_0000_0002), words.as_bytes()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
    ($(#[$doc:meta])* $name:ident hex) => {
        id!($(#[$doc])* $name);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.simple().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id!(/// A domain: where names of users, groups and projects are unique. The first one is shown as `default`.
    DomainId);
id!(/// A group of users.
    GroupId hex);
id!(/// That a user is in a group: made of both.
    MembershipId hex);
id!(/// A role.
    RoleId hex);
id!(/// That one role implies another: made of both.
    InferenceId hex);
id!(/// Who has which role where: made of all three.
    GrantId hex);
id!(/// An application credential.
    AppCredentialId hex);
id!(/// A service of the catalogue.
    ServiceId hex);
id!(/// An endpoint of a service.
    EndpointId hex);
id!(/// A region: made of its name, which clients see as its id.
    RegionKey hex);
id!(/// A key that tokens are sealed with.
    TokenKeyId hex);
id!(/// Names one token for audits and for its revocation.
    AuditId hex);

impl DomainId {
    /// The domain that exists before anyone has made one.
    pub const DEFAULT: DomainId = DomainId(Uuid::from_u128(0x616d_7068_6900_7000_8000_0000_0000_0003));
    const DEFAULT_WORD: &'static str = "default";
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::DEFAULT { f.write_str(Self::DEFAULT_WORD) } else { self.0.simple().fmt(f) }
    }
}

impl FromStr for DomainId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == Self::DEFAULT_WORD { Ok(Self::DEFAULT) } else { Uuid::parse_str(text).map(Self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_in_both_forms_and_shown_in_one() {
        let group: GroupId = "0198a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b".parse().unwrap();
        assert_eq!(group.to_string(), "0198a1b2c3d47e5f8a9b0c1d2e3f4a5b");
        assert_eq!(group.to_string().parse::<GroupId>().unwrap(), group);
        assert!("admin".parse::<GroupId>().is_err());
        assert_eq!("default".parse::<DomainId>().unwrap(), DomainId::DEFAULT);
        assert_eq!(DomainId::DEFAULT.to_string(), "default");
        assert_eq!(RegionKey::of("RegionOne"), RegionKey::of("RegionOne"));
        assert_ne!(RegionKey::of("RegionOne"), RegionKey::of("RegionTwo"));
    }
}
