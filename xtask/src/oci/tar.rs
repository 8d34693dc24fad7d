//! The bytes of a canonical layer's headers. Pure: paths and sizes in, blocks out; it knows neither files nor digests.
//!
//! The form is POSIX ustar as Go's `archive/tar` writes it (POSIX.1-2008, pax, "ustar Interchange Format"), because
//! that is what container engines write: uid, gid and mtime 0, empty owner names, device numbers "0000000", long
//! paths split at a `/` into prefix and name. Where ustar cannot say it (a path that is not ASCII or does not split, a
//! size of 8 GiB or more) a pax extended header goes before it, and the ustar field holds what fits: the ASCII of
//! the path cut at its length, the size 0.

/// A tar stream is made of blocks of this many bytes.
pub const BLOCK: usize = 512;

/// The two zero blocks at the end of the stream.
pub static END: [u8; 1024] = [0; 1024];

const NAME: std::ops::Range<usize> = 0..100;
const MODE: std::ops::Range<usize> = 100..108;
const UID: std::ops::Range<usize> = 108..116;
const GID: std::ops::Range<usize> = 116..124;
const SIZE: std::ops::Range<usize> = 124..136;
const MTIME: std::ops::Range<usize> = 136..148;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const TYPE: usize = 156;
const MAGIC: std::ops::Range<usize> = 257..265;
const DEV_MAJOR: std::ops::Range<usize> = 329..337;
const DEV_MINOR: std::ops::Range<usize> = 337..345;
const PREFIX: std::ops::Range<usize> = 345..500;

/// The largest size that eleven octal digits can say.
const MAX_OCTAL_SIZE: u64 = (1 << 33) - 1;

/// What stands in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder, mode 0755.
    Folder,
    /// A file of this many bytes, mode 0644.
    File(u64),
    /// A program of this many bytes, mode 0755.
    Program(u64),
}

impl Kind {
    /// The number of bytes that follow the header, without padding.
    #[must_use]
    pub fn size(self) -> u64 {
        match self {
            Self::Folder => 0,
            Self::File(size) | Self::Program(size) => size,
        }
    }
}

/// The zero bytes that fill the last block of `size` bytes.
#[must_use]
pub fn padding(size: u64) -> &'static [u8] {
    let missing = size.next_multiple_of(BLOCK as u64) - size;
    &END[..usize::try_from(missing).unwrap_or_default()]
}

/// The header of one entry: one block, or three or more where a pax extended header goes first. `path` is absolute.
#[must_use]
pub fn header(path: &str, kind: Kind) -> Vec<u8> {
    let mut path = path.trim_start_matches('/').to_owned();
    if kind == Kind::Folder {
        path.push('/');
    }
    let split = split(&path);
    let is_large = kind.size() > MAX_OCTAL_SIZE;
    let mut records = String::new();
    // With a record for the size there is no split any more: a path that was to be split needs its record, too.
    if split.is_none_or(|(prefix, _)| is_large && !prefix.is_empty()) {
        push_record(&mut records, "path", &path);
    }
    if is_large {
        push_record(&mut records, "size", &kind.size().to_string());
    }
    let mut bytes = Vec::new();
    // Go splits only when everything fits ustar; with any pax record the name is cut and the prefix stays empty.
    let (prefix, name) = match split {
        Some(split) if records.is_empty() => split,
        _ => ("", path.as_str()),
    };
    if !records.is_empty() {
        bytes.extend_from_slice(&extended(&path, &records));
    }
    let mut block = [0; BLOCK];
    put_text(&mut block[NAME], &ascii(name));
    if name.len() > NAME.len() && block[NAME.end - 1] == b'/' {
        // A file whose cut name ends in `/` would be taken for a folder by readers that skip pax records.
        let kept = NAME.end - block[NAME].iter().rev().take_while(|byte| **byte == b'/').count();
        block[kept] = 0;
    }
    let (mode, flag) = match kind {
        Kind::Folder => (0o755, b'5'),
        Kind::File(_) => (0o644, b'0'),
        Kind::Program(_) => (0o755, b'0'),
    };
    put_octal(&mut block[MODE], mode);
    put_octal(&mut block[UID], 0);
    put_octal(&mut block[GID], 0);
    put_octal(&mut block[SIZE], if is_large { 0 } else { kind.size() });
    put_octal(&mut block[MTIME], 0);
    put_octal(&mut block[DEV_MAJOR], 0);
    put_octal(&mut block[DEV_MINOR], 0);
    put_text(&mut block[PREFIX], prefix);
    finish(&mut block, flag);
    bytes.extend_from_slice(&block);
    bytes
}

