//! Objects are objects. serde reads a struct from a list of its fields' values too (`[null, 3600]`), which no description
//! of this face allows; here such a list is refused at its place. Refuses to look at anything else: whether a value is
//! one of the type is the first reading's affair.

use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer, Visitor};
use serde_json::{Error, Value};

/// A value that has been read as `T` once; the error, if it comes, names the place and says what should be there.
pub fn check<T: DeserializeOwned>(value: Value) -> Result<(), serde_path_to_error::Error<Error>> {
    serde_path_to_error::deserialize::<_, T>(Shape(value)).map(drop)
}

struct Shape(Value);

impl IntoDeserializer<'_, Error> for Shape {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

fn entries(map: serde_json::Map<String, Value>) -> impl Iterator<Item = (String, Shape)> {
    map.into_iter().map(|(key, value)| (key, Shape(value)))
}

impl<'de> Deserializer<'de> for Shape {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Shape))),
            Value::Object(map) => visitor.visit_map(MapDeserializer::new(entries(map))),
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.0.is_array() {
            return Err(Error::custom("invalid type: sequence, expected an object"));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(map) => {
                let one = MapAccessDeserializer::new(MapDeserializer::new(entries(map)));
                one.deserialize_enum(name, variants, visitor)
            }
            plain => plain.deserialize_enum(name, variants, visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::instance::InstanceCreate;
    use serde_json::json;

    #[test]
    fn lists_are_no_objects() {
        let good = json!({
            "name": "a", "vcpus": 1, "memory_mib": 64, "failover": "same_kind", "volume": null, "user_data": "x",
            "bodies": [
                { "set": { "anchor": { "sysctls": { "net.core.somaxconn": "9" } }, "members": [
                    { "index": 1, "image": "i", "options": { "cpu": 50 }, "command": ["x"] }] } },
                { "vm": { "image": "i", "root_gib": 3 } }],
            "networks": [{ "network": "n", "address": "10.0.0.7" }],
        });
        check::<InstanceCreate>(good.clone()).unwrap();
        for (place, wrong, path) in [
            ("", json!(["a", 1, 64, []]), "."),
            ("/bodies/0/set/anchor", json!([]), "bodies[0].set.anchor"),
            ("/bodies/0/set/members/0", json!(["a", 1, "i"]), "bodies[0].set.members[0]"),
            ("/bodies/0/set/members/0/options", json!([]), "bodies[0].set.members[0].options"),
            ("/bodies/1/vm", json!(["i"]), "bodies[1].vm"),
            ("/networks/0", json!(["n"]), "networks[0]"),
            ("/volume", json!([1]), "volume"),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(place).unwrap() = wrong;
            serde_json::from_value::<InstanceCreate>(bad.clone()).expect("serde takes it");
            let error = check::<InstanceCreate>(bad).expect_err(place);
            assert_eq!(error.path().to_string(), path);
        }
    }
}
