//! YAML as the JSON that it says. Refuses what JSON has no word for: tags, aliases that are not resolved, keys that are no
//! text.

use serde_json::{Map, Number, Value};
use yaml_rust2::{Yaml, YamlLoader};

/// Deepest nesting; a file of a person has less than ten.
const DEPTH_MAX: usize = 64;

pub fn read(source: &str) -> Result<Value, String> {
    let documents = YamlLoader::load_from_str(source).map_err(|error| format!("no YAML: {error}"))?;
    match documents.as_slice() {
        [one] => value(one, 0),
        all => Err(format!("one document is expected, there are {}", all.len())),
    }
}

fn value(yaml: &Yaml, depth: usize) -> Result<Value, String> {
    if depth > DEPTH_MAX {
        return Err("nested too deep".to_owned());
    }
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(yes) => Value::Bool(*yes),
        Yaml::Integer(number) => Value::from(*number),
        Yaml::Real(text) => {
            let number = text.parse().ok().and_then(Number::from_f64);
            Value::Number(number.ok_or_else(|| format!("'{text}' is no number"))?)
        }
        Yaml::String(text) => Value::String(text.clone()),
        Yaml::Array(all) => {
            Value::Array(all.iter().map(|one| value(one, depth + 1)).collect::<Result<_, _>>()?)
        }
        Yaml::Hash(all) => {
            let mut map = Map::new();
            for (key, one) in all {
                let key = key.as_str().ok_or_else(|| format!("the key {key:?} is no text; quote it"))?;
                map.insert(key.to_owned(), value(one, depth + 1)?);
            }
            Value::Object(map)
        }
        Yaml::Alias(_) | Yaml::BadValue => return Err("there is something that JSON cannot say".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn says_what_it_says() {
        let source =
            "members:\n  - {index: 1, name: web, image: shop, env: {A: \"1\"}}\nvolume_mount: /data\n";
        let wanted = json!({"members": [{"index": 1, "name": "web", "image": "shop", "env": {"A": "1"}}], "volume_mount": "/data"});
        assert_eq!(read(source).unwrap(), wanted);
        for bad in ["a: [", "1: 2", "", "a: 1\n---\nb: 1\n"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
