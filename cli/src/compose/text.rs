//! The file's text as a tree: YAML read, merge keys resolved, variables filled in.

use yaml_rust2::YamlLoader;
use yaml_rust2::yaml::Hash;

pub use yaml_rust2::Yaml as Tree;

/// Deepest nesting; a file of a person has less than ten.
const DEPTH_MAX: usize = 64;

pub fn read(source: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Tree, String> {
    let mut documents = YamlLoader::load_from_str(source).map_err(|error| format!("no YAML: {error}"))?;
    if documents.len() != 1 {
        return Err(format!("one document is expected, there are {}", documents.len()));
    }
    let tree = tidy(documents.remove(0), variable, 0)?;
    match tree["services"] {
        Tree::Hash(_) => Ok(tree),
        _ => Err("no Compose file: it has no 'services'".to_owned()),
    }
}

fn tidy(tree: Tree, variable: &dyn Fn(&str) -> Option<String>, depth: usize) -> Result<Tree, String> {
    if depth > DEPTH_MAX {
        return Err("nested too deep".to_owned());
    }
    Ok(match tree {
        Tree::Hash(map) => {
            let mut out = Hash::new();
            let mut merged = Vec::new();
            for (key, value) in map {
                let value = tidy(value, variable, depth + 1)?;
                match key.as_str() {
                    Some("<<") => merged.extend(match value {
                        Tree::Array(all) => all,
                        one => vec![one],
                    }),
                    _ => {
                        out.insert(key, value);
                    }
                }
            }
            // What stands there itself counts, then what comes first (the merge key's rule of YAML 1.1).
            for other in merged {
                for (key, value) in other.into_hash().ok_or("'<<' takes maps")? {
                    out.entry(key).or_insert(value);
                }
            }
            Tree::Hash(out)
        }
        Tree::Array(all) => {
            let all: Result<Vec<Tree>, String> =
                all.into_iter().map(|one| tidy(one, variable, depth + 1)).collect();
            Tree::Array(all?)
        }
        Tree::String(text) => Tree::String(fill(&text, variable)?),
        plain => plain,
    })
}

/// `$NAME`, `${NAME}`, `${NAME:-word}`, `${NAME-word}`, `${NAME:?word}`, and `$$` for a dollar.
fn fill(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let name =
            |text: &str| text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(braced) = rest.strip_prefix('{') {
            let end = braced.find('}').ok_or_else(|| format!("'${{' without '}}' in '{text}'"))?;
            let (inside, after) = (&braced[..end], &braced[end + 1..]);
            let (key, how) = inside.split_at(name(inside));
            let found = variable(key);
            let full = found.clone().filter(|value| !value.is_empty());
            out.push_str(&match how {
                "" => found.ok_or_else(|| format!("the variable {key} is not set"))?,
                _ if how.starts_with(":-") => full.unwrap_or_else(|| how[2..].to_owned()),
                _ if how.starts_with('-') => found.unwrap_or_else(|| how[1..].to_owned()),
                _ if how.starts_with(":?") => full.ok_or_else(|| format!("{key}: {}", &how[2..]))?,
                _ if how.starts_with('?') => found.ok_or_else(|| format!("{key}: {}", &how[1..]))?,
                _ => return Err(format!("'${{{inside}}}' is not understood")),
            });
            rest = after;
        } else {
            let (key, after) = rest.split_at(name(rest));
            if key.is_empty() {
                return Err(format!("a single '$' in '{text}': write '$$'"));
            }
            out.push_str(&variable(key).ok_or_else(|| format!("the variable {key} is not set"))?);
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// A map's entries, in order; of anything else none.
pub fn entries(tree: &Tree) -> Vec<(String, &Tree)> {
    let Some(map) = tree.as_hash() else { return Vec::new() };
    map.iter().filter_map(|(key, value)| Some((str_of(key)?, value))).collect()
}

/// Text of any scalar but null.
pub fn str_of(tree: &Tree) -> Option<String> {
    match tree {
        Tree::String(text) | Tree::Real(text) => Some(text.clone()),
        Tree::Integer(number) => Some(number.to_string()),
        Tree::Boolean(value) => Some(value.to_string()),
        _ => None,
    }
}

/// One text or a list of them.
pub fn list(tree: &Tree) -> Vec<String> {
    match tree {
        Tree::Array(all) => all.iter().filter_map(str_of).collect(),
        one => str_of(one).into_iter().collect(),
    }
}

/// A list `KEY=VALUE` or a map; a value may be missing.
pub fn pairs(tree: &Tree) -> Vec<(String, Option<String>)> {
    match tree {
        Tree::Array(all) => all
            .iter()
            .filter_map(str_of)
            .map(|one| match one.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (one, None),
            })
            .collect(),
        map => entries(map).into_iter().map(|(key, value)| (key, str_of(value))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables() {
        let variable = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("plain", Ok("plain")),
            ("$A-${A}", Ok("1-1")),
            ("$$A", Ok("$A")),
            ("${B:-x y}", Ok("x y")),
            ("${EMPTY:-x}", Ok("x")),
            ("${EMPTY-x}", Ok("")),
            ("${B}", Err("the variable B is not set")),
            ("${B:?needed}", Err("B: needed")),
            ("${A", Err("'${' without '}' in '${A'")),
            ("$ 5", Err("a single '$' in '$ 5': write '$$'")),
        ] {
            let got = fill(text, &variable);
            assert_eq!(got.as_deref().map_err(String::as_str), expected, "{text}");
        }
    }

    #[test]
    fn merge_keys_and_shapes() {
        let source = "x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nservices:\n  s:\n    <<: [*x, *y]\n    a: 9\n";
        let tree = read(source, &|_| None).unwrap();
        let service = &tree["services"]["s"];
        let got: Vec<_> = ["a", "b", "c"].iter().map(|key| service[*key].as_i64().unwrap()).collect();
        assert_eq!(got, [9, 2, 4]);
        for (bad, why) in
            [("a: [", "no YAML"), ("a: 1", "no 'services'"), ("---\na: 1\n---\nb: 2", "there are 2")]
        {
            assert!(read(bad, &|_| None).unwrap_err().contains(why), "{bad}");
        }
    }
}
