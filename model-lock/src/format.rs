//! What a model file is, told by its content and not by its name: the formats that only hold numbers, the formats that
//! run code when they are loaded, and the things that end up in a model's place by accident.

use std::fmt;
use std::io::{self, Read};

/// A format whose header was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// <https://github.com/huggingface/safetensors>, "Format".
    Safetensors,
    /// <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
    Gguf,
    /// A serialised `ModelProto`, <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>.
    Onnx,
    /// Anything else that was not refused: configurations, vocabularies, texts.
    Other,
}

/// Why a file is refused as (part of) a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// A Git LFS pointer stands where the file should be.
    LfsPointer,
    /// An HTML page: a login or error page that was saved under the file's name.
    Html,
    /// Loading it can run code. It says how it was recognised.
    Unsafe(String),
    /// The name says a format and the content is not of that format, or is cut off. It says why.
    Broken(Format, String),
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::Gguf => "GGUF",
            Self::Onnx => "ONNX",
            Self::Other => "other",
        })
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LfsPointer => f.write_str("is a Git LFS pointer, not the file itself"),
            Self::Html => f.write_str("is an HTML page, not a model: a login or error page was saved in its place"),
            Self::Unsafe(how) => write!(f, "{how}: loading it can run code"),
            Self::Broken(format, why) => write!(f, "is not a valid {format} file: {why}"),
        }
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// What to do about it, as the end of a `help:` line.
    #[must_use]
    pub fn help(&self, file: &str) -> String {
        match self {
            Self::LfsPointer => format!("run `git lfs pull --include '{file}'`"),
            Self::Html => format!("download `{file}` again; the source may need a token"),
            Self::Unsafe(_) => "convert it to safetensors, GGUF or ONNX, or set `allow-unsafe-format = true` for this \
                                model if everyone who can change it may run code in your service"
                .to_owned(),
            Self::Broken(..) => format!("write or download `{file}` again"),
        }
    }
}

/// How many bytes from the start of a file [`accident`] wants.
pub const PREFIX: usize = 1024;

/// The header of a safetensors file may have this many bytes (safetensors, "Format": "there's a limit on the size").
const MAX_SAFETENSORS_HEADER: u64 = 100_000_000;

/// Formats that are, or carry, pickles. `bin` is here because most of them are.
const UNSAFE_EXTENSIONS: [&str; 8] = ["pkl", "pickle", "pt", "pth", "bin", "ckpt", "joblib", "keras"];

/// Recognises what is in a model's place by accident, from the first bytes ([`PREFIX`] of them, or all).
#[must_use]
pub fn accident(path: &str, prefix: &[u8]) -> Option<Refused> {
    if prefix.starts_with(b"version https://git-lfs.github.com/spec/")
        || prefix.starts_with(b"version https://hawser.github.com/spec/")
    {
        return Some(Refused::LfsPointer);
    }
    let extension = extension(path);
    let text = prefix.strip_prefix(b"\xef\xbb\xbf").unwrap_or(prefix).trim_ascii_start();
    let starts = |mark: &[u8]| text.len() >= mark.len() && text[..mark.len()].eq_ignore_ascii_case(mark);
    if !matches!(extension.as_str(), "html" | "htm" | "md") && (starts(b"<!doctype html") || starts(b"<html")) {
        return Some(Refused::Html);
    }
    None
}

/// Says what the file `path` of `size` bytes is, from its beginning. Reads no more than the header.
///
/// The outer error is one of reading; the inner one says why the file is refused.
pub fn recognise(path: &str, size: u64, mut reader: impl Read) -> io::Result<Result<Format, Refused>> {
    let mut prefix = Vec::with_capacity(PREFIX);
    reader.by_ref().take(PREFIX as u64).read_to_end(&mut prefix)?;
    if let Some(refused) = accident(path, &prefix) {
        return Ok(Err(refused));
    }
    let extension = extension(path);
    let named = match extension.as_str() {
        "safetensors" => Some(Format::Safetensors),
        "gguf" => Some(Format::Gguf),
        "onnx" => Some(Format::Onnx),
        _ => None,
    };
    Ok(match named {
        Some(format) => {
            check_header(format, size, &prefix, reader)?.map(|()| format).map_err(|why| Refused::Broken(format, why))
        }
        None if prefix.starts_with(b"GGUF") => Ok(Format::Gguf),
        None => match check_header(Format::Safetensors, size, &prefix, reader)? {
            Ok(()) => Ok(Format::Safetensors),
            Err(_) => starts_like_a_pickle(&prefix)
                .map(|how| format!("starts like {how}"))
                .or_else(|| {
                    let listed = UNSAFE_EXTENSIONS.contains(&extension.as_str());
                    listed.then(|| format!("has the extension `.{extension}`, which means a pickle"))
                })
                .map_or(Ok(Format::Other), |how| Err(Refused::Unsafe(how))),
        },
    })
}

