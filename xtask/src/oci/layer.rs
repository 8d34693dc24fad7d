//! A layer is a recipe: which entries, in which order, with which bytes. Its size is known before a byte is read and
//! its digest is a pure function of the paths and the bytes, so it is streamed wherever it is wanted and never kept on
//! the side. It knows nothing of images.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use model_lock::digest::{Hasher, read_chunks};
use model_lock::verify::open_regular;
use model_lock::{Digest, LockedLayer, RelPath};

use super::tar::{self, Kind};
use crate::stamp::Stamps;

/// One entry of a layer: an absolute path in the container and what stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Absolute path in the container.
    pub path: String,
    /// Folder, file or program.
    pub kind: Kind,
    /// Which of the files that the recipe was made for; nothing for a folder.
    pub file: Option<usize>,
}

/// The entries of a layer in the order of a directory walk, every parent folder before what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe(Vec<Entry>);

impl Recipe {
    /// The layer that holds these files, and these folders even if nothing is in them. Paths are absolute.
    #[must_use]
    pub fn new(files: &[(String, Kind)], folders: &[String]) -> Self {
        let mut entries: Vec<Entry> = files
            .iter()
            .enumerate()
            .map(|(index, (path, kind))| Entry { path: path.clone(), kind: *kind, file: Some(index) })
            .collect();
        let mut parents = BTreeSet::new();
        for path in files.iter().map(|(path, _)| path) {
            parents.extend(path.match_indices('/').skip(1).map(|(at, _)| path[..at].to_owned()));
        }
        for folder in folders {
            parents.extend(folder.match_indices('/').skip(1).map(|(at, _)| folder[..at].to_owned()));
            parents.insert(folder.clone());
        }
        entries.extend(parents.into_iter().map(|path| Entry { path, kind: Kind::Folder, file: None }));
        entries.sort_by(|a, b| a.path.split('/').cmp(b.path.split('/')));
        Self(entries)
    }

    /// The canonical layer of these files of a model.
    #[must_use]
    pub fn of_model(target: &model_lock::TargetPath, files: &[(&RelPath, u64)]) -> Self {
        let files: Vec<_> = files.iter().map(|(path, size)| (target.join(path), Kind::File(*size))).collect();
        Self::new(&files, &[])
    }

    /// The entries.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// The size of the tar stream in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        let entry = |entry: &Entry| {
            let size = entry.kind.size();
            tar::header(&entry.path, entry.kind).len() as u64 + size + tar::padding(size).len() as u64
        };
        self.0.iter().map(entry).sum::<u64>() + tar::END.len() as u64
    }

    /// Writes the tar stream to `out`, opening each file when its turn comes. A file that does not have the size it was
    /// declared with is an error of the kind [`io::ErrorKind::InvalidData`].
    pub fn write<R: Read + Send>(
        &self,
        mut open: impl FnMut(usize) -> io::Result<R>,
        mut out: impl FnMut(Piece<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        for entry in &self.0 {
            out(Piece::Frame(&tar::header(&entry.path, entry.kind)))?;
            let Some(index) = entry.file else { continue };
            let size = entry.kind.size();
            // One byte more than declared is enough to know; an endless file is not read to its end.
            let reader = open(index)?.take(size.saturating_add(1));
            let mut left = size;
            read_chunks(reader, size, |bytes| {
                left = left.checked_sub(bytes.len() as u64).ok_or_else(|| wrong_size(&entry.path, size))?;
                out(Piece::File(index, bytes))
            })?;
            if left > 0 {
                return Err(wrong_size(&entry.path, size));
            }
            out(Piece::Frame(tar::padding(size)))?;
        }
        out(Piece::Frame(&tar::END))
    }

    /// Writes the tar stream to `sink` and gives its digest and size.
    pub fn stream<R: Read + Send>(
        &self,
        open: impl FnMut(usize) -> io::Result<R>,
        mut sink: impl Write,
    ) -> io::Result<LockedLayer> {
        let (mut hasher, mut size) = (Hasher::default(), 0);
        self.write(open, |piece| {
            let bytes = piece.bytes();
            hasher.update(bytes);
            size += bytes.len() as u64;
            sink.write_all(bytes)
        })?;
        Ok(LockedLayer { digest: hasher.finish(), size })
    }

    /// Digest and size of the layer, and the digest of each of its files, from one pass over the files.
    pub fn digests<R: Read + Send>(
        &self,
        open: impl FnMut(usize) -> io::Result<R>,
        each: impl Fn(u64),
    ) -> io::Result<(LockedLayer, Vec<Digest>)> {
        let count = self.0.iter().filter(|entry| entry.file.is_some()).count();
        let mut files = vec![Hasher::default(); count];
        let (mut layer, mut size) = (Hasher::default(), 0);
        self.write(open, |piece| {
            let bytes = piece.bytes();
            size += bytes.len() as u64;
            match piece {
                // The same bytes under two digests: on two cores, where there is enough of them.
                Piece::File(index, bytes) if bytes.len() >= 256 << 10 => std::thread::scope(|scope| {
                    scope.spawn(|| files[index].update(bytes));
                    layer.update(bytes);
                }),
                Piece::File(index, bytes) => {
                    files[index].update(bytes);
                    layer.update(bytes);
                }
                Piece::Frame(bytes) => layer.update(bytes),
            }
            if let Piece::File(..) = piece {
                each(bytes.len() as u64);
            }
            Ok(())
        })?;
        Ok((LockedLayer { digest: layer.finish(), size }, files.into_iter().map(Hasher::finish).collect()))
    }
}

