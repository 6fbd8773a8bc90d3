//! How bytes are put together: literal ones and references to blobs, in order. An archive that was taken apart is kept as one,
//! and whoever knows which blobs are there sends one in place of the bytes. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The media type of a recipe that stands for an upload's bytes.
pub const MEDIA_TYPE: &str = "application/vnd.amphi.recipe+json";

/// Most literal bytes: headers, documents, padding.
pub const LITERAL_MAX: u64 = 16 << 20;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Recipe {
    /// Each `{"bytes": BASE64}` or `{"blob": {"sha256": …, "size": …}}`.
    #[schema(value_type = Vec<Object>)]
    pub pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Piece {
    /// As base64.
    Bytes(
        #[serde(with = "text")]
        #[schemars(with = "String")]
        Vec<u8>,
    ),
    /// All bytes of a blob: its digest, and how many they are.
    Blob { sha256: String, size: u64 },
}

impl Recipe {
    pub fn literal(&mut self, bytes: &[u8]) {
        match self.pieces.last_mut() {
            Some(Piece::Bytes(before)) => before.extend_from_slice(bytes),
            _ if bytes.is_empty() => {}
            _ => self.pieces.push(Piece::Bytes(bytes.to_vec())),
        }
    }

    pub fn blob(&mut self, sha256: impl ToString, size: u64) {
        self.pieces.push(Piece::Blob { sha256: sha256.to_string(), size });
    }

    /// Of what it makes, in bytes.
    pub fn size(&self) -> u64 {
        self.pieces.iter().map(Piece::size).fold(0, u64::saturating_add)
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
        recipe.blob("01".repeat(32), 10);
        recipe.literal(b"c");
        assert_eq!((recipe.pieces.len(), recipe.size(), recipe.literals()), (3, 14, 4));
        let text = serde_json::to_string(&recipe).unwrap();
        assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), recipe);
    }
}
