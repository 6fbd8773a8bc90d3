//! One call to the store: signed, bounded, asked again while that may help, and what it answers in words that say what to do.
//! Addresses hold signatures: no error of this module has one.

use super::S3Config;
use super::words;
use crate::images::error::BlobError;
use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{CONTENT_LENGTH, RANGE};
use reqwest::{Response, StatusCode};
use rusty_s3::{Credentials, Method};
use std::time::{Duration, Instant};

pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer may stand still.
pub(super) const STALL: Duration = Duration::from_secs(60);
/// How long an address is good for: clocks may differ by some minutes, as in S3 itself.
const SIGNED: Duration = Duration::from_secs(900);
const TRIES: u32 = 5;
/// Before the second try; twice as long before each that follows.
const PAUSE: Duration = Duration::from_millis(200);
/// Of an answer that is read whole, in bytes: a page of a list has some 400 KiB.
const TEXT_MAX: usize = 8 << 20;

/// What is asked.
pub(super) struct Ask<'a> {
    method: Method,
    key: &'a str,
    query: Vec<(&'a str, String)>,
    body: Bytes,
    /// From this byte on.
    pub range: Option<u64>,
}

impl<'a> Ask<'a> {
    /// Of the bucket, where the key is empty.
    pub fn of(method: Method, key: &'a str) -> Self {
        Self { method, key, query: Vec::new(), body: Bytes::new(), range: None }
    }

    pub fn with(mut self, name: &'a str, value: &str) -> Self {
        self.query.push((name, value.to_owned()));
        self
    }

    pub fn body(self, body: Bytes) -> Self {
        Self { body, ..self }
    }
}

/// Why a call brought nothing.
#[derive(Debug)]
pub(super) enum Wrong {
    /// The object, the upload or (where it is said) the bucket is not there.
    Absent {
        bucket: bool,
    },
    /// A range behind the end.
    Outside,
    /// The store says no, and will again.
    Refused {
        status: StatusCode,
        code: String,
    },
    /// It may answer another time.
    Busy(String),
    Silent(Duration),
    /// What it answers is not what S3 answers.
    Odd(String),
}

pub(super) struct Bucket {
    http: reqwest::Client,
    bucket: rusty_s3::Bucket,
    credentials: Credentials,
    /// For people.
    at: String,
}

impl Bucket {
    pub fn open(config: &S3Config) -> anyhow::Result<Self> {
        let at = format!("{} at {}", config.bucket, config.endpoint);
        Ok(Self { http: config.client()?, bucket: config.bucket()?, credentials: config.credentials()?, at })
    }

    pub fn at(&self) -> &str {
        &self.at
    }