/// A layer whose files are at hand: what it must be, and where its bytes are.
#[derive(Debug, Clone)]
pub struct Layer {
    /// What the stream must have.
    pub locked: LockedLayer,
    /// Its entries.
    pub recipe: Recipe,
    /// The files that the entries name.
    pub files: Vec<PathBuf>,
    /// The digests of these files, where they are locked. A stream that comes out right proves them.
    pub digests: Vec<Digest>,
    /// What it is, for messages: `model digits`.
    pub what: String,
}

impl Layer {
    /// Streams it to `sink`; whether it has the digest that it must have. If so, `stamps` know its files from then on.
    pub fn write(&self, sink: impl Write, stamps: &Stamps) -> io::Result<bool> {
        let mut readings = Vec::with_capacity(self.files.len());
        let open = |index: usize| {
            let file = open_regular(&self.files[index])?.ok_or_else(|| io::Error::other("it is not a regular file"))?;
            readings.push((index, Stamps::before(&file)?));
            Ok(file)
        };
        let matches = match self.recipe.stream(open, sink) {
            Ok(streamed) => streamed == self.locked,
            // A file of another size.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => false,
            Err(error) => return Err(error),
        };
        if matches {
            for (index, reading) in &readings {
                if let Some(digest) = self.digests.get(*index) {
                    stamps.after(&self.files[*index], reading, *digest);
                }
            }
        }
        Ok(matches)
    }
}

/// A piece of a tar stream.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    /// Headers, padding, the end.
    Frame(&'a [u8]),
    /// Bytes of the file with this index.
    File(usize, &'a [u8]),
}

impl<'a> Piece<'a> {
    /// The bytes, whatever they are.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Frame(bytes) | Self::File(_, bytes) => bytes,
        }
    }
}

fn wrong_size(path: &str, size: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the file for `{path}` no longer has {size} bytes"))
}

/// A file of at least this many bytes has a layer of its own.
const LARGE: u64 = 4 << 20;
/// One model has at most this many layers for its large files; with more files, neighbours share one.
const MOST: usize = 48;

