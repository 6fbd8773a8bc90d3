//! Paging and sorting: which slice of a list is meant, and the link to the next one.

use super::answers::Refusal;
use super::query::Query;
use std::cmp::Ordering;

/// `limit` and `marker` of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// None: everything up to the service's own bound.
    pub limit: Option<usize>,
    /// The id of the last thing that the client has seen.
    pub marker: Option<String>,
}

/// A slice, and whether there is more behind it.
#[derive(Debug, PartialEq)]
pub struct Slice<T> {
    pub items: Vec<T>,
    pub more: bool,
}

impl Page {
    /// `most`: the largest slice that the service hands out, whatever is asked for.
    pub fn of(query: &Query, most: usize) -> Result<Self, Refusal> {
        let limit = query.number("limit")?.map(|n| usize::try_from(n).unwrap_or(usize::MAX).min(most));
        let marker = query.one("marker").filter(|m| !m.is_empty()).map(str::to_owned);
        Ok(Self { limit, marker })
    }

    /// Cuts the slice out of a sorted list. A marker that is not in it: 400, as all services have it.
    pub fn cut<T>(
        &self,
        items: Vec<T>,
        most: usize,
        id_of: impl Fn(&T) -> String,
    ) -> Result<Slice<T>, Refusal> {
        let from = match &self.marker {
            None => 0,
            Some(marker) => {
                let at = items.iter().position(|item| id_of(item) == *marker);
                at.ok_or_else(|| Refusal::bad(format!("marker [{marker}] not found")))? + 1
            }
        };
        let limit = self.limit.unwrap_or(most).min(most);
        let more = items.len() > from.saturating_add(limit);
        Ok(Slice { items: items.into_iter().skip(from).take(limit).collect(), more })
    }
}

/// Sort orders of a request, first one first. `pairs`: neutron's and keystone's `sort_key`/`sort_dir` are repeated in
/// parallel, as nova's; cinder and glance also take `sort=key:dir,key:dir`.
pub fn sort_keys(query: &Query) -> Result<Vec<(String, Direction)>, Refusal> {
    if let Some(sort) = query.one("sort") {
        let pairs = sort.split(',').filter(|part| !part.is_empty()).map(|part| {
            let (key, direction) = part.split_once(':').unwrap_or((part, "desc"));
            Ok((key.trim().to_owned(), Direction::parse(direction)?))
        });
        return pairs.collect();
    }
    let mut directions = query.all("sort_dir");
    let mut last = None;
    query
        .all("sort_key")
        .map(|key| {
            if let Some(text) = directions.next() {
                last = Some(Direction::parse(text)?);
            }
            Ok((key.to_owned(), last.unwrap_or(Direction::Ascending)))
        })
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Ascending,
    Descending,
}

impl Direction {
    fn parse(text: &str) -> Result<Self, Refusal> {
        match text.trim().to_ascii_lowercase().as_str() {
            "asc" => Ok(Self::Ascending),
            "desc" => Ok(Self::Descending),
            _ => Err(Refusal::field("sort_dir", format!("'{text}' is neither asc nor desc"))),
        }
    }

    pub fn apply(self, order: Ordering) -> Ordering {
        match self {
            Self::Ascending => order,
            Self::Descending => order.reverse(),
        }
    }
}

/// The URL of the next slice: the request's own, with the marker moved on.
pub fn next_url(base: &str, path: &str, query: &Query, marker: &str) -> String {
    let mut out = form_urlencoded::Serializer::new(String::new());
    query.0.iter().filter(|(name, _)| name != "marker").for_each(|(name, value)| {
        out.append_pair(name, value);
    });
    out.append_pair("marker", marker);
    format!("{base}{path}?{}", out.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices() {
        let letters = || ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let cut =
            |query: &str, most| Page::of(&Query::parse(query), most)?.cut(letters(), most, Clone::clone);
        let slice =
            |items: &[&str], more| Slice { items: items.iter().map(|s| (*s).to_owned()).collect(), more };
        assert_eq!(cut("", 10), Ok(slice(&["a", "b", "c", "d"], false)));
        assert_eq!(cut("", 3), Ok(slice(&["a", "b", "c"], true)));
        assert_eq!(cut("limit=2", 10), Ok(slice(&["a", "b"], true)));
        assert_eq!(cut("limit=2&marker=b", 10), Ok(slice(&["c", "d"], false)));
        assert_eq!(cut("limit=2&marker=d", 10), Ok(slice(&[], false)));
        assert_eq!(cut("limit=0", 10), Ok(slice(&[], true)));
        assert_eq!(cut("marker=x", 10).unwrap_err().status, 400);
        assert_eq!(cut("limit=-1", 10).unwrap_err().status, 400);
    }

    #[test]
    fn orders_and_links() {
        use Direction::*;
        let keys = |text: &str| sort_keys(&Query::parse(text));
        assert_eq!(
            keys("sort_key=name&sort_dir=desc&sort_key=id").unwrap(),
            [("name".into(), Descending), ("id".into(), Descending)]
        );
        assert_eq!(
            keys("sort=name:asc,size").unwrap(),
            [("name".into(), Ascending), ("size".into(), Descending)]
        );
        assert!(keys("sort_key=a&sort_dir=up").is_err());
        let query = Query::parse("limit=2&marker=old&name=a b");
        assert_eq!(
            next_url("http://c", "/compute/v2.1/servers", &query, "new"),
            "http://c/compute/v2.1/servers?limit=2&name=a+b&marker=new"
        );
    }
}
