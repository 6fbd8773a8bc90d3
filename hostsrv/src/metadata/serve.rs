//! HTTP for guests: one request per connection, nothing but reading. Owns the bounds: how many ask at a time, how long a
//! question may take and how large it may be. One guest cannot take another's turn.

use super::{Orders, answers};
use amphi_api::NetworkId;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Connections of one network at a time.
const CONNECTIONS_MAX: usize = 128;
/// Of one address at a time.
const CONNECTIONS_EACH: usize = 8;
/// For the request's head to come.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// For the whole of it: user data of 64 KiB pass in well under a second.
const LIMIT: Duration = Duration::from_secs(20);
/// Of a request's head, in bytes; more is refused. 8 KiB is the least that hyper takes.
const HEAD_MAX: usize = 8192;
/// After a failure to accept, which is mostly a want of file descriptors.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves until it is dropped, and with it every connection.
pub async fn serve(listener: std::net::TcpListener, network: NetworkId, orders: Orders) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%network, "guests are not told about themselves: {error}"),
    };
    let turns = Turns::default();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, from) = match accepted {
            Ok((stream, SocketAddr::V4(from))) => (stream, *from.ip()),
            Ok(_) => continue,
            Err(error) => {
                tracing::debug!(%network, "cannot take a guest's call: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Who is over its bound is hung up on.
        let Some(turn) = turns.take(from) else { continue };
        let orders = orders.clone();
        connections.spawn(async move {
            let _turn = turn;
            let _ = tokio::time::timeout(LIMIT, speak(stream, network, from, orders)).await;
        });
    }
}

async fn speak(stream: TcpStream, network: NetworkId, from: Ipv4Addr, orders: Orders) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = respond(&orders, network, from, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_MAX)
        // Whoever has asked may close its half before it is answered, as nc does.
        .half_close(true)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%network, %from, "a guest's question: {error}");
    }
}

fn respond(
    orders: &Orders,
    network: NetworkId,
    from: Ipv4Addr,
    method: &Method,
    path: &str,
) -> Response<Full<Bytes>> {
    if *method != Method::GET && *method != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "405 Method Not Allowed\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let desired = orders.borrow().clone();
    let instance = desired.as_deref().and_then(|desired| answers::who(desired, network, from));
    match instance.and_then(|instance| answers::answer(instance, path)) {
        Some(answer) => {
            let mut response = Response::new(Full::new(Bytes::from(answer.bytes)));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.media_type));
            response
        }
        None => plain(StatusCode::NOT_FOUND, "404 Not Found\n"),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Who is being served, by address.
#[derive(Clone, Default)]
struct Turns(Arc<Mutex<BTreeMap<Ipv4Addr, usize>>>);

/// A place in the line, given back when dropped.
struct Turn {
    turns: Turns,
    of: Ipv4Addr,
}

impl Turns {
    fn take(&self, of: Ipv4Addr) -> Option<Turn> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = held.values().sum();
        if all >= CONNECTIONS_MAX || held.get(&of).is_some_and(|own| *own >= CONNECTIONS_EACH) {
            return None;
        }
        *held.entry(of).or_default() += 1;
        Some(Turn { turns: self.clone(), of })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut held = self.turns.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = held.get_mut(&self.of) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use tokio::sync::watch;

    #[test]
    fn turns_are_bounded_for_each_and_for_all() {
        let turns = Turns::default();
        let one = Ipv4Addr::new(10, 0, 0, 1);
        let mut held: Vec<Turn> = (0..CONNECTIONS_EACH).map(|_| turns.take(one).unwrap()).collect();
        assert!(turns.take(one).is_none());
        held.pop();
        assert!(turns.take(one).is_some());
        for n in 0.. {
            match turns.take(Ipv4Addr::from(0x0a01_0000 + n)) {
                Some(turn) => held.push(turn),
                None => break,
            }
        }
        assert_eq!(held.len(), CONNECTIONS_MAX);
        held.clear();
        assert!(turns.0.lock().unwrap().is_empty());
    }

    /// Whoever is no instance learns nothing, whatever is asked and however.
    #[test]
    fn strangers_learn_nothing() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (_keep, orders) = watch::channel(None);
        runtime.spawn(serve(listener, NetworkId(uuid::Uuid::nil()), orders));
        for (request, status) in [
            ("GET /openstack/latest/meta_data.json HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
            ("GET / HTTP/1.0\r\n\r\n".to_owned(), "404"),
            ("PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".to_owned(), "405"),
            ("nonsense\r\n\r\n".to_owned(), "400"),
            (format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(2 * HEAD_MAX)), "431"),
        ] {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            assert_eq!(answer.split(' ').nth(1), Some(status), "{request:.60}: {answer}");
        }
    }
}
