//! How an archive is put together again: literal bytes and references to blobs, in order. Pure.

use crate::digest::Digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Most literal bytes: headers, documents, padding.
pub const LITERAL_MAX: u64 = 16 << 20;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    pub pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Piece {
    Bytes(#[serde(with = "text")] Vec<u8>),
    Blob { sha256: Digest, size: u64 },
}

impl Recipe {
    pub fn literal(&mut self, bytes: &[u8]) {
        match self.pieces.last_mut() {
            Some(Piece::Bytes(before)) => before.extend_from_slice(bytes),
            _ if bytes.is_empty() => {}
            _ => self.pieces.push(Piece::Bytes(bytes.to_vec())),
        }
    }

    pub fn blob(&mut self, sha256: Digest, size: u64) {
        self.pieces.push(Piece::Blob { sha256, size });
    }

    /// Of what it makes, in bytes.
    pub fn size(&self) -> u64 {
        self.pieces.iter().map(Piece::size).sum()
    }

    pub fn literals(&self) -> u64 {
        self.pieces.iter().filter(|p| matches!(p, Piece::Bytes(_))).map(Piece::size).sum()
    }
}

impl Piece {
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Blob { size, .. } => *size,
        }
    }
}

/// Bytes as base64.
mod text {
    use super::{Engine, STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_join_and_return() {
        let mut recipe = Recipe::default();
        recipe.literal(b"ab");
        recipe.literal(b"");
        recipe.literal(&[0xff]);
        recipe.blob(Digest([1; 32]), 10);
        recipe.literal(b"c");
        assert_eq!((recipe.pieces.len(), recipe.size(), recipe.literals()), (3, 14, 4));
        let text = serde_json::to_string(&recipe).unwrap();
        assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), recipe);
    }
}