/// Which files of a model share a layer: a pure function of the sorted paths' sizes, part of the lock's format. Each
/// large file is alone, so that one that changes leaves the others where they are; the small ones are together.
#[must_use]
pub fn group(sizes: &[u64]) -> Vec<Vec<usize>> {
    let (large, small): (Vec<usize>, Vec<usize>) = (0..sizes.len()).partition(|index| sizes[*index] >= LARGE);
    let together = large.len().div_ceil(MOST).max(1);
    let mut groups: Vec<_> = large.chunks(together).map(<[usize]>::to_vec).collect();
    if !small.is_empty() {
        groups.push(small);
    }
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each digest is the `diff_id` that BuildKit (Docker 28.5) gave the layer of
    /// `COPY --link FOLDER/ /` with this content, folders 0755, files 0644, every mtime 0. A change here means that
    /// every models.lock in the world changes: it needs a new version of the lock.
    #[test]
    fn layers_are_byte_for_byte_those_of_buildkit() {
        let (d60, f60) = ("d".repeat(60), "f".repeat(60));
        let (x120, e200) = ("x".repeat(120), "e".repeat(200));
        let check = |files: &[(&str, &str)], digest: &str| {
            let entries: Vec<_> = files
                .iter()
                .map(|(path, bytes)| (format!("/models/digits/{path}"), Kind::File(bytes.len() as u64)))
                .collect();
            let recipe = Recipe::new(&entries, &[]);
            let mut tar = Vec::new();
            let layer = recipe.stream(|index| Ok(files[index].1.as_bytes()), &mut tar).unwrap();
            assert_eq!(layer.digest.to_string(), format!("sha256:{digest}"), "{files:?}");
            assert_eq!((layer.size, recipe.size()), (tar.len() as u64, tar.len() as u64));
            assert_eq!(recipe.digests(|index| Ok(files[index].1.as_bytes()), |_| {}).unwrap().0, layer);
        };
        check(&[("model.bin", "hello\n")], "1ecfa76f2038afb87fa037b0a5df5fcd3178e300efabc877b34573d359d0f2eb");
        check(
            &[("onnx/fp16/model.onnx", "nested\n")],
            "465027a36db0c22f8838c46f2eb16947941ee17eb1d13872b07a7486da29ab1d",
        );
        check(&[("empty.bin", "")], "f3968f44bb8f65cc5286c728d4568c7280a84a74b85e353937afca9e5d34bc5a");
        check(
            &[("é.txt", "é.txt"), ("a/b", "a/b"), ("a.txt", "a.txt"), ("a-b", "a-b"), ("B", "B")],
            "914d30a1d8a15847b05159c5fd0f7c2ff547d1e54e56baddecbaf6e2c0431b02",
        );
        check(
            &[(&format!("{d60}/{f60}"), "long\n")],
            "8e900d22cbfafa376726a2077c446989813ee611ebd2914845a2a7a1a5936a21",
        );
        check(&[(&x120, "long")], "66ecfa31ba3c34f8bc019f6312295049d5eabf5c1575868b5d4df37753b7295f");
        check(
            &[(&format!("{e200}/{x120}"), "long")],
            "e26d7e9217cf28f752f797dc841b8f089cecb71687ba31e3ea60d77303e1c62e",
        );
    }

    /// As above: 9 GiB of zeros at `/models/digits/model.gguf`, a size that eleven octal digits cannot say.
    #[test]
    fn a_layer_of_over_8_gib_is_that_of_buildkit() {
        let size = 9 << 30;
        let recipe = Recipe::new(&[("/models/digits/model.gguf".to_owned(), Kind::File(size))], &[]);
        let layer = recipe.stream(|_| Ok(io::repeat(0).take(size)), io::sink()).unwrap();
        assert_eq!(layer.size, recipe.size());
        assert_eq!(layer.digest.to_string(), "sha256:457e824097f961ab04dea68c5237062ad6a5631406e203e007443558f8e50347",);
    }

    #[test]
    fn a_file_that_changed_its_size_is_refused() {
        let recipe = Recipe::new(&[("/a".to_owned(), Kind::File(3))], &[]);
        for bytes in ["ab", "abcd"] {
            let error = recipe.stream(|_| Ok(bytes.as_bytes()), io::sink()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert_eq!(error.to_string(), "the file for `/a` no longer has 3 bytes");
        }
    }

    #[test]
    fn folders_stand_before_what_is_in_them_and_once() {
        let files = [("/a/b/f".to_owned(), Kind::File(0)), ("/a/g".to_owned(), Kind::Program(0))];
        let recipe = Recipe::new(&files, &["/a/b".to_owned(), "/x/y".to_owned()]);
        let paths: Vec<_> = recipe.entries().iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["/a", "/a/b", "/a/b/f", "/a/g", "/x", "/x/y"]);
    }

    #[test]
    fn large_files_are_alone_and_small_ones_together() {
        assert_eq!(group(&[1, LARGE, 2, LARGE - 1]), [vec![1], vec![0, 2, 3]]);
        assert_eq!(group(&[]), [] as [Vec<usize>; 0]);
        assert_eq!(group(&vec![LARGE; 200]).len(), 40);
    }

    proptest! {
        #[test]
        fn every_file_is_in_one_layer_and_layers_are_few(sizes in prop::collection::vec(0..2 * LARGE, 0..300)) {
            let groups = group(&sizes);
            prop_assert!(groups.len() <= MOST + 1);
            let mut all: Vec<usize> = groups.into_iter().flatten().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..sizes.len()).collect::<Vec<_>>());
        }
    }
}