    /// Asks, and again where the store is busy or cannot be reached: all calls are such that twice is no harm.
    pub async fn call(&self, ask: &Ask<'_>, limit: Duration) -> Result<Response, Wrong> {
        let end = Instant::now() + limit;
        let mut pause = PAUSE;
        for tried in 1.. {
            let left = end.saturating_duration_since(Instant::now());
            let wrong = match tokio::time::timeout(left, self.once(ask)).await {
                Err(_) => return Err(Wrong::Silent(limit)),
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(wrong)) => wrong,
            };
            if !matches!(wrong, Wrong::Busy(_)) || tried == TRIES || Instant::now() + pause >= end {
                return Err(wrong);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(Wrong::Silent(limit))
    }

    /// The same, with an answer that is read whole.
    pub async fn text(&self, ask: &Ask<'_>, limit: Duration) -> Result<String, Wrong> {
        let read = async {
            let answer = self.call(ask, limit).await?;
            whole(answer, TEXT_MAX).await
        };
        tokio::time::timeout(limit, read).await.unwrap_or(Err(Wrong::Silent(limit)))
    }

    async fn once(&self, ask: &Ask<'_>) -> Result<Response, Wrong> {
        let mut query: Vec<(&str, &str)> =
            ask.query.iter().map(|(name, value)| (*name, value.as_str())).collect();
        query.sort_unstable();
        let url = rusty_s3::signing::sign(
            &Timestamp::now(),
            ask.method,
            self.bucket.object_url(ask.key),
            self.credentials.key(),
            self.credentials.secret(),
            self.credentials.token(),
            self.bucket.region(),
            SIGNED.as_secs(),
            query.into_iter(),
            std::iter::empty(),
        );
        let mut request = match ask.method {
            Method::Head => self.http.head(url),
            Method::Get => self.http.get(url),
            Method::Put => self.http.put(url).header("content-md5", super::content_md5(&ask.body)),
            Method::Post => self.http.post(url),
            Method::Delete => self.http.delete(url),
        };
        if matches!(ask.method, Method::Put | Method::Post) {
            request = request.header(CONTENT_LENGTH, ask.body.len()).body(ask.body.clone());
        }
        if let Some(from) = ask.range {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let answer = request.send().await.map_err(|e| Wrong::Busy(plain(e)))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        // To HEAD there is no word with it.
        let text = whole(answer, 64 << 10).await.unwrap_or_default();
        Err(of(status, words::code(&text).unwrap_or_default()))
    }

    pub fn away(&self, doing: &'static str, wrong: Wrong) -> BlobError {
        BlobError::Away { doing, at: self.at.clone(), message: said(wrong) }
    }
}

/// What an answer that is no success means.
fn of(status: StatusCode, code: String) -> Wrong {
    match status {
        StatusCode::NOT_FOUND => Wrong::Absent { bucket: code == "NoSuchBucket" },
        StatusCode::RANGE_NOT_SATISFIABLE => Wrong::Outside,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Wrong::Busy(format!("{status} {code}"))
        }
        status if status.is_server_error() => Wrong::Busy(format!("{status} {code}")),
        // The bytes were others when they came.
        _ if code == "BadDigest" || code == "RequestTimeout" => Wrong::Busy(format!("{status} {code}")),
        status => Wrong::Refused { status, code },
    }
}

/// With what to do about it.
fn said(wrong: Wrong) -> String {
    match wrong {
        Wrong::Absent { bucket: true } => {
            "there is no such bucket: make it, or name another in images.s3.bucket".into()
        }
        Wrong::Absent { bucket: false } => "it is not there".into(),
        Wrong::Outside => "it is shorter than was asked for".into(),
        Wrong::Busy(why) => format!("{why}; tried {TRIES} times: try again later"),
        Wrong::Silent(limit) => format!("no answer within {} s: try again later", limit.as_secs()),
        Wrong::Odd(why) => format!("it answers with what S3 does not: {why}"),
        Wrong::Refused { status, code } => {
            let next = match code.as_str() {
                "RequestTimeTooSkewed" => "set this machine's clock",
                "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken" => {
                    "look at the credentials in images.s3.credentials_file"
                }
                "QuotaExceeded" | "XMinioStorageFull" => "make room there",
                "PermanentRedirect" | "AuthorizationHeaderMalformed" | "TemporaryRedirect" => {
                    "look at images.s3.region and images.s3.endpoint"
                }
                _ if status == StatusCode::FORBIDDEN || status == StatusCode::UNAUTHORIZED => {
                    "look at the credentials in images.s3.credentials_file, and at what the bucket's policy lets them do"
                }
                _ if status.is_redirection() => "look at images.s3.region and images.s3.endpoint",
                _ => "look at [images.s3] in the settings",
            };
            format!("it answers {status} {code}: {next}")
        }
    }
}

async fn whole(mut answer: Response, most: usize) -> Result<String, Wrong> {
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|e| Wrong::Busy(plain(e)))? {
        if bytes.len() + piece.len() > most {
            return Err(Wrong::Odd(format!("more than {most} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    String::from_utf8(bytes).map_err(|_| Wrong::Odd("no text".into()))
}

/// An error with its causes, without the address.
pub(super) fn plain(error: reqwest::Error) -> String {
    format!("{:#}", anyhow::Error::new(error.without_url()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_answers_says_what_to_do() {
        for (status, code, word) in [
            (404, "NoSuchBucket", "images.s3.bucket"),
            (403, "SignatureDoesNotMatch", "images.s3.credentials_file"),
            (403, "", "policy"),
            (403, "RequestTimeTooSkewed", "clock"),
            (301, "PermanentRedirect", "images.s3.region"),
            (503, "SlowDown", "try again later"),
            (500, "InternalError", "try again later"),
            (429, "", "try again later"),
            (400, "BadDigest", "try again later"),
            (400, "EntityTooLarge", "[images.s3]"),
        ] {
            let text = said(of(StatusCode::from_u16(status).unwrap(), code.to_owned()));
            assert!(text.contains(word), "{status} {code}: {text}");
        }
    }
}
