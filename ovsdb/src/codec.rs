//! Cuts a byte stream into JSON values. OVSDB has no framing: values follow each other with or
//! without white space, many in one read or one over many reads. Bytes are scanned once; a value
//! over the limit and anything that is no object or array is refused.

use serde_json::Value as Json;

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("byte {0:#04x} where a JSON object or array should start")]
    Unexpected(u8),
    #[error("a message of more than {0} bytes")]
    TooLarge(usize),
    #[error("malformed JSON: {0}")]
    Malformed(#[from] serde_json::Error),
}

#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Where the current value starts, or the next may.
    start: usize,
    scanned: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
    limit: usize,
}

impl Decoder {
    /// `limit`: bytes of one value.
    pub fn new(limit: usize) -> Decoder {
        Decoder {
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            depth: 0,
            in_string: false,
            escaped: false,
            limit,
        }
    }

    /// Where the caller appends what it has read.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// The next whole value; None when more bytes are needed. After an error the stream is lost.
    pub fn decode(&mut self) -> Result<Option<Json>, DecodeError> {
        while self.scanned < self.buffer.len() {
            let byte = self.buffer[self.scanned];
            self.scanned += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'{' | b'[' => self.depth += 1,
                b' ' | b'\t' | b'\r' | b'\n' if self.depth == 0 => self.start = self.scanned,
                other if self.depth == 0 => return Err(DecodeError::Unexpected(other)),
                b'"' => self.in_string = true,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return self.cut().map(Some);
                    }
                }
                _ => {}
            }
        }
        if self.buffer.len() - self.start > self.limit {
            return Err(DecodeError::TooLarge(self.limit));
        }
        // Everything before `start` is consumed; dropping it only here keeps a burst linear.
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        Ok(None)
    }

    fn cut(&mut self) -> Result<Json, DecodeError> {
        let bytes = &self.buffer[self.start..self.scanned];
        if bytes.len() > self.limit {
            return Err(DecodeError::TooLarge(self.limit));
        }
        let value = serde_json::from_slice(bytes)?;
        self.start = self.scanned;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const STREAM: &[u8] =
        b" {\"a\":\"}\\\"]{\",\"b\":[1,{\"c\":null}]}[\"x\\\\\",\"\xc3\xa9\"]\n\t{\"id\":7}{}  [[]]";

    fn expected() -> Vec<Json> {
        vec![
            json!({"a": "}\"]{", "b": [1, {"c": null}]}),
            json!(["x\\", "\u{e9}"]),
            json!({"id": 7}),
            json!({}),
            json!([[]]),
        ]
    }

    fn feed(pieces: impl Iterator<Item = Vec<u8>>) -> Vec<Json> {
        let mut decoder = Decoder::new(1024);
        let mut values = Vec::new();
        for piece in pieces {
            decoder.buffer().extend_from_slice(&piece);
            while let Some(value) = decoder.decode().unwrap() {
                values.push(value);
            }
        }
        values
    }

    #[test]
    fn any_split_gives_the_same_values() {
        for size in 1..=STREAM.len() {
            assert_eq!(feed(STREAM.chunks(size).map(<[u8]>::to_vec)), expected(), "pieces of {size}");
        }
    }

    #[test]
    fn refuses_what_is_no_message() {
        for bytes in [&b"nonsense"[..], b"]", b"\"text\"", b"{}1", b"{]", b"{\"a\"}"] {
            let mut decoder = Decoder::new(1024);
            decoder.buffer().extend_from_slice(bytes);
            let refused = loop {
                match decoder.decode() {
                    Ok(Some(_)) => {}
                    Ok(None) => break false,
                    Err(_) => break true,
                }
            };
            assert!(refused, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn limits_one_message_not_the_stream() {
        let mut decoder = Decoder::new(16);
        for _ in 0..100 {
            decoder.buffer().extend_from_slice(b"{\"id\": 1}");
        }
        for _ in 0..100 {
            assert!(decoder.decode().unwrap().is_some());
        }
        assert!(decoder.decode().unwrap().is_none());
        decoder.buffer().extend_from_slice(b"{\"text\": \"too long");
        assert!(matches!(decoder.decode(), Err(DecodeError::TooLarge(16))));
    }
}
