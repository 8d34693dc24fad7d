//! `cargo xtask image`: what is in the image, what changes it, what is refused, and what a run that was killed leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    COMMIT_TIME, TWO_MODELS, Workspace, architecture, gnu_tar, mode, noise, safetensors, sha256, triple,
};

const LAYOUT: &str = "target/image/app/embed/oci";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image layout that was read and found to fit together.
struct Layout {
    folder: PathBuf,
    digest: String,
    descriptor: Value,
    config: Value,
    layers: Vec<String>,
    docker: Value,
}

fn parse(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Layout {
    /// Reads a layout and checks that every name, digest and size in it agrees with every other, by `sha256sum`.
    #[track_caller]
    fn read(folder: &Path) -> Self {
        assert_eq!(parse(&folder.join("oci-layout")), json!({ "imageLayoutVersion": "1.0.0" }));
        let index = parse(&folder.join("index.json"));
        assert_eq!((&index["schemaVersion"], index["manifests"].as_array().unwrap().len()), (&2.into(), 1));
        let mut named = BTreeMap::new();
        let mut blob = |descriptor: &Value, media_type: &str| {
            assert_eq!(descriptor["mediaType"], media_type);
            let digest = descriptor["digest"].as_str().unwrap().to_owned();
            let path = folder.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
            assert_eq!(path.metadata().unwrap().len(), descriptor["size"].as_u64().unwrap(), "{digest}");
            named.insert(digest.replace("sha256:", ""), path.clone());
            (digest, path)
        };
        let descriptor = index["manifests"][0].clone();
        let (digest, path) = blob(&descriptor, MANIFEST);
        let manifest = parse(&path);
        assert_eq!((&manifest["schemaVersion"], &manifest["mediaType"]), (&2.into(), &MANIFEST.into()));
        let (config_digest, path) = blob(&manifest["config"], CONFIG);
        let config = parse(&path);
        let layers = manifest["layers"].as_array().unwrap();
        let layers: Vec<String> = layers.iter().map(|layer| blob(layer, LAYER).0).collect();
        assert_eq!(config["rootfs"], json!({ "type": "layers", "diff_ids": layers }));
        assert_eq!(config["history"].as_array().unwrap().len(), layers.len());
        let platform = json!({ "architecture": config["architecture"], "os": config["os"] });
        assert_eq!(descriptor["platform"], platform);
        let docker = parse(&folder.join("manifest.json"));
        let name = |digest: &String| digest.replace("sha256:", "blobs/sha256/");
        assert_eq!(docker[0]["Config"], name(&config_digest));
        assert_eq!(docker[0]["Layers"], json!(layers.iter().map(name).collect::<Vec<_>>()));
        let there: Vec<String> = Workspace::at(folder).files("blobs");
        let expect: Vec<String> = named.keys().map(|hex| format!("sha256/{hex}")).collect();
        assert_eq!(there, expect, "nothing but what the index names");
        let sums = Command::new("sha256sum").args(named.values()).output().unwrap();
        let sums = String::from_utf8(sums.stdout).unwrap();
        for ((hex, path), line) in named.iter().zip(sums.lines()) {
            assert_eq!(line, format!("{hex}  {}", path.display()));
        }
        Self { folder: folder.to_owned(), digest, descriptor, config, layers, docker }
    }

    fn layer(&self, index: usize) -> Vec<u8> {
        fs::read(self.folder.join("blobs/sha256").join(&self.layers[index][7..])).unwrap()
    }
}

/// What GNU tar lists, such as `-rw-r--r-- 0/0 8 1970-01-01 00:00 srv/words/words.txt`, with single spaces.
fn listed(tar: &[u8]) -> Vec<String> {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("layer.tar");
    fs::write(&path, tar).unwrap();
    let output = Command::new("tar").env("TZ", "UTC").args(["--numeric-owner", "-tvf"]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The layers of models in models.lock, in its order.
fn locked_layers(workspace: &Workspace) -> Vec<String> {
    let mut layers = Vec::new();
    for (_, rest) in workspace.text("models.lock").lines().filter_map(|line| line.split_once("layer = \"")) {
        let layer = rest.split_once('"').unwrap().0.to_owned();
        if !layers.contains(&layer) {
            layers.push(layer);
        }
    }
    layers
}

#[test]
fn one_digest_is_printed_and_the_layout_fits_together() {
    let workspace = Workspace::committed();
    let output = workspace.run(&["image", "--embed"]).expect(0);
    let layout = Layout::read(&workspace.path(LAYOUT));
    assert_eq!(output.digest(), layout.digest);
    assert_eq!(layout.layers[..2], locked_layers(&workspace), "models below the code, as models.lock has them");
    assert_eq!(layout.layers.len(), 3);
    assert_eq!(
        layout.descriptor["annotations"],
        json!({ "io.containerd.image.name": "docker.io/library/app:embed", "org.opencontainers.image.ref.name": "embed" })
    );
    assert_eq!(layout.docker[0]["RepoTags"], json!(["app:embed"]));
    let binary = workspace.read(format!("target/image/cargo/{}/release/app", triple()));
    let digits = [
        ("/models/digits/config.json", workspace.read("models/digits/config.json")),
        ("/models/digits/model.safetensors", workspace.read("models/digits/model.safetensors")),
    ];
    let digits: Vec<(&str, &[u8])> = digits.iter().map(|(path, bytes)| (*path, &bytes[..])).collect();
    assert!(layout.layer(0) == gnu_tar(&digits));
    assert!(layout.layer(1) == gnu_tar(&[("/srv/words/words.txt", b"one\ntwo\n")]));
    let app = format!("-rwxr-xr-x 0/0 {} 1970-01-01 00:00 usr/local/bin/app", binary.len());
    let folder = |path: &str| format!("drwxr-xr-x 0/0 0 1970-01-01 00:00 {path}/");
    let folders = ["models", "models/digits", "srv", "srv/words", "usr", "usr/local", "usr/local/bin"];
    let mut expect: Vec<String> = folders.into_iter().map(folder).collect();
    expect.push(app);
    assert_eq!(listed(&layout.layer(2)), expect);
}

#[test]
fn the_program_is_static_and_runs() {
    let workspace = Workspace::committed();
    let binary = workspace.path(format!("target/image/cargo/{}/release/app", triple()));
    let output = Command::new(&binary).env_clear().output().unwrap();
    assert_eq!(output.stdout, b"hello\n");
    // A dynamic program names its interpreter in a PT_INTERP header; a static one has no use for `ld-linux`.
    let bytes = fs::read(&binary).unwrap();
    assert!(!bytes.windows(9).any(|window| window == b"/ld-linux"));
}

#[test]
fn the_config_says_how_to_run_it_and_what_it_was_made_from() {
    let workspace = Workspace::locked();
    workspace.image(
        "ports = [9090, 8080, 9090]\nhealthcheck = [\"healthcheck\", \"--quick\"]\n\
         env = { B = \"two words $HOME\", A = \"\" }\nuser = \"1000:100\"",
    );
    let commit = workspace.commit_with_dockerfile();
    workspace.run(&["image", "--embed"]).expect(0);
    let config = Layout::read(&workspace.path(LAYOUT)).config;
    assert_eq!(config["created"], "2024-02-29T12:34:56Z");
    assert_eq!((&config["os"], &config["architecture"]), (&"linux".into(), &architecture().into()));
    assert_eq!(
        config["config"],
        json!({
            "User": "1000:100",
            "ExposedPorts": { "8080/tcp": {}, "9090/tcp": {} },
            "Env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "A=", "B=two words $HOME", format!("IMAGE_REVISION={commit}"),
            ],
            "Entrypoint": ["/usr/local/bin/app"],
            "Healthcheck": { "Test": ["CMD", "/usr/local/bin/app", "healthcheck", "--quick"] },
            "WorkingDir": "/",
            "Labels": {
                "io.github.model-lock.lock-digest": sha256(&workspace.read("models.lock")),
                "org.opencontainers.image.licenses": "Apache-2.0 AND MIT",
                "org.opencontainers.image.revision": commit,
                "org.opencontainers.image.source": "https://example.com/app",
                "org.opencontainers.image.title": "app",
                "org.opencontainers.image.version": "1.2.3",
            },
        })
    );
}

#[test]
fn the_user_is_nobody_in_particular_unless_declared() {
    let workspace = Workspace::committed();
    let config = Layout::read(&workspace.path(LAYOUT)).config;
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"].get("ExposedPorts"), None);
    assert_eq!(config["config"].get("Healthcheck"), None);
}

/// The revision and the time that the image would have.
fn revision(workspace: &Workspace, epoch: Option<&str>) -> (String, u64) {
    let plan = workspace.run_with(&["image", "--embed", "--dry-run"], |command| {
        epoch.map(|epoch| command.env("SOURCE_DATE_EPOCH", epoch));
    });
    let plan = plan.expect(0).json();
    (plan["revision"].as_str().unwrap().to_owned(), plan["created"].as_u64().unwrap())
}

#[test]
fn a_working_copy_that_differs_is_marked_dirty() {
    let workspace = Workspace::committed();
    let commit = workspace.git(&["rev-parse", "HEAD"]);
    let time = COMMIT_TIME.parse().unwrap();
    let dirty = (format!("{commit}-dirty"), time);
    assert_eq!(revision(&workspace, None), (commit.clone(), time));
    workspace.write("app/src/main.rs", "fn main() {}\n");
    assert_eq!(revision(&workspace, None), dirty);
    workspace.git(&["checkout", "--", "."]);
    assert_eq!(revision(&workspace, None), (commit.clone(), time));
    workspace.write("untracked", "");
    assert_eq!(revision(&workspace, None), dirty);
    workspace.remove("untracked");
    workspace.write("app/src/main.rs", "fn main() {}\n");
    workspace.git(&["add", "--all"]);
    assert_eq!(revision(&workspace, None), dirty);
    let output = workspace.run(&["image", "--embed", "--format", "json"]).expect(0).json();
    assert_eq!(output["revision"], dirty.0);
    workspace.remove(".git");
    assert_eq!(revision(&workspace, None), (String::new(), 0));
}

#[test]
fn no_setting_of_git_hides_that_the_working_copy_differs() {
    let workspace = Workspace::committed();
    let commit = workspace.git(&["rev-parse", "HEAD"]);
    workspace.write("app/src/untracked.rs", "");
    for (key, value) in
        [("status.showUntrackedFiles", "no"), ("status.short", "false"), ("status.relativePaths", "false")]
    {
        workspace.git(&["config", key, value]);
        assert_eq!(revision(&workspace, None).0, format!("{commit}-dirty"), "{key} = {value}");
    }
}

#[test]
fn source_date_epoch_wins_over_the_commits_time() {
    let workspace = Workspace::committed();
    let commit = workspace.git(&["rev-parse", "HEAD"]);
    assert_eq!(revision(&workspace, Some("68255999")), (commit.clone(), 68_255_999));
    assert_eq!(revision(&workspace, Some("0")), (commit.clone(), 0));
    assert_eq!(revision(&workspace, Some("")), (commit, COMMIT_TIME.parse().unwrap()));
    let epoch = |value: &str| {
        let value = value.to_owned();
        workspace.run_with(&["image", "--embed"], |command| {
            command.env("SOURCE_DATE_EPOCH", value);
        })
    };
    epoch("68255999").expect(0);
    assert_eq!(Layout::read(&workspace.path(LAYOUT)).config["created"], "1972-02-29T23:59:59Z");
    for bad in ["now", "-1", "1.5", " 1", "253402300800"] {
        epoch(bad).expect(2).says(&[
            &format!("error: failed to read `SOURCE_DATE_EPOCH={bad}`\n"),
            "  caused by: it is not a whole number of seconds since 1970\n",
        ]);
    }
}

#[test]
fn a_second_run_gives_the_same_digest_and_writes_no_layer() {
    let workspace = Workspace::committed();
    let first = workspace.run(&["image", "--embed"]).expect(0);
    let look = |path: PathBuf| path.metadata().map(|found| (found.ino(), found.mtime(), found.mtime_nsec())).unwrap();
    let layout = Layout::read(&workspace.path(LAYOUT));
    let looks = || -> Vec<_> {
        let layers = layout.layers.iter().map(|layer| layout.folder.join("blobs/sha256").join(&layer[7..]));
        let others = ["index.json", "manifest.json", "oci-layout"].map(|name| layout.folder.join(name));
        let dockerfiles = ["Dockerfile.embed", "Dockerfile.embed.dockerignore"].map(|name| workspace.path(name));
        layers.chain(others).chain(dockerfiles).map(look).collect()
    };
    let before = looks();
    let second = workspace.run(&["image", "--embed"]).expect(0).never_says(&["Rendered", "Staged"]);
    assert_eq!(second.digest(), first.digest());
    assert_eq!(looks(), before);
    Layout::read(&workspace.path(LAYOUT));
    for layer in &layout.layers {
        assert_eq!(mode(&layout.folder.join("blobs/sha256").join(&layer[7..])), 0o444);
    }
}

#[test]
fn the_digest_is_known_without_a_model_byte() {
    let workspace = Workspace::two_models();
    // Models that git does not have: their absence does not make the working copy dirty.
    workspace.write(".gitignore", "/target/\n/.context/\n/models/\n");
    workspace.run(&["lock"]).expect(0);
    workspace.commit_with_dockerfile();
    let built = workspace.run(&["image", "--embed"]).expect(0).digest();
    workspace.remove("models");
    workspace.remove("target/image/app");
    workspace.remove(".context");
    let printed = workspace.run(&["image", "--embed", "--print-digest"]).expect(0);
    assert_eq!(printed.digest(), built);
    assert!(!workspace.path("target/image/app").exists() && !workspace.path(".context").exists());
    workspace.run(&["image", "--embed"]).expect(1).says(&["error: 3 of 3 files do not match models.lock\n"]);
    assert!(!workspace.path(LAYOUT).join("index.json").exists());
}

#[test]
fn a_dry_run_prints_the_plan_and_builds_nothing() {
    let workspace = Workspace::locked();
    let before = workspace.files(".");
    let plan = workspace.run(&["image", "--embed", "--dry-run"]).expect(0).json();
    assert_eq!(workspace.files("."), before);
    let layers = locked_layers(&workspace);
    assert_eq!(
        plan["model-layers"],
        json!([
            { "model": "digits", "digest": layers[0], "size": 4096,
              "files": ["/models/digits/config.json", "/models/digits/model.safetensors"] },
            { "model": "words", "digest": layers[1], "size": 3072, "files": ["/srv/words/words.txt"] },
        ])
    );
    assert_eq!(
        (&plan["package"], &plan["mode"], &plan["reference"], &plan["base"], &plan["platform"], &plan["user"]),
        (
            &"app".into(),
            &"embed".into(),
            &"app:embed".into(),
            &"scratch".into(),
            &format!("linux/{}", architecture()).into(),
            &"65532:65532".into()
        )
    );
    assert_eq!(plan["app"], json!({ "path": "/usr/local/bin/app", "folders": ["/models/digits", "/srv/words"] }));
}

#[test]
fn a_flipped_bit_under_an_old_time_stamp_is_refused_after_a_build_that_was_right() {
    let workspace = Workspace::committed();
    // Until the files are settled (older than what a clock can tell apart) they are read each time anyway.
    std::thread::sleep(Duration::from_millis(3100));
    workspace.run(&["image", "--embed"]).expect(0);
    workspace.run(&["image", "--embed"]).expect(0).never_says(&["Verifying"]);
    let index = workspace.read(format!("{LAYOUT}/index.json"));
    let right = workspace.read("models/digits/model.safetensors");
    workspace.flip("models/digits/model.safetensors");
    let archive = workspace.path("target/x.tar");
    for arguments in [&["image", "--embed"][..], &["image", "--embed", "--output", archive.to_str().unwrap()]] {
        workspace.run(arguments).expect(1).says(&[
            "error: 1 of 3 files does not match models.lock\n  digits/model.safetensors has other bytes than models.lock \
             says\n",
            &format!("    expected {} (69 bytes)\n", sha256(&right)),
            &format!("    found    {} (69 bytes)\n", sha256(&workspace.read("models/digits/model.safetensors"))),
        ]);
        assert_eq!(workspace.read(format!("{LAYOUT}/index.json")), index);
        assert!(!archive.exists());
    }
    workspace.write("models/digits/model.safetensors", right);
    workspace.run(&["image", "--embed"]).expect(0);
    assert_eq!(workspace.read(format!("{LAYOUT}/index.json")), index);
}

#[test]
fn all_wrong_files_are_told_and_nothing_is_written() {
    let workspace = Workspace::locked();
    workspace.flip("models/digits/config.json");
    workspace.remove("models/words.txt");
    workspace.write("models/digits/extra.txt", "extra");
    for _ in 0..2 {
        workspace.run(&["image", "--embed"]).expect(1).says(&[
            "error: 2 of 3 files do not match models.lock, and 1 file is not in it\n",
            "  digits/config.json has other bytes than models.lock says\n",
            "  digits/extra.txt is not in models.lock\n",
            "  words/words.txt is missing\n",
        ]);
        assert!(!workspace.path(LAYOUT).join("index.json").exists());
        assert!(workspace.files(".context").is_empty());
    }
}

#[test]
fn output_is_a_folder_or_an_archive() {
    let workspace = Workspace::committed();
    let digest = workspace.run(&["image", "--embed"]).expect(0).digest();
    workspace.remove("target/image/app");
    workspace.remove(".context");
    let out = tempfile::tempdir().unwrap();
    let (folder, archive) = (out.path().join("layout"), out.path().join("x.tar"));
    let build = |path: &Path| workspace.run(&["image", "--embed", "--output", path.to_str().unwrap()]);
    assert_eq!(build(&folder).expect(0).digest(), digest);
    let layout = Layout::read(&folder);
    assert_eq!(layout.digest, digest);
    assert_eq!(build(&folder).expect(0).digest(), digest, "its own layout is replaced");
    assert_eq!(build(&archive).expect(0).digest(), digest);
    let unpacked = out.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let untar = Command::new("tar").arg("-xf").arg(&archive).current_dir(&unpacked).output().unwrap();
    assert!(untar.status.success() && untar.stderr.is_empty(), "{untar:?}");
    assert_eq!(Layout::read(&unpacked).digest, digest);
    assert_eq!(fs::read(unpacked.join("index.json")).unwrap(), fs::read(folder.join("index.json")).unwrap());
    assert_eq!(fs::read(unpacked.join("manifest.json")).unwrap(), fs::read(folder.join("manifest.json")).unwrap());
    let bytes = fs::read(&archive).unwrap();
    build(&archive).expect(0);
    assert!(fs::read(&archive).unwrap() == bytes, "an archive is a function of the image");
    assert!(!workspace.path("target/image/app").exists() && !workspace.path(".context").exists());
}

#[test]
fn an_output_that_would_lose_something_is_refused() {
    let workspace = Workspace::committed();
    let out = tempfile::tempdir().unwrap();
    let help = "  help: name a folder that is empty or does not exist, or remove this one\n";
    let refused = |path: &Path, arguments: &[&str], why: &str| {
        let shown = path.to_str().unwrap();
        workspace
            .run(&[&["image", "--embed", "--output", shown], arguments].concat())
            .expect(2)
            .says(&[&format!("error: `{shown}` {why}\n{help}")]);
    };
    let foreign = out.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.txt"), "years of work").unwrap();
    refused(&foreign, &[], "is not empty and not an OCI layout");
    assert_eq!(Workspace::at(&foreign).files("."), ["thesis.txt"]);
    let file = out.path().join("file");
    fs::write(&file, "x").unwrap();
    refused(&file, &[], "is not a folder");
    let link = out.path().join("link");
    std::os::unix::fs::symlink(&foreign, &link).unwrap();
    refused(&link, &[], "is not a folder");
    let layout = out.path().join("layout");
    workspace.run(&["image", "--embed", "--output", layout.to_str().unwrap(), "--tag", "other:v1"]).expect(0);
    let before = Layout::read(&layout).digest;
    refused(&layout, &[], "is an OCI layout that holds another image, `docker.io/library/other:v1`");
    assert_eq!(Layout::read(&layout).digest, before);
    let empty = out.path().join("empty");
    fs::create_dir(&empty).unwrap();
    workspace.run(&["image", "--embed", "--output", empty.to_str().unwrap()]).expect(0);
    // A folder with the name of an archive is not replaced either.
    let folder = out.path().join("folder.tar");
    fs::create_dir(&folder).unwrap();
    workspace.run(&["image", "--embed", "--output", folder.to_str().unwrap()]).expect(2);
    assert!(folder.is_dir());
    assert_eq!(Workspace::at(out.path()).files(".").iter().filter(|path| path.contains(".tmp")).count(), 0);
}

#[test]
fn a_tag_names_the_image() {
    let workspace = Workspace::committed();
    let untagged = workspace.run(&["image", "--embed"]).expect(0).digest();
    let tagged = workspace.run(&["image", "--embed", "--tag", "localhost:5000/team/app:v1"]).expect(0);
    assert_eq!(tagged.digest(), untagged, "a name is not part of the image");
    let layout = Layout::read(&workspace.path(LAYOUT));
    assert_eq!(layout.docker[0]["RepoTags"], json!(["localhost:5000/team/app:v1"]));
    assert_eq!(layout.descriptor["annotations"]["io.containerd.image.name"], "localhost:5000/team/app:v1");
    assert_eq!(layout.descriptor["annotations"]["org.opencontainers.image.ref.name"], "v1");
}

#[test]
fn what_a_killed_run_left_is_healed() {
    let workspace = Workspace::committed();
    let digest = workspace.run(&["image", "--embed"]).expect(0).digest();
    let layout = Layout::read(&workspace.path(LAYOUT));
    let blob = |digest: &str| format!("{LAYOUT}/blobs/sha256/{}", &digest[7..]);
    let first = &layout.layers[0];
    // Killed while it wrote a layer, another layer, and the staged context.
    workspace.remove(blob(first));
    workspace.write(format!("{LAYOUT}/blobs/sha256/.{}.tmp", &first[7..]), "half");
    workspace.write(format!("{LAYOUT}/blobs/sha256/.{}.tmp", "0".repeat(64)), "half");
    workspace.write(format!(".context/.{}.tmp/models/digits/config.json", &first[7..]), "half");
    workspace.write(format!(".context/.{}.tmp/models/x", "0".repeat(64)), "half");
    assert_eq!(workspace.run(&["image", "--embed"]).expect(0).digest(), digest);
    assert_eq!(Layout::read(&workspace.path(LAYOUT)).digest, digest);
    assert!(!workspace.files(".context").iter().any(|path| path.contains(".tmp")));
    // Killed before there was an index, and with stamps that are half a file.
    workspace.remove(format!("{LAYOUT}/index.json"));
    workspace.remove(format!("{LAYOUT}/manifest.json"));
    workspace.write("target/image/stamps.json", "{\"half");
    workspace.write("target/image/.stamps.json.tmp", "{\"half");
    workspace.write(format!("{LAYOUT}/.index.json.tmp"), "{\"half");
    assert_eq!(workspace.run(&["image", "--embed"]).expect(0).digest(), digest);
    Layout::read(&workspace.path(LAYOUT));
    assert!(!workspace.path(LAYOUT).join(".index.json.tmp").exists());
}

#[test]
fn blobs_with_other_bytes_are_healed() {
    let workspace = Workspace::committed();
    let digest = workspace.run(&["image", "--embed"]).expect(0).digest();
    let blobs: Vec<String> = workspace.files(LAYOUT).into_iter().filter(|path| path.starts_with("blobs/")).collect();
    assert_eq!(blobs.len(), 5);
    for blob in &blobs {
        let path = format!("{LAYOUT}/{blob}");
        fs::set_permissions(workspace.path(&path), fs::Permissions::from_mode(0o644)).unwrap();
        workspace.flip(&path);
        assert_eq!(workspace.run(&["image", "--embed"]).expect(0).digest(), digest);
        Layout::read(&workspace.path(LAYOUT));
    }
    for blob in &blobs {
        workspace.write(format!("{LAYOUT}/{blob}.cut"), "");
        fs::rename(workspace.path(format!("{LAYOUT}/{blob}.cut")), workspace.path(format!("{LAYOUT}/{blob}"))).unwrap();
    }
    assert_eq!(workspace.run(&["image", "--embed"]).expect(0).digest(), digest);
    Layout::read(&workspace.path(LAYOUT));
}

#[test]
fn an_index_that_was_edited_is_healed() {
    let workspace = Workspace::committed();
    let digest = workspace.run(&["image", "--embed"]).expect(0).digest();
    for (name, text) in [("index.json", "{}"), ("index.json", "not json"), ("manifest.json", "[]"), ("oci-layout", "")]
    {
        workspace.write(format!("{LAYOUT}/{name}"), text);
        assert_eq!(workspace.run(&["image", "--embed"]).expect(0).digest(), digest);
        assert_eq!(Layout::read(&workspace.path(LAYOUT)).digest, digest);
    }
}

#[test]
fn a_full_disk_leaves_the_old_image() {
    let workspace = Workspace::new("[workspace.metadata.models.m]\nsource = \"models/m.dat\"\n");
    workspace.write("models/m.dat", noise(1, 1000));
    workspace.run(&["lock"]).expect(0);
    workspace.commit_with_dockerfile();
    let old = workspace.run(&["image", "--embed"]).expect(0).digest();
    workspace.write("models/m.dat", noise(2, 4 << 20));
    workspace.run(&["lock"]).expect(0);
    let before = workspace.files(LAYOUT);
    // A limit of 3 MiB on every file: the program fits, the model's layer does not.
    let script = "trap '' XFSZ; ulimit -f 6144; exec \"$@\"";
    workspace.run_through(script, &["image", "--embed"]).expect(2).says(&[
        "error: failed to write the layer of model `m` to `[ROOT]/target/image/app/embed/oci/blobs/sha256/",
        "File too large",
    ]);
    assert_eq!(workspace.files(LAYOUT), before);
    assert_eq!(Layout::read(&workspace.path(LAYOUT)).digest, old);
    let archive = workspace.path("target/x.tar");
    fs::write(&archive, "the old archive").unwrap();
    workspace
        .run_through(script, &["image", "--embed", "--output", archive.to_str().unwrap()])
        .expect(2)
        .says(&["File too large"]);
    assert_eq!(fs::read(&archive).unwrap(), b"the old archive");
    assert!(!workspace.path("target/.x.tar.tmp").exists());
    let new = workspace.run(&["image", "--embed"]).expect(0).digest();
    assert_ne!(new, old);
    assert_eq!(Layout::read(&workspace.path(LAYOUT)).digest, new);
}

#[test]
fn a_run_that_is_killed_at_any_time_leaves_the_old_image_or_the_new_one() {
    let workspace = Workspace::new("[workspace.metadata.models.m]\nsource = \"models\"\n");
    workspace.write("models/a.dat", noise(1, 6 << 20));
    workspace.write("models/b.dat", noise(2, 6 << 20));
    workspace.run(&["lock"]).expect(0);
    workspace.commit_with_dockerfile();
    let mut old = workspace.run(&["image", "--embed"]).expect(0).digest();
    for round in 0..5u64 {
        workspace.write("models/a.dat", noise(10 + round, 6 << 20));
        workspace.run(&["lock"]).expect(0);
        let new = workspace.run(&["image", "--embed", "--print-digest"]).expect(0).digest();
        let mut child = workspace.command();
        child.args(["image", "--embed"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = child.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(90 + 40 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let index = parse(&workspace.path(LAYOUT).join("index.json"));
        let named = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        assert!([&old, &new].contains(&&named), "{named} is neither {old} nor {new}");
        // What the index names is there, whatever else was left beside it.
        let blobs = workspace.path(LAYOUT).join("blobs/sha256");
        let manifest = fs::read(blobs.join(&named[7..])).unwrap();
        assert_eq!(sha256(&manifest), named);
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        for layer in manifest["layers"].as_array().unwrap() {
            let digest = layer["digest"].as_str().unwrap();
            assert_eq!(sha256(&fs::read(blobs.join(&digest[7..])).unwrap()), digest);
        }
        assert_eq!(workspace.run(&["image", "--embed"]).expect(0).digest(), new);
        assert_eq!(Layout::read(&workspace.path(LAYOUT)).digest, new);
        assert!(!workspace.files(".context").iter().any(|path| path.contains(".tmp")));
        old = new;
    }
}

#[test]
fn check_compares_the_dockerfile_and_writes_nothing() {
    let workspace = Workspace::locked();
    let help = "  help: run `cargo xtask image --embed` and commit Dockerfile.embed\n";
    let check = || workspace.run(&["image", "--embed", "--check"]);
    check().expect(1).says_exactly(&format!("error: `Dockerfile.embed` does not exist\n{help}"));
    assert!(!workspace.path("Dockerfile.embed").exists());
    workspace.run(&["image", "--embed"]).expect(0);
    let output =
        check().expect(0).says_exactly("     Checked Dockerfile.embed and Dockerfile.embed.dockerignore: up to date\n");
    assert_eq!(output.stdout, "");
    let text = workspace.text("Dockerfile.embed");
    workspace.write("Dockerfile.embed", text.replace('\n', "\r\n"));
    check().expect(0);
    workspace.write("Dockerfile.embed", text.replace("USER 65532:65532", "USER 0:0"));
    check().expect(1).says(&[
        "error: `Dockerfile.embed` is out of date\n  --- Dockerfile.embed\n  +++ expected\n",
        "\n  -USER 0:0\n  +USER 65532:65532\n",
        help,
    ]);
    let document = workspace.run(&["image", "--embed", "--check", "--format", "json"]).expect(1).json();
    assert_eq!((&document["ok"], &document["error"]["code"]), (&false.into(), &3.into()));
    workspace.write("Dockerfile.embed", &text);
    workspace.write("Dockerfile.embed.dockerignore", "");
    check().expect(1).says(&["error: `Dockerfile.embed.dockerignore` is out of date\n"]);
    workspace.run(&["image", "--embed"]).expect(0).says(&["    Rendered Dockerfile.embed.dockerignore\n"]);
    check().expect(0);
    // It reads no model and does not build.
    workspace.remove("models");
    workspace.remove("target");
    check().expect(0);
    assert!(!workspace.path("target").exists());
}

#[test]
fn a_base_other_than_scratch_waits_for_the_registry() {
    let workspace = Workspace::locked();
    workspace.image(&format!("base = \"debian:12@{}\"", sha256(b"")));
    workspace.run(&["image", "--embed"]).expect(2).says(&[
        "error: the built-in builder makes images on `scratch` only, so far\n  help: build `Dockerfile.embed` with `docker \
         buildx build`, or set `base = \"scratch\"`\n",
    ]);
    assert!(!workspace.path(LAYOUT).exists());
    let text = workspace.text("Dockerfile.embed");
    assert!(text.contains(&format!("\nARG BASE=debian:12@{}\n", sha256(b""))), "{text}");
}

/// A second package with an image.
fn add_package(workspace: &Workspace, name: &str) {
    workspace.replace("Cargo.toml", "members = [\"app\"]", &format!("members = [\"app\", {name:?}]"));
    let manifest =
        format!("[package]\nname = {name:?}\nversion = \"2.0.0\"\nedition = \"2024\"\n\n[package.metadata.image]\n");
    workspace.write(format!("{name}/Cargo.toml"), format!("{manifest}models = [\"words\"]\n"));
    workspace.write(format!("{name}/src/main.rs"), "fn main() {}\n");
    workspace.write(
        "Cargo.lock",
        workspace.text("Cargo.lock") + &format!("\n[[package]]\nname = {name:?}\nversion = \"2.0.0\"\n"),
    );
}

#[test]
fn a_package_is_chosen_by_name() {
    let workspace = Workspace::locked();
    workspace
        .run(&["image", "--embed", "-p", "ap"])
        .expect(2)
        .says_exactly("error: package `ap` declares no image\n  help: did you mean `-p app`?\n");
    workspace.run(&["image", "--embed", "-p", "service"]).expect(2).says_exactly(
        "error: package `service` declares no image\n  help: add `[package.metadata.image]` to the Cargo.toml of \
         `service`\n",
    );
    workspace.run(&["image", "--embed", "-p", "app"]).expect(0);
    add_package(&workspace, "worker");
    workspace
        .run(&["image", "--embed"])
        .expect(2)
        .says_exactly("error: 2 packages declare an image\n  help: choose one with `-p`: app, worker\n");
    workspace.run(&["image", "--embed", "-p", "worker"]).expect(0);
    let worker = Layout::read(&workspace.path("target/image/worker/embed/oci"));
    assert_eq!(worker.layers[0], locked_layers(&workspace)[1], "only the models that it names");
    assert_eq!(worker.layers.len(), 2);
    assert_eq!(worker.config["config"]["Labels"]["org.opencontainers.image.version"], "2.0.0");
    assert!(workspace.path("worker/Dockerfile.embed").exists(), "beside the package where there are several");
    workspace.replace("app/Cargo.toml", "[package.metadata.image]", "");
    workspace.replace("worker/Cargo.toml", "[package.metadata.image]\nmodels = [\"words\"]\n", "");
    workspace.run(&["image", "--embed"]).expect(2).says_exactly(
        "error: no package of this workspace declares an image\n  help: add `[package.metadata.image]` to the Cargo.toml \
         of the app\n",
    );
}

#[test]
fn both_ways_have_the_same_app_layer_and_a_model_can_choose_its_own() {
    let workspace = Workspace::committed();
    workspace.run(&["image", "--embed"]).expect(0);
    let embed = Layout::read(&workspace.path(LAYOUT));
    workspace.run(&["image", "--mount"]).expect(0);
    let mount = Layout::read(&workspace.path("target/image/app/mount/oci"));
    assert_eq!(mount.layers, embed.layers[2..]);
    workspace.replace("Cargo.toml", "license = \"MIT\"", "license = \"MIT\"\nstrategy = \"mount\"");
    workspace.run(&["image", "--embed"]).expect(0);
    assert_eq!(Layout::read(&workspace.path(LAYOUT)).layers, embed.layers[1..]);
    workspace.replace("Cargo.toml", "strategy = \"mount\"", "strategy = \"embed\"");
    workspace.run(&["image", "--mount"]).expect(0);
    let hybrid = Layout::read(&workspace.path("target/image/app/mount/oci"));
    assert_eq!(hybrid.layers, [embed.layers[0].clone(), embed.layers[2].clone()]);
}

#[test]
fn code_that_does_not_compile_is_told_and_leaves_the_old_image() {
    let workspace = Workspace::committed();
    let old = workspace.run(&["image", "--embed"]).expect(0).digest();
    workspace.write("app/src/main.rs", "fn main() { nonsense }\n");
    workspace
        .run(&["image", "--embed"])
        .expect(2)
        .says(&["cannot find value `nonsense`", &format!("error: failed to compile `app` for `{}`\n", triple())]);
    assert_eq!(Layout::read(&workspace.path(LAYOUT)).digest, old);
    workspace.remove("Cargo.lock");
    workspace.run(&["image", "--embed"]).expect(2).says(&["--locked was passed"]);
    assert!(!workspace.path("Cargo.lock").exists(), "Cargo.lock is not written either");
}

#[test]
fn what_cargo_leaves_running_is_not_waited_for() {
    let workspace = Workspace::committed();
    let leave = "if [ \"$1\" = build ]; then sleep 300 & echo $! > target/sleeping; fi";
    let script = format!("#!/bin/sh\n{leave}\nexec {:?} \"$@\"\n", env!("CARGO"));
    workspace.write("target/cargo", script);
    fs::set_permissions(workspace.path("target/cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    let cargo = workspace.path("target/cargo");
    workspace.run_with(&["image", "--embed"], |command| _ = command.env("CARGO", cargo)).expect(0);
    let sleeping = workspace.text("target/sleeping");
    let killed = Command::new("kill").arg(sleeping.trim()).status().unwrap();
    assert!(killed.success(), "it still sleeps");
}

#[test]
fn a_platform_without_a_target_is_refused() {
    let workspace = Workspace::locked();
    workspace
        .run(&["image", "--embed", "--platform", "linux/z80"])
        .expect(2)
        .says(&["error: no target is known for the platform `linux/z80`\n  help: known are linux/amd64, linux/arm64"]);
    workspace.image("target = \"aarch64-unknown-linux-musl\"");
    workspace
        .run(&["image", "--embed", "--platform", "linux/amd64"])
        .expect(2)
        .says(&["error: the declared target `aarch64-unknown-linux-musl` is not for the platform `linux/amd64`\n"]);
}

#[test]
fn the_context_holds_the_files_under_the_digest_of_their_layer() {
    let workspace = Workspace::committed();
    fs::set_permissions(workspace.path("models/words.txt"), fs::Permissions::from_mode(0o4600)).unwrap();
    workspace.remove(".context");
    workspace
        .run_through("umask 077; exec \"$@\"", &["image", "--embed"])
        .expect(0)
        .says(&["      Staged 86 B in .context"]);
    let hexes: Vec<String> = locked_layers(&workspace).iter().map(|layer| layer[7..].to_owned()).collect();
    let expect: BTreeSet<String> = [
        format!("{}/models/digits/config.json", hexes[0]),
        format!("{}/models/digits/model.safetensors", hexes[0]),
        format!("{}/srv/words/words.txt", hexes[1]),
    ]
    .into();
    assert_eq!(workspace.files(".context").into_iter().collect::<BTreeSet<_>>(), expect);
    assert_eq!(workspace.read(format!(".context/{}/srv/words/words.txt", hexes[1])), b"one\ntwo\n");
    for file in &expect {
        let at = workspace.path(".context").join(file);
        assert_eq!((mode(&at), at.metadata().unwrap().mtime()), (0o644, 0), "{file}");
        for folder in Path::new(file).ancestors().skip(1).filter(|folder| *folder != Path::new("")) {
            let at = workspace.path(".context").join(folder);
            assert_eq!((mode(&at), at.metadata().unwrap().mtime()), (0o755, 0), "{}", folder.display());
        }
    }
}

#[test]
fn a_context_that_was_tampered_with_is_staged_again() {
    let workspace = Workspace::committed();
    workspace.run(&["image", "--embed"]).expect(0);
    let before = workspace.files(".context");
    let hex = locked_layers(&workspace)[0][7..].to_owned();
    let staged = format!(".context/{hex}/models/digits");
    workspace.flip(&format!("{staged}/config.json"));
    workspace.run(&["image", "--embed"]).expect(0).says(&["      Staged 78 B"]);
    assert_eq!(workspace.read(format!("{staged}/config.json")), workspace.read("models/digits/config.json"));
    workspace.remove(format!("{staged}/config.json"));
    workspace.run(&["image", "--embed"]).expect(0).says(&["      Staged 78 B"]);
    assert_eq!(workspace.files(".context"), before);
    // `COPY --link FOLDER/ /` takes the whole folder: what models.lock does not have must not be in it.
    workspace.write(format!("{staged}/backdoor.so"), "x");
    workspace.run(&["image", "--embed"]).expect(0);
    assert_eq!(workspace.files(".context"), before);
}

#[test]
fn layers_that_the_lock_no_longer_has_are_removed() {
    let workspace = Workspace::committed();
    workspace.run(&["image", "--embed"]).expect(0);
    let old = locked_layers(&workspace);
    workspace.write(".context/notes.txt", "somebody's own");
    workspace.write("models/words.txt", "three\n");
    workspace.run(&["lock"]).expect(0);
    workspace.run(&["image", "--embed"]).expect(0);
    let new = locked_layers(&workspace);
    assert_eq!(new[0], old[0]);
    assert!(!workspace.path(".context").join(&old[1][7..]).exists());
    assert!(workspace.path(".context").join(&new[0][7..]).exists());
    assert!(workspace.path(".context").join(&new[1][7..]).exists());
    assert!(workspace.path(".context/notes.txt").exists(), "only what it has put there");
    Layout::read(&workspace.path(LAYOUT));
}

#[test]
fn json_names_everything() {
    let workspace = Workspace::committed();
    let output = workspace.run(&["image", "--embed", "--format", "json"]).expect(0).json();
    let layout = Layout::read(&workspace.path(LAYOUT));
    let expect = json!({
        "ok": true, "digest": layout.digest, "reference": "app:embed", "platform": format!("linux/{}", architecture()), "mode": "embed",
        "revision": workspace.git(&["rev-parse", "HEAD"]), "path": format!("[ROOT]/{LAYOUT}"),
    });
    for (key, value) in expect.as_object().unwrap() {
        assert_eq!(&output[key], value, "{key}");
    }
    let digests: Vec<&str> = (0..3).map(|index| output["layers"][index]["digest"].as_str().unwrap()).collect();
    assert_eq!(digests, layout.layers);
    let models: Vec<&Value> = (0..3).map(|index| &output["layers"][index]["model"]).collect();
    assert_eq!(models, [&json!("digits"), &json!("words"), &json!(null)]);
}

#[test]
fn runs_at_the_same_time_do_not_disturb_each_other() {
    let workspace = Workspace::committed();
    let digest = workspace.run(&["image", "--embed"]).expect(0).digest();
    workspace.remove("target/image/app");
    workspace.remove(".context");
    let digests: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> =
            (0..4).map(|_| scope.spawn(|| workspace.run(&["image", "--embed"]).expect(0).digest())).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(digests.iter().all(|other| *other == digest), "{digests:?}");
    assert_eq!(Layout::read(&workspace.path(LAYOUT)).digest, digest);
}

/// What a change to a committed workspace may change in the image.
struct Expectation {
    /// The digest of the manifest.
    manifest: bool,
    /// The models whose layers change.
    models: &'static [&'static str],
    /// The layer of the app.
    app: bool,
}

/// The digests of an image by what they belong to.
fn layers_of(workspace: &Workspace) -> (String, BTreeMap<String, Vec<String>>) {
    workspace.run(&["lock"]).expect(0);
    workspace.commit_with_dockerfile();
    let output = workspace.run(&["image", "--embed", "--format", "json"]).expect(0).json();
    assert!(!output["revision"].as_str().unwrap().contains("dirty"));
    let mut layers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for layer in output["layers"].as_array().unwrap() {
        let owner = layer["model"].as_str().unwrap_or("the app").to_owned();
        layers.entry(owner).or_default().push(layer["digest"].as_str().unwrap().to_owned());
    }
    (output["digest"].as_str().unwrap().to_owned(), layers)
}

#[test]
fn a_change_changes_what_it_touches_and_nothing_else() {
    type Scenario = (&'static str, fn(&Workspace), Expectation);
    let scenarios: [Scenario; 10] = [
        ("nothing", |_| {}, Expectation { manifest: true, models: &[], app: false }),
        (
            "the README",
            |workspace| workspace.write("README.md", "# Changed\n"),
            Expectation { manifest: true, models: &[], app: false },
        ),
        (
            "code",
            |workspace| workspace.replace("app/src/main.rs", "hello", "good day"),
            Expectation { manifest: true, models: &[], app: true },
        ),
        (
            "a comment in the code",
            |workspace| workspace.replace("app/src/main.rs", "}\n", "}\n// A comment.\n"),
            Expectation { manifest: true, models: &[], app: false },
        ),
        (
            "one of two models",
            |workspace| workspace.write("models/digits/model.safetensors", safetensors(&[9, 2, 3, 4, 5, 6, 7, 8])),
            Expectation { manifest: true, models: &["digits"], app: false },
        ),
        (
            "the other model",
            |workspace| workspace.write("models/words.txt", "one\ntwo\nthree\n"),
            Expectation { manifest: true, models: &["words"], app: false },
        ),
        (
            "the order of the declaration",
            |workspace| {
                let (digits, words) = TWO_MODELS.split_once("\n\n").unwrap();
                workspace.declare(&format!("{words}\n{digits}\n"));
            },
            Expectation { manifest: true, models: &[], app: false },
        ),
        (
            "a target",
            |workspace| workspace.replace("Cargo.toml", "/srv/words", "/srv/other"),
            // The app's layer has the targets as empty folders, so that a mount finds its place.
            Expectation { manifest: true, models: &["words"], app: true },
        ),
        (
            "a license",
            |workspace| workspace.replace("Cargo.toml", "\"MIT\"", "\"ISC\""),
            Expectation { manifest: true, models: &[], app: false },
        ),
        (
            "the image's environment",
            |workspace| workspace.image("env = { A = \"1\" }\nports = [80]"),
            Expectation { manifest: true, models: &[], app: false },
        ),
    ];
    let workspace = Workspace::locked();
    let before = layers_of(&workspace);
    assert_eq!(before.1.keys().collect::<Vec<_>>(), ["digits", "the app", "words"]);
    let start = workspace.git(&["rev-parse", "HEAD"]);
    for (what, change, expect) in scenarios {
        workspace.git(&["reset", "--quiet", "--hard", &start]);
        change(&workspace);
        let after = layers_of(&workspace);
        assert_eq!(after.0 != before.0, expect.manifest, "the manifest after a change of {what}");
        for (owner, layers) in &before.1 {
            let may = if owner == "the app" { expect.app } else { expect.models.contains(&owner.as_str()) };
            assert_eq!(after.1[owner] != *layers, may, "the layers of {owner} after a change of {what}");
        }
        assert_eq!(after.1.len(), before.1.len());
    }
}

#[test]
fn the_order_of_the_declaration_changes_no_byte() {
    // Outside git, so that no commit's id is in the image.
    let workspace = Workspace::locked();
    let before = workspace.run(&["image", "--embed"]).expect(0).digest();
    let dockerfile = workspace.text("Dockerfile.embed");
    let (digits, words) = TWO_MODELS.split_once("\n\n").unwrap();
    workspace.declare(&format!("{words}\n{digits}\n"));
    workspace.image("models = [\"words\", \"digits\"]");
    assert_eq!(workspace.run(&["image", "--embed"]).expect(0).never_says(&["Rendered"]).digest(), before);
    assert_eq!(workspace.text("Dockerfile.embed"), dockerfile);
}

#[test]
fn one_changed_file_of_a_large_model_changes_one_layer() {
    let workspace = Workspace::new("[workspace.metadata.models.m]\nsource = \"models\"\n");
    for name in ["a", "b", "c"] {
        workspace.write(format!("models/{name}.dat"), noise(u64::from(name.as_bytes()[0]), 4 << 20));
    }
    workspace.write("models/config.json", "{}");
    let before = layers_of(&workspace);
    workspace.write("models/b.dat", noise(1, 4 << 20));
    let after = layers_of(&workspace);
    let same = |owner: &str| -> Vec<bool> {
        before.1[owner].iter().zip(&after.1[owner]).map(|(before, after)| before == after).collect()
    };
    assert_eq!(same("m"), [true, false, true, true]);
    assert_eq!(same("the app"), [true]);
}
