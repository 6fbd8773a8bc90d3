//! The wire's values (RFC 7047, 5.1): atoms, sets and maps, and their JSON notation.
//!
//! A set of one element and the bare element are the same value on the wire; decoding and the
//! constructors here normalise to the bare element, so that equality means what it should.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};
use uuid::Uuid;

/// One scalar. `NamedUuid` refers to a row inserted by the same transaction.
#[derive(Clone, Debug)]
pub enum Atom {
    Integer(i64),
    Real(f64),
    Boolean(bool),
    String(String),
    Uuid(Uuid),
    NamedUuid(String),
}

impl Atom {
    pub fn named(name: impl Into<String>) -> Atom {
        Atom::NamedUuid(name.into())
    }

    pub fn to_json(&self) -> Json {
        match self {
            Atom::Integer(n) => json!(n),
            Atom::Real(n) => json!(n),
            Atom::Boolean(b) => json!(b),
            Atom::String(s) => json!(s),
            Atom::Uuid(u) => json!(["uuid", u]),
            Atom::NamedUuid(n) => json!(["named-uuid", n]),
        }
    }

    /// None for what is no atom.
    pub fn from_json(json: &Json) -> Option<Atom> {
        match json {
            Json::Number(n) => n.as_i64().map(Atom::Integer).or_else(|| n.as_f64().map(Atom::Real)),
            Json::Bool(b) => Some(Atom::Boolean(*b)),
            Json::String(s) => Some(Atom::String(s.clone())),
            Json::Array(pair) => match pair.as_slice() {
                [Json::String(tag), Json::String(text)] if tag == "uuid" => text.parse().ok().map(Atom::Uuid),
                [Json::String(tag), Json::String(text)] if tag == "named-uuid" => {
                    Some(Atom::NamedUuid(text.clone()))
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Atom::Integer(_) => 0,
            Atom::Real(_) => 1,
            Atom::Boolean(_) => 2,
            Atom::String(_) => 3,
            Atom::Uuid(_) => 4,
            Atom::NamedUuid(_) => 5,
        }
    }
}

impl Ord for Atom {
    fn cmp(&self, other: &Atom) -> Ordering {
        match (self, other) {
            (Atom::Integer(a), Atom::Integer(b)) => a.cmp(b),
            (Atom::Real(a), Atom::Real(b)) => a.total_cmp(b),
            (Atom::Boolean(a), Atom::Boolean(b)) => a.cmp(b),
            (Atom::String(a), Atom::String(b)) => a.cmp(b),
            (Atom::Uuid(a), Atom::Uuid(b)) => a.cmp(b),
            (Atom::NamedUuid(a), Atom::NamedUuid(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Atom {
    fn partial_cmp(&self, other: &Atom) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Atom {
    fn eq(&self, other: &Atom) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Atom {}

macro_rules! atom_from {
    ($($source:ty => $body:expr),* $(,)?) => { $(
        impl From<$source> for Atom {
            fn from(value: $source) -> Atom {
                ($body)(value)
            }
        }
        impl From<$source> for Value {
            fn from(value: $source) -> Value {
                Value::Atom(value.into())
            }
        }
    )* };
}

atom_from! {
    i64 => Atom::Integer,
    i32 => |n: i32| Atom::Integer(n.into()),
    u32 => |n: u32| Atom::Integer(n.into()),
    u16 => |n: u16| Atom::Integer(n.into()),
    f64 => Atom::Real,
    bool => Atom::Boolean,
    String => Atom::String,
    &String => |s: &String| Atom::String(s.clone()),
    &str => |s: &str| Atom::String(s.to_owned()),
    Uuid => Atom::Uuid,
    &Uuid => |u: &Uuid| Atom::Uuid(*u),
}

/// A column's value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    Atom(Atom),
    /// Never of exactly one element; see the module's note.
    Set(BTreeSet<Atom>),
    Map(BTreeMap<Atom, Atom>),
}

impl Value {
    /// The empty set: an optional column without a value.
    pub fn empty() -> Value {
        Value::Set(BTreeSet::new())
    }

    pub fn named(name: impl Into<String>) -> Value {
        Value::Atom(Atom::NamedUuid(name.into()))
    }

    pub fn set<A: Into<Atom>>(atoms: impl IntoIterator<Item = A>) -> Value {
        Value::of_set(atoms.into_iter().map(Into::into).collect())
    }

    pub fn map<K: Into<Atom>, V: Into<Atom>>(pairs: impl IntoIterator<Item = (K, V)>) -> Value {
        Value::Map(pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }

    pub(crate) fn of_set(mut atoms: BTreeSet<Atom>) -> Value {
        if atoms.len() == 1
            && let Some(only) = atoms.pop_first()
        {
            return Value::Atom(only);
        }
        Value::Set(atoms)
    }

    pub fn to_json(&self) -> Json {
        match self {
            Value::Atom(atom) => atom.to_json(),
            Value::Set(atoms) => json!(["set", atoms.iter().map(Atom::to_json).collect::<Vec<_>>()]),
            Value::Map(pairs) => {
                json!([
                    "map",
                    pairs.iter().map(|(k, v)| json!([k.to_json(), v.to_json()])).collect::<Vec<_>>()
                ])
            }
        }
    }

    /// None for what is no value.
    pub fn from_json(json: &Json) -> Option<Value> {
        if let Json::Array(pair) = json {
            match pair.as_slice() {
                [Json::String(tag), Json::Array(items)] if tag == "set" => {
                    return items.iter().map(Atom::from_json).collect::<Option<_>>().map(Value::of_set);
                }
                [Json::String(tag), Json::Array(items)] if tag == "map" => {
                    return items.iter().map(pair_from_json).collect::<Option<_>>().map(Value::Map);
                }
                _ => {}
            }
        }
        Atom::from_json(json).map(Value::Atom)
    }

    /// The elements of a set; a bare atom is a set of one, a map has none.
    pub fn atoms(&self) -> impl Iterator<Item = &Atom> {
        let (one, many) = match self {
            Value::Atom(atom) => (Some(atom), None),
            Value::Set(atoms) => (None, Some(atoms)),
            Value::Map(_) => (None, None),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    pub fn is_empty(&self) -> bool {
        match self {
            Value::Atom(_) => false,
            Value::Set(atoms) => atoms.is_empty(),
            Value::Map(pairs) => pairs.is_empty(),
        }
    }

    /// Applies a `modify` of an update2/update3 notification to a column that holds more than one
    /// value: a set's diff is the symmetric difference; in a map's diff an equal pair means
    /// removal, anything else is the new pair (ovsdb-server(7), 4.1.14 and 4.1.15).
    pub(crate) fn apply_diff(self, diff: Value) -> Value {
        match (self, diff) {
            (Value::Map(mut pairs), Value::Map(changes)) => {
                for (key, value) in changes {
                    if pairs.get(&key) == Some(&value) {
                        pairs.remove(&key);
                    } else {
                        pairs.insert(key, value);
                    }
                }
                Value::Map(pairs)
            }
            // A column at its default was left out of the initial row.
            (_, Value::Map(changes)) => Value::Map(changes),
            (old, diff) => {
                let old: BTreeSet<Atom> = old.atoms().cloned().collect();
                let diff: BTreeSet<Atom> = diff.atoms().cloned().collect();
                Value::of_set(old.symmetric_difference(&diff).cloned().collect())
            }
        }
    }
}

impl From<Atom> for Value {
    fn from(atom: Atom) -> Value {
        Value::Atom(atom)
    }
}

impl From<BTreeMap<String, String>> for Value {
    fn from(pairs: BTreeMap<String, String>) -> Value {
        Value::map(pairs)
    }
}

fn pair_from_json(json: &Json) -> Option<(Atom, Atom)> {
    match json.as_array()?.as_slice() {
        [key, value] => Some((Atom::from_json(key)?, Atom::from_json(value)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "7a1c0f3e-6d2a-4f4e-9d5c-0123456789ab";

    #[test]
    fn values_survive_the_wire() {
        let id: Uuid = ID.parse().unwrap();
        let table = [
            (Value::from(-7i64), json!(-7)),
            (Value::from(0.5), json!(0.5)),
            (Value::from(true), json!(true)),
            (Value::from("a \"quoted\" \\ name"), json!("a \"quoted\" \\ name")),
            (Value::from(id), json!(["uuid", ID])),
            (Value::named("row"), json!(["named-uuid", "row"])),
            (Value::empty(), json!(["set", []])),
            (Value::set(["b", "a"]), json!(["set", ["a", "b"]])),
            (Value::set([id]), json!(["uuid", ID])),
            (Value::map([("k", "v"), ("a", "")]), json!(["map", [["a", ""], ["k", "v"]]])),
            (Value::map([("k", id)]), json!(["map", [["k", ["uuid", ID]]]])),
        ];
        for (value, wire) in table {
            assert_eq!(value.to_json(), wire);
            assert_eq!(Value::from_json(&wire), Some(value), "{wire}");
        }
    }

    #[test]
    fn a_set_of_one_is_its_element() {
        assert_eq!(Value::from_json(&json!(["set", ["x"]])), Some(Value::from("x")));
    }

    #[test]
    fn nonsense_is_refused() {
        for wire in [
            json!(null),
            json!({}),
            json!([]),
            json!(["uuid", "short"]),
            json!(["set", [null]]),
            json!(["map", [["k"]]]),
            json!(["map", [["k", "v", "w"]]]),
        ] {
            assert_eq!(Value::from_json(&wire), None, "{wire}");
        }
    }

    #[test]
    fn diffs_of_sets_and_maps() {
        let table = [
            (Value::set(["a", "b"]), Value::set(["b", "c"]), Value::set(["a", "c"])),
            (Value::from("a"), Value::from("a"), Value::empty()),
            (Value::empty(), Value::from("a"), Value::from("a")),
            (
                Value::map([("keep", "1"), ("drop", "2"), ("change", "3")]),
                Value::map([("drop", "2"), ("change", "4"), ("new", "5")]),
                Value::map([("keep", "1"), ("change", "4"), ("new", "5")]),
            ),
            (Value::empty(), Value::map([("new", "5")]), Value::map([("new", "5")])),
        ];
        for (old, diff, new) in table {
            assert_eq!(old.apply_diff(diff), new);
        }
    }
}
