//! Pages of names in lexical order: `n` and `last`, and where the next one is.

use super::errors::{Code, Failure};
use axum::http::{HeaderName, header};

/// Most names of one page, asked for or not.
const PAGE_MAX: usize = 1000;

/// Names, and the header that tells of the next page, if there is one.
type Page = (Vec<String>, Option<(HeaderName, String)>);

/// The names of the page that is asked for, and the header that tells of the next. `path`: of the list.
pub fn cut(names: Vec<String>, query: &[(String, String)], path: &str) -> Result<Page, Failure> {
    let asked = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let number = |text: &str| {
        text.parse::<usize>().map_err(|_| Failure::new(Code::PageInvalid, "n is to be a number of entries"))
    };
    let most = asked("n").map(number).transpose()?.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    let last = asked("last").unwrap_or_default();
    let mut rest: Vec<String> = names.into_iter().filter(|name| name.as_str() > last).collect();
    let more = rest.len() > most;
    rest.truncate(most);
    let next = rest.last().filter(|_| more).map(|last| {
        let last: String = form_urlencoded::byte_serialize(last.as_bytes()).collect();
        (header::LINK, format!("<{path}?n={most}&last={last}>; rel=\"next\""))
    });
    Ok((rest, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        let names = || ["a", "b", "c"].map(str::to_owned).to_vec();
        for (query, want, link) in [
            ("", "abc", None),
            ("n=3", "abc", None),
            ("n=2", "ab", Some("</l?n=2&last=b>; rel=\"next\"")),
            ("n=2&last=b", "c", None),
            ("n=1&last=a", "b", Some("</l?n=1&last=b>; rel=\"next\"")),
            ("n=0", "", None),
            ("last=z", "", None),
            ("n=9999999", "abc", None),
        ] {
            let (page, next) = cut(names(), &super::super::pairs(query), "/l").unwrap();
            assert_eq!((page.concat().as_str(), next.map(|n| n.1).as_deref()), (want, link), "{query}");
        }
        for bad in ["n=-1", "n=x", "n="] {
            assert!(cut(names(), &super::super::pairs(bad), "/l").is_err(), "{bad}");
        }
    }
}