/// The pax extended header (type `x`) with these records, padded to a whole block.
fn extended(path: &str, records: &str) -> Vec<u8> {
    // Go's path.Join(dir, "PaxHeaders.0", file): what follows the last `/` is the file, which is empty for a folder.
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let name: Vec<&str> = [folder, "PaxHeaders.0", file].into_iter().filter(|part| !part.is_empty()).collect();
    let mut name = ascii(&name.join("/"));
    name.truncate(NAME.len());
    let mut block = [0; BLOCK];
    put_text(&mut block[NAME], name.trim_end_matches('/'));
    for field in [MODE, UID, GID, MTIME] {
        put_octal(&mut block[field], 0);
    }
    put_octal(&mut block[SIZE], records.len() as u64);
    finish(&mut block, b'x');
    let mut bytes = block.to_vec();
    bytes.extend_from_slice(records.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn finish(block: &mut [u8; BLOCK], flag: u8) {
    block[TYPE] = flag;
    block[MAGIC].copy_from_slice(b"ustar\x0000");
    block[CHECKSUM].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    // Six digits, NUL, space.
    put_octal(&mut block[CHECKSUM.start..CHECKSUM.end - 1], sum);
}

/// Prefix and name, if the path fits ustar: as it is up to 100 bytes, else split at the last `/` that leaves at most
/// 155 bytes before and 100 after it.
fn split(path: &str) -> Option<(&str, &str)> {
    if !path.is_ascii() {
        return None;
    }
    if path.len() <= NAME.len() {
        return Some(("", path));
    }
    let limit = if path.len() > PREFIX.len() + 1 {
        PREFIX.len() + 1
    } else if path.ends_with('/') {
        path.len() - 1
    } else {
        path.len()
    };
    let at = path[..limit].rfind('/').filter(|at| *at > 0)?;
    let (prefix, name) = (&path[..at], &path[at + 1..]);
    (!name.is_empty() && name.len() <= NAME.len() && prefix.len() <= PREFIX.len()).then_some((prefix, name))
}

/// `<length> <key>=<value>\n`, where the length counts itself.
fn push_record(records: &mut String, key: &str, value: &str) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend([&length.to_string(), " ", key, "=", value, "\n"]);
}

fn ascii(text: &str) -> String {
    text.chars().filter(char::is_ascii).collect()
}

fn put_text(field: &mut [u8], text: &str) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text.as_bytes()[..length]);
}

/// Octal digits that fill the field but for the NUL at its end.
fn put_octal(field: &mut [u8], number: u64) {
    let width = field.len() - 1;
    put_text(field, &format!("{number:0width$o}\0"));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_length_that_grows_by_a_digit_counts_that_digit() {
        for (value, expect) in [("x".repeat(90), 99), ("x".repeat(91), 101), ("x".repeat(92), 102)] {
            let mut record = String::new();
            push_record(&mut record, "path", &value);
            assert_eq!(record.len(), expect);
            assert!(record.starts_with(&format!("{expect} path=")), "{record}");
        }
    }

    #[test]
    fn ustar_says_it_where_it_can() {
        let blocks = |path: &str, kind| header(path, kind).len() / 512;
        assert_eq!(blocks("/models/a", Kind::File(0)), 1);
        assert_eq!(blocks("/models/a", Kind::File(MAX_OCTAL_SIZE)), 1);
        assert_eq!(blocks("/models/a", Kind::File(MAX_OCTAL_SIZE + 1)), 3);
        assert_eq!(blocks(&format!("/m/{}/{}", "d".repeat(100), "f".repeat(100)), Kind::File(0)), 1);
        assert_eq!(blocks(&format!("/m/{}", "f".repeat(101)), Kind::File(0)), 3);
        assert_eq!(blocks("/models/é", Kind::Folder), 3);
        // A path that would be split, of a file whose size needs a record: no reader may find half of it.
        let path = format!("m/{}/{}", "d".repeat(100), "f".repeat(50));
        let bytes = header(&format!("/{path}"), Kind::File(MAX_OCTAL_SIZE + 1));
        let records = String::from_utf8_lossy(&bytes[512..1024]).trim_end_matches('\0').to_owned();
        assert_eq!(records, format!("163 path={path}\n19 size=8589934592\n"));
    }

    proptest! {
        #[test]
        fn headers_are_whole_blocks_with_a_right_checksum(path in "/[a-zé]{1,130}(/[a-z]{1,130}){0,3}", size in any::<u64>()) {
            let bytes = header(&path, Kind::File(size >> 1));
            prop_assert_eq!(bytes.len() % 512, 0);
            for block in [&bytes[..512], &bytes[bytes.len() - 512..]] {
                let digits = std::str::from_utf8(&block[148..154]).unwrap();
                let told = u64::from_str_radix(digits, 8).unwrap();
                let sum: u64 = block.iter().enumerate()
                    .map(|(at, byte)| if CHECKSUM.contains(&at) { 32 } else { u64::from(*byte) }).sum();
                prop_assert_eq!(told, sum);
            }
        }
    }
}