fn extension(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase()
}

fn check_header(format: Format, size: u64, prefix: &[u8], rest: impl Read) -> io::Result<Result<(), String>> {
    match format {
        Format::Safetensors => check_safetensors(size, prefix, rest),
        Format::Gguf => Ok(check_gguf(size, prefix)),
        Format::Onnx => Ok(check_onnx(prefix)),
        Format::Other => Ok(Ok(())),
    }
}

/// Eight bytes of little-endian length, that much JSON, then the tensors without gap or overlap to the end of the file.
fn check_safetensors(size: u64, prefix: &[u8], rest: impl Read) -> io::Result<Result<(), String>> {
    let Some((length, start)) = prefix.split_first_chunk::<8>() else {
        return Ok(Err(format!("it has only {size} bytes")));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_SAFETENSORS_HEADER || length > size.saturating_sub(8) {
        return Ok(Err(format!("its header would have {length} bytes")));
    }
    if start.first() != Some(&b'{') {
        return Ok(Err("its header is not a JSON object".to_owned()));
    }
    let mut header = Vec::new();
    start.chain(rest).take(length).read_to_end(&mut header)?;
    Ok(safetensors_extent(&header).and_then(|end| match (end, size - 8 - length) {
        (end, data) if end == data => Ok(()),
        (end, data) => Err(format!("its tensors need {end} bytes and it holds {data}")),
    }))
}

/// The number of bytes that the tensors of this header take, if they lie without gap or overlap.
fn safetensors_extent(header: &[u8]) -> Result<u64, String> {
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|error| format!("its header is not a JSON object: {error}"))?;
    let mut extents = Vec::new();
    for (name, tensor) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let offset = |index| tensor.get("data_offsets").and_then(|offsets| offsets.get(index)?.as_u64());
        match (offset(0), offset(1), tensor.get("dtype"), tensor.get("shape")) {
            (Some(start), Some(end), Some(_), Some(_)) if start <= end => extents.push((start, end)),
            _ => return Err(format!("tensor `{}` has no type, shape or place", name.escape_debug())),
        }
    }
    extents.sort_unstable();
    extents.into_iter().try_fold(0, |position, (start, end)| {
        if start == position { Ok(end) } else { Err(format!("its tensors leave a gap or overlap at byte {position}")) }
    })
}

/// The magic, a version from 1 to 3, and counts that fit the file (gguf.md, "File Structure").
fn check_gguf(size: u64, prefix: &[u8]) -> Result<(), String> {
    if !prefix.starts_with(b"GGUF") {
        return Err("it does not start with `GGUF`".to_owned());
    }
    let word = |at: usize| prefix.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap_or_default()));
    let long = |at: usize| prefix.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()));
    match (word(4), long(8), long(16)) {
        (Some(1), ..) => Ok(()),
        (Some(2 | 3), Some(tensors), Some(pairs)) => {
            // A tensor's description has 24 bytes at least, a key with its value 13.
            let least = tensors.saturating_mul(24).saturating_add(pairs.saturating_mul(13)).saturating_add(24);
            if least > size { Err(format!("its header needs {least} bytes and it has {size}")) } else { Ok(()) }
        }
        (Some(version), Some(_), _) => Err(format!("its version is {version}")),
        _ => Err("it ends within the header".to_owned()),
    }
}

/// Field 1 (`ir_version`, a varint from 1 to 99) first, as every exporter writes it, and another field after it.
fn check_onnx(prefix: &[u8]) -> Result<(), String> {
    match prefix {
        [0x08, 1..=99, tag, ..] if matches!(tag & 7, 0 | 2) && tag >> 3 != 0 => Ok(()),
        [] => Err("it is empty".to_owned()),
        _ => Err("it does not start with an `ir_version`".to_owned()),
    }
}

