//! The XML that S3 speaks, as far as it is needed. Refuses documents with types of their own: nothing in them is expanded.

use jiff::Timestamp;
use roxmltree::{Document, Node};
use std::time::SystemTime;

/// A page of a list.
#[derive(Debug, PartialEq)]
pub(super) struct Page {
    /// Keys, and when each was made.
    pub objects: Vec<(String, SystemTime)>,
    /// What to ask for the next one with.
    pub next: Option<String>,
}

type Read<T> = Result<T, String>;

fn parse(text: &str) -> Read<Document<'_>> {
    Document::parse(text).map_err(|e| format!("no XML: {e}"))
}

/// Only names count: some stores leave the namespace out.
fn child<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.children()
        .find(|child| child.tag_name().name() == name)
        .map(|child| child.text().unwrap_or_default())
}

fn needed<'a>(node: Node<'a, '_>, name: &str) -> Read<&'a str> {
    child(node, name).ok_or_else(|| format!("a {} without {name}", node.tag_name().name()))
}

fn time(text: &str) -> Read<SystemTime> {
    let time: Timestamp = text.parse().map_err(|_| "a time that is none".to_owned())?;
    Ok(time.into())
}

fn root<'a>(document: &'a Document<'_>, name: &str) -> Read<Node<'a, 'a>> {
    let root = document.root_element();
    match root.tag_name().name() {
        found if found == name => Ok(root),
        "Error" => Err(child(root, "Code").unwrap_or("an error without a code").to_owned()),
        found => Err(format!("a {found}, not a {name}")),
    }
}

pub(super) fn page(text: &str) -> Read<Page> {
    let document = parse(text)?;
    let root = root(&document, "ListBucketResult")?;
    let objects = root.children().filter(|node| node.tag_name().name() == "Contents");
    let objects =
        objects.map(|node| Ok((needed(node, "Key")?.to_owned(), time(needed(node, "LastModified")?)?)));
    let next = child(root, "NextContinuationToken").filter(|_| child(root, "IsTruncated") == Some("true"));
    Ok(Page { objects: objects.collect::<Read<_>>()?, next: next.map(str::to_owned) })
}

/// Uploads in parts that are not ended: key, id, and when each began.
pub(super) fn uploads(text: &str) -> Read<Vec<(String, String, SystemTime)>> {
    let document = parse(text)?;
    let root = root(&document, "ListMultipartUploadsResult")?;
    let uploads = root.children().filter(|node| node.tag_name().name() == "Upload");
    let uploads = uploads.map(|node| {
        let (key, id) = (needed(node, "Key")?, needed(node, "UploadId")?);
        Ok((key.to_owned(), id.to_owned(), time(needed(node, "Initiated")?)?))
    });
    uploads.collect()
}

pub(super) fn upload_id(text: &str) -> Read<String> {
    let document = parse(text)?;
    needed(root(&document, "InitiateMultipartUploadResult")?, "UploadId").map(str::to_owned)
}

/// Whether the parts were put together.
pub(super) fn joined(text: &str) -> Read<()> {
    root(&parse(text)?, "CompleteMultipartUploadResult").map(drop)
}

/// What an error is called.
pub(super) fn code(text: &str) -> Option<String> {
    let document = parse(text).ok()?;
    child(document.root_element(), "Code").map(str::to_owned)
}

/// The parts in order, by their ETags.
pub(super) fn join(etags: &[String]) -> String {
    let parts = etags.iter().enumerate().map(|(n, etag)| {
        let etag = etag.replace('&', "&amp;").replace('<', "&lt;");
        format!("<Part><PartNumber>{}</PartNumber><ETag>{etag}</ETag></Part>", n + 1)
    });
    format!("<CompleteMultipartUpload>{}</CompleteMultipartUpload>", parts.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_as_stores_write_them() {
        let page = page(
            "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name>\
             <IsTruncated>true</IsTruncated><NextContinuationToken>a/+=</NextContinuationToken><Contents><Key>07/x</Key>\
             <LastModified>2026-01-02T03:04:05.000Z</LastModified><Size>5</Size></Contents></ListBucketResult>",
        );
        let page = page.unwrap();
        assert_eq!((page.objects[0].0.as_str(), page.next.as_deref()), ("07/x", Some("a/+=")));
        let last = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
        assert_eq!(super::page(last), Ok(Page { objects: vec![], next: None }));
        let slow = "<Error><Code>SlowDown</Code><Message>m</Message></Error>";
        assert_eq!(code(slow).as_deref(), Some("SlowDown"));
        // Said with 200, after the parts could not be put together.
        assert_eq!(joined(slow), Err("SlowDown".into()));
        assert_eq!(joined("<CompleteMultipartUploadResult/>"), Ok(()));
        assert_eq!(
            upload_id(
                "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
            ),
            Ok("u".into())
        );
        assert!(upload_id("<html>sign in</html>").is_err());
        assert!(
            super::page("<!DOCTYPE a [<!ENTITY b \"c\">]><ListBucketResult>&b;</ListBucketResult>").is_err()
        );
        assert_eq!(
            join(&["\"a\"".into()]),
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>\"a\"</ETag></Part></CompleteMultipartUpload>"
        );
    }
}
