//! A digest is parsed once, at the edge. What is not 64 lower-case hex digits never becomes a [`Digest`], and so never
//! becomes a path or a URL.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;
use std::sync::mpsc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest, written `sha256:<64 lower-case hex digits>` (OCI image-spec, descriptor.md, "Digests").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a digest: expected `{expected}`")]
pub struct ParseDigestError {
    text: String,
    expected: &'static str,
}

impl Digest {
    /// The digest with these 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the digest.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Parses 64 lower-case hex digits, the form without `sha256:`.
    pub fn from_hex(hex: &str) -> Result<Self, ParseDigestError> {
        let refused = || ParseDigestError {
            text: hex.chars().take(80).flat_map(char::escape_default).collect(),
            expected: "64 lower-case hex digits",
        };
        let digits = hex.as_bytes();
        if digits.len() != 64 {
            return Err(refused());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble = |digit: u8| match digit {
                b'0'..=b'9' => Some(digit - b'0'),
                b'a'..=b'f' => Some(digit - b'a' + 10),
                _ => None,
            };
            *byte = nibble(pair[0]).zip(nibble(pair[1])).map(|(high, low)| high << 4 | low).ok_or_else(refused)?;
        }
        Ok(Self(bytes))
    }

    /// The 64 hex digits, without `sha256:`.
    #[must_use]
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// `sha256:` and the first 12 hex digits, for lines that people read.
    #[must_use]
    pub fn short(&self) -> String {
        format!("sha256:{}", &self.hex()[..12])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("sha256:").and_then(|hex| Self::from_hex(hex).ok()).ok_or_else(|| ParseDigestError {
            text: text.chars().take(80).flat_map(char::escape_default).collect(),
            expected: "sha256:<64 lower-case hex digits>",
        })
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A digest in the making, for bytes that come piece by piece.
#[derive(Debug, Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// How many bytes are read at once. Anything from 64 KiB on is equally fast; this is few enough system calls and
/// little enough memory.
pub const CHUNK: usize = 1 << 20;

/// Below this size a second thread costs more than it hides.
const WORTH_A_THREAD: u64 = 4 << 20;

/// Reads `reader` to its end and hands every chunk, in order, to `each`.
///
/// `size_hint` is the number of bytes that are expected. Long inputs are read ahead on a thread of their own, so that
/// reading and `each` (hashing, mostly) overlap.
pub fn read_chunks<R: Read + Send>(
    mut reader: R,
    size_hint: u64,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let mut total = 0;
    let chunk = usize::try_from(size_hint).unwrap_or(CHUNK).clamp(4096, CHUNK);
    if size_hint < WORTH_A_THREAD {
        let mut buffer = vec![0; chunk];
        loop {
            let count = read_some(&mut reader, &mut buffer)?;
            if count == 0 {
                return Ok(total);
            }
            total += count as u64;
            each(&buffer[..count])?;
        }
    }
    std::thread::scope(|scope| {
        // Three buffers go round: one being read into, one waiting, one being hashed.
        let (full_tx, full_rx) = mpsc::sync_channel::<io::Result<(Vec<u8>, usize)>>(3);
        let (empty_tx, empty_rx) = mpsc::channel::<Vec<u8>>();
        for _ in 0..3 {
            let _ = empty_tx.send(vec![0; chunk]);
        }
        scope.spawn(move || {
            while let Ok(mut buffer) = empty_rx.recv() {
                let read = read_some(&mut reader, &mut buffer);
                let last = !matches!(read, Ok(count) if count > 0);
                if full_tx.send(read.map(|count| (buffer, count))).is_err() || last {
                    return;
                }
            }
        });
        while let Ok(read) = full_rx.recv() {
            let (buffer, count) = read?;
            if count == 0 {
                break;
            }
            total += count as u64;
            each(&buffer[..count])?;
            let _ = empty_tx.send(buffer);
        }
        Ok(total)
    })
}

/// Reads once into `buffer`, again where a signal interrupted.
fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn parses_only_the_one_form() {
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        for bad in [
            "",
            "sha256:",
            &EMPTY[..70],
            &EMPTY.to_uppercase(),
            &EMPTY.replace("e3b0", "E3B0"),
            &EMPTY.replace("sha256", "sha512"),
            &format!("{EMPTY}0"),
            &EMPTY.replace("e3b0", "../."),
            &EMPTY.replace("e3b0", "é0\0"),
        ] {
            let error = bad.parse::<Digest>().unwrap_err().to_string();
            assert!(error.contains("is not a digest"), "{bad:?}: {error}");
            assert!(!error.contains('\0'), "control bytes are escaped: {error:?}");
        }
    }

    #[test]
    fn chunks_are_the_input_in_order_on_one_thread_and_on_two() {
        for size in [0usize, 1, 4096, CHUNK, CHUNK + 1, 9 * CHUNK + 17] {
            let input: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
            for hint in [size as u64, 0, u64::MAX] {
                let mut output = Vec::new();
                let total = read_chunks(&input[..], hint, |bytes| {
                    output.extend_from_slice(bytes);
                    Ok(())
                })
                .unwrap();
                assert_eq!(total, size as u64);
                assert!(output == input, "size {size}, hint {hint}");
            }
        }
    }

    #[test]
    fn an_error_of_the_reader_or_of_the_consumer_ends_the_reading() {
        struct Broken(usize);
        impl Read for Broken {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.0 == 0 {
                    return Err(io::Error::other("the disk is on fire"));
                }
                self.0 -= 1;
                Ok(buffer.len())
            }
        }
        for hint in [0, u64::MAX] {
            let error = read_chunks(Broken(5), hint, |_| Ok(())).unwrap_err();
            assert_eq!(error.to_string(), "the disk is on fire");
            let error = read_chunks(Broken(usize::MAX), hint, |_| Err(io::Error::other("enough"))).unwrap_err();
            assert_eq!(error.to_string(), "enough");
        }
    }
}