/// Python's pickle of any protocol, or an archive that holds one.
fn starts_like_a_pickle(prefix: &[u8]) -> Option<&'static str> {
    let contains = |needle: &[u8]| prefix.windows(needle.len()).any(|window| window == needle);
    match prefix {
        // PROTO and a protocol from 1 to 5; or protocol 0: a collection is MARK, its opcode, then a PUT (`p0`).
        [0x80, 1..=5, ..] | [b'(', b'l' | b'd' | b't' | b'i', b'p' | b'q' | b'.' | b'o' | b'_', ..] => Some("a pickle"),
        [b'P', b'K', 3, 4, ..] if contains(b"data.pkl") => Some("a PyTorch archive, which holds a pickle"),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] if contains(b"'descr': '|O'") => {
            Some("a NumPy array of pickled objects")
        }
        // Protocol 0: GLOBAL is `c`, a module, a line end, a name, a line end.
        [b'c', rest @ ..] => {
            let mut lines = rest.splitn(3, |byte| *byte == b'\n');
            let identifier = |line: Option<&[u8]>| {
                line.is_some_and(|line| {
                    line.first().is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_')
                        && line.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(byte))
                })
            };
            // What follows is its argument: a MARK, an empty tuple or a PUT.
            let used = |rest: Option<&[u8]>| matches!(rest, Some([b'(' | b')', ..] | [b'p', b'0'..=b'9', ..]));
            (identifier(lines.next()) && identifier(lines.next()) && used(lines.next())).then_some("a pickle")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, bytes: &[u8], expect: &str) {
        let told = match recognise(path, bytes.len() as u64, bytes).unwrap() {
            Ok(format) => format.to_string(),
            Err(refused) => refused.to_string(),
        };
        assert!(told.contains(expect), "{path} {:?}: {told}", &bytes[..bytes.len().min(20)]);
    }

    fn safetensors(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    const TENSOR: &str = r#"{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

    #[test]
    fn headers() {
        check("m.safetensors", &safetensors(TENSOR, 8), "safetensors");
        check("m.safetensors", &safetensors(TENSOR, 7), "need 8 bytes and it holds 7");
        check("m.safetensors", &safetensors(TENSOR, 9), "need 8 bytes and it holds 9");
        check("m.safetensors", &safetensors("{}", 0), "safetensors");
        check("m.safetensors", &safetensors("[]", 0), "not a JSON object");
        check("m.safetensors", &safetensors(r#"{"x":1}"#, 0), "no type, shape or place");
        check("m.safetensors", &safetensors(&TENSOR.replace("[0,8]", "[1,8]"), 8), "gap or overlap");
        check("m.safetensors", b"", "only 0 bytes");
        check("m.safetensors", &[0xff; 64], "its header would have");
        let gguf = |version: u32, tensors: u64| {
            let mut bytes = b"GGUF".to_vec();
            bytes.extend_from_slice(&version.to_le_bytes());
            bytes.extend_from_slice(&tensors.to_le_bytes());
            bytes.extend_from_slice(&0u64.to_le_bytes());
            bytes
        };
        check("m.gguf", &gguf(3, 0), "GGUF");
        check("m.gguf", &gguf(3, 1 << 40), "not a valid GGUF file: its header needs");
        check("m.gguf", &gguf(9, 0), "its version is 9");
        check("m.gguf", b"GGUF\x03\0\0\0", "ends within the header");
        check("m.gguf", b"hello", "does not start with `GGUF`");
        check("m.onnx", b"\x08\x09\x12\x04test", "ONNX");
        check("m.onnx", b"PK\x03\x04", "not a valid ONNX file");
        check("m.onnx", b"", "it is empty");
    }

    #[test]
    fn accidents() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        check("m.safetensors", pointer, "Git LFS pointer");
        check("weights.bin", pointer, "Git LFS pointer");
        check("m.gguf", b"\n <!DOCTYPE HTML><title>Sign in</title>", "HTML page");
        check("vocab.txt", b"\xef\xbb\xbf<html lang=en>", "HTML page");
        check("page.html", b"<html>", "other");
    }

    #[test]
    fn what_runs_code_is_refused() {
        check("m.dat", b"\x80\x04\x95\x0c\0\0\0", "starts like a pickle");
        check("m.txt", b"cos\nsystem\n(S'id'\ntR.", "starts like a pickle");
        check("m.json", b"(dp0\nS'a'\n", "starts like a pickle");
        check("m.zip", b"PK\x03\x04\0\0\0\0archive/data.pkl", "PyTorch archive");
        check("m.npy", b"\x93NUMPY\x01\0v\0{'descr': '|O', ", "pickled objects");
        for extension in ["pkl", "pt", "bin", "ckpt", "joblib", "PTH"] {
            check(&format!("m.{extension}"), b"whatever", "which means a pickle");
        }
        // Content outweighs the extension where it is known to hold numbers only.
        check("pytorch_model.bin", &safetensors(TENSOR, 8), "safetensors");
        check("ggml.bin", b"GGUF\x03\0\0\0", "GGUF");
        // A safetensors header of 640 bytes starts like a pickle of protocol 2.
        let padded = format!("{TENSOR}{}", " ".repeat(640 - TENSOR.len()));
        check("m.dat", &safetensors(&padded, 8), "safetensors");
    }

    #[test]
    fn plain_files_pass() {
        check("config.json", b"{\"a\": 1}", "other");
        check("README.md", b"# A model\n", "other");
        check("vocab.txt", b"cat\ndog\n", "other");
        check("vocab.txt", b"the\n", "other");
        check("empty", b"", "other");
        check("notes.txt", b"(laughs) hello", "other");
    }
}
