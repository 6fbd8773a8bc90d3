//! Where a server listens: `unix:PATH` or `tcp:HOST:PORT`. TLS endpoints are refused.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::Error;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    /// `HOST:PORT`, an IPv6 address in brackets.
    Tcp(String),
}

pub(crate) type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub(crate) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

impl Endpoint {
    pub(crate) async fn connect(&self) -> std::io::Result<(Reader, Writer)> {
        match self {
            Endpoint::Unix(path) => {
                let (reader, writer) = UnixStream::connect(path).await?.into_split();
                Ok((Box::new(reader), Box::new(writer)))
            }
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let (reader, writer) = stream.into_split();
                Ok((Box::new(reader), Box::new(writer)))
            }
        }
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Endpoint, Error> {
        let bad = || Error::Endpoint(text.to_owned());
        match text.split_once(':').ok_or_else(bad)? {
            ("unix", path) if !path.is_empty() => Ok(Endpoint::Unix(path.into())),
            ("tcp", address) => match address.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                    Ok(Endpoint::Tcp(address.to_owned()))
                }
                _ => Err(bad()),
            },
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_parse_and_print() {
        for good in
            ["unix:/run/openvswitch/db.sock", "tcp:10.99.0.1:6641", "tcp:[::1]:6641", "tcp:ovn.example:6641"]
        {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        for bad in
            ["", "unix:", "/run/db.sock", "tcp:", "tcp:host", "tcp::6641", "tcp:host:port", "ssl:h:6641"]
        {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
