//! The images and the runtime manifest in front of the tools that other people wrote. Run by
//! `cargo test -p xtask --features lab-tests --test lab`; every part that is not there is a failure, not a skip.
//!
//! ```text
//! MODEL_LOCK_TEST_TOOLS       a program that runs crane, skopeo, umoci, docker compose, kubectl, quadlet: `TOOLS crane …`
//! MODEL_LOCK_TEST_PYTHON      a folder with check-jsonschema, kubernetes-validate
//! MODEL_LOCK_TEST_ENGINE      a current Docker Engine, such as unix:///run/docker.sock
//! MODEL_LOCK_TEST_OLD_ENGINE  Docker Engine 20.10
//! MODEL_LOCK_TEST_REGISTRY    a registry over HTTP, such as 127.0.0.1:5000
//! MODEL_LOCK_TEST_BUILDER     an image with Rust in that registry, by digest
//! ```

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

#[expect(clippy::disallowed_methods, reason = "the tests are told by the environment where the tools are")]
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: see the head of tests/lab.rs"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// One test at a time: they share the workspace's target folder, an engine's tags and a port.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs it and gives its stdout; anything but success is a failure of the test.
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn xtask(arguments: &[&str]) -> String {
    xtask_in(&root(), arguments)
}

fn xtask_in(folder: &Path, arguments: &[&str]) -> String {
    succeed(
        Command::new(env!("CARGO_BIN_EXE_xtask")).args(arguments).current_dir(folder).env_remove("SOURCE_DATE_EPOCH"),
    )
}

fn tool(arguments: &[&str]) -> String {
    succeed(Command::new(variable("MODEL_LOCK_TEST_TOOLS")).args(arguments).current_dir(root()))
}

fn python(program: &str, arguments: &[&str]) -> String {
    let program = Path::new(&variable("MODEL_LOCK_TEST_PYTHON")).join(program);
    succeed(Command::new(program).args(arguments).current_dir(root()))
}

fn docker(engine: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.args(arguments).env("DOCKER_HOST", variable(engine)).current_dir(root());
    command
}

const NEW: &str = "MODEL_LOCK_TEST_ENGINE";
const OLD: &str = "MODEL_LOCK_TEST_OLD_ENGINE";

fn json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The layer digests that models.lock names, each once, in its order.
fn locked_layers(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("models.lock")).unwrap();
    let lock = model_lock::codec::parse(&text).unwrap();
    let layers = lock.models().iter().flat_map(model_lock::LockedModel::layers);
    layers.map(|(layer, _)| layer.digest.to_string()).collect()
}

/// The layers of the image in a layout, lowest first.
fn layers(layout: &Path) -> Vec<String> {
    let blob = |digest: &Value| json(&layout.join("blobs/sha256").join(&digest.as_str().unwrap()["sha256:".len()..]));
    let manifest = blob(&json(&layout.join("index.json"))["manifests"][0]["digest"]);
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
}

fn diff_ids(engine: &str, image: &str) -> Vec<String> {
    let text = succeed(&mut docker(engine, &["image", "inspect", image, "--format", "{{json .RootFS.Layers}}"]));
    serde_json::from_str(&text).unwrap()
}

fn load(engine: &str, layout: &Path) {
    let layout = layout.to_str().unwrap();
    let mut tar =
        Command::new("tar").args(["-C", layout, "-c", "."]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    succeed(docker(engine, &["load", "--quiet"]).stdin(tar.stdout.take().unwrap()));
    assert!(tar.wait().unwrap().success());
}

/// A container on the host's network, removed when the test is over, however it ends.
struct Container {
    engine: &'static str,
    id: String,
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = docker(self.engine, &["rm", "--force", &self.id]).output();
    }
}

const ADDRESS: &str = "127.0.0.1:18217";

impl Container {
    fn run(engine: &'static str, image: &str) -> Self {
        let listen = format!("LISTEN={ADDRESS}");
        let arguments =
            ["run", "--detach", "--network", "host", "--read-only", "--cap-drop", "ALL", "--env", &listen, image];
        Self::started(engine, succeed(&mut docker(engine, &arguments)))
    }

    fn started(engine: &'static str, id: String) -> Self {
        let container = Self { engine, id };
        let start = Instant::now();
        while !Command::new("curl")
            .args(["-fs", &format!("http://{ADDRESS}/healthz")])
            .output()
            .unwrap()
            .status
            .success()
        {
            assert!(start.elapsed() < Duration::from_secs(30), "{}", container.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
        container
    }

    fn logs(&self) -> String {
        text(&docker(self.engine, &["logs", &self.id]).output().unwrap())
    }
}

/// What the running app answers to the first held-out digits, each with the right label.
fn answers() -> Vec<Value> {
    let samples = json(&root().join("app/tests/heldout.json"));
    let samples = samples.as_array().unwrap();
    let ask = |sample: &Value| {
        let body = serde_json::json!({ "pixels": sample["pixels"] }).to_string();
        let url = format!("http://{ADDRESS}/v1/predict");
        let answer =
            succeed(Command::new("curl").args(["-fs", &url, "-H", "content-type: application/json", "-d", &body]));
        serde_json::from_str::<Value>(&answer).unwrap()
    };
    let answers: Vec<Value> = samples.iter().take(40).map(ask).collect();
    let right = answers.iter().zip(samples).filter(|(answer, sample)| answer["label"] == sample["label"]).count();
    assert!(right >= 39, "{right} of 40 right");
    answers
}

#[test]
fn other_tools_accept_the_layout_and_find_the_models_of_the_lock_in_it() {
    let _alone = alone();
    let digest = xtask(&["image", "--embed"]);
    let layout = root().join("target/image/app/embed/oci");
    let source = format!("oci:{}:embed", layout.display());
    assert_eq!(tool(&["skopeo", "inspect", "--format", "{{.Digest}}", &source]), digest);
    let reference = format!("{}/app:embed", variable("MODEL_LOCK_TEST_REGISTRY"));
    tool(&["crane", "push", "--insecure", layout.to_str().unwrap(), &reference]);
    // Without `--fast` crane puts every layer of a registry through gunzip, also one that says it is not compressed.
    tool(&["crane", "validate", "--insecure", "--fast", "--remote", &reference]);
    assert_eq!(tool(&["crane", "digest", "--insecure", &reference]), digest);
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("app.tar");
    assert_eq!(xtask(&["image", "--embed", "--output", archive.to_str().unwrap()]), digest);
    tool(&["crane", "validate", "--tarball", archive.to_str().unwrap()]);
    let unpacked = folder.path().join("bundle");
    let image = format!("{}:embed", layout.display());
    tool(&["umoci", "unpack", "--rootless", "--image", &image, unpacked.to_str().unwrap()]);
    let lock = model_lock::codec::parse(&std::fs::read_to_string(root().join("models.lock")).unwrap()).unwrap();
    for file in lock.models().iter().flat_map(model_lock::LockedModel::model_files) {
        let at = unpacked.join("rootfs").join(&file.in_container()[1..]);
        assert_eq!(model_lock::Digest::of(&std::fs::read(&at).unwrap()), file.digest, "{}", at.display());
    }
}

#[test]
fn engines_load_it_under_its_own_id_and_it_answers_with_nothing_allowed() {
    let _alone = alone();
    let digest = xtask(&["image", "--embed"]);
    let layout = root().join("target/image/app/embed/oci");
    let manifest = json(&layout.join("blobs/sha256").join(&digest[7..]));
    for (engine, id) in [(NEW, digest.as_str()), (OLD, manifest["config"]["digest"].as_str().unwrap())] {
        load(engine, &layout);
        assert_eq!(succeed(&mut docker(engine, &["image", "inspect", "app:embed", "--format", "{{.Id}}"])), id);
        assert_eq!(diff_ids(engine, "app:embed"), layers(&layout));
        let container = Container::run(engine, "app:embed");
        answers();
        let user = ["inspect", &container.id, "--format", "{{.Config.User}}"];
        assert_eq!(succeed(&mut docker(engine, &user)), "65532:65532");
    }
}

/// A plain `docker buildx build` of one of the Dockerfiles in `folder`. All have the same arguments, so that the app is
/// compiled once.
fn plain_build(folder: &Path, mode: &str) -> Command {
    let builder = format!("BUILDER={}", variable("MODEL_LOCK_TEST_BUILDER"));
    let mut command = docker(NEW, &["buildx", "build", "--progress", "plain", "--network", "host"]);
    for argument in [&builder, "SOURCE_DATE_EPOCH=0", "REVISION=abc"] {
        command.args(["--build-arg", argument]);
    }
    let (file, tag) = (format!("Dockerfile.{mode}"), format!("app-plain:{mode}"));
    command.args(["--file", &file, "--tag", &tag, "."]).current_dir(folder);
    command
}

#[test]
fn buildkit_makes_the_same_model_layers_of_the_dockerfiles() {
    let _alone = alone();
    for mode in ["embed", "mount"] {
        xtask(&["image", &format!("--{mode}")]);
        succeed(&mut plain_build(&root(), mode));
        let tag = format!("app-plain:{mode}");
        let built = diff_ids(NEW, &tag);
        let expected = if mode == "embed" { locked_layers(&root()) } else { Vec::new() };
        assert_eq!(built[..built.len() - 1], expected, "{mode}");
        let format = ["image", "inspect", &tag, "--format", "{{json .Config}}"];
        let config: Value = serde_json::from_str(&succeed(&mut docker(NEW, &format))).unwrap();
        let layout = root().join(format!("target/image/app/{mode}/oci"));
        let blob = |digest: &Value| json(&layout.join("blobs/sha256").join(&digest.as_str().unwrap()[7..]));
        let manifest = blob(&json(&layout.join("index.json"))["manifests"][0]["digest"]);
        let ours = &blob(&manifest["config"]["digest"])["config"];
        for key in ["User", "ExposedPorts", "Entrypoint", "Healthcheck"] {
            assert_eq!(config[key], ours[key], "{mode}: {key}");
        }
        let (mut labels, mut env) = (ours["Labels"].clone(), ours["Env"].clone());
        labels["org.opencontainers.image.revision"] = "abc".into();
        let revision =
            env.as_array_mut().unwrap().iter_mut().find(|entry| entry.as_str().unwrap().starts_with("IMAGE_REVISION="));
        *revision.unwrap() = "IMAGE_REVISION=abc".into();
        assert_eq!((&config["Labels"], &config["Env"]), (&labels, &env), "{mode}");
    }
    let container = Container::run(NEW, "app-plain:embed");
    answers();
    drop(container);
}

#[test]
fn a_plain_build_refuses_wrong_bytes_in_the_context() {
    let _alone = alone();
    xtask(&["image", "--embed"]);
    let lock = std::fs::read_to_string(root().join("models.lock")).unwrap();
    let lock = model_lock::codec::parse(&lock).unwrap();
    let model = lock.model("digits").unwrap();
    let file = &model.files[0];
    // In a folder of its own: a builder that saw wrong bytes in a folder does not forget it, as `context` says.
    let temporary = tempfile::tempdir().unwrap();
    let parts = ["Cargo.toml", "Cargo.lock", "models.lock", "app", "model-lock", "xtask", ".cargo", ".context"];
    let files = ["Dockerfile.embed", "Dockerfile.embed.dockerignore"];
    let mut copy = Command::new("cp");
    succeed(copy.arg("-a").args(parts).args(files).arg(temporary.path()).current_dir(root()));
    let layer = temporary.path().join(".context").join(file.layer.digest.hex());
    let staged = layer.join(&model.target.join(&file.path)[1..]);
    let mut bytes = std::fs::read(&staged).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&staged, &bytes).unwrap();
    let output = plain_build(temporary.path(), "embed").output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains("README.md: FAILED"), "{}", text(&output));
}

#[test]
fn the_lean_image_answers_as_the_embedded_one_from_every_kind_of_mount() {
    let _alone = alone();
    xtask(&["image", "--embed"]);
    let embedded = root().join("target/image/app/embed/oci");
    load(NEW, &embedded);
    let container = Container::run(NEW, "app:embed");
    let expected = answers();
    drop(container);
    xtask(&["image", "--mount", "--model-image"]);
    let folder = root().join("target/image/app/mount");
    // The same app layer byte for byte, and the model layers of the lock in the model image.
    assert_eq!(layers(&embedded)[..], [locked_layers(&root()), layers(&folder.join("oci"))].concat());
    assert_eq!(layers(&folder.join("models-oci")), locked_layers(&root()));
    let volume = "model-lock-test-models";
    succeed(&mut docker(NEW, &["volume", "create", volume]));
    fill(volume);
    for from in ["bind", "volume", "image"] {
        let mut script = Command::new(folder.join("run.sh"));
        script.args(["--network", "host", "--env", &format!("LISTEN={ADDRESS}"), "--detach"]);
        script.env("DOCKER_HOST", variable(NEW)).env("MODELS_FROM", from).env("MODELS_VOLUME", volume);
        let container = Container::started(NEW, succeed(&mut script));
        assert_eq!(answers(), expected, "{from}");
        drop(container);
    }
    succeed(&mut docker(NEW, &["volume", "rm", volume]));
}

/// Copies the models into a volume through a container that never starts.
fn fill(volume: &str) {
    let mount = format!("type=volume,source={volume},target=/models");
    load(NEW, &root().join("target/image/app/mount/oci"));
    let id = succeed(&mut docker(NEW, &["create", "--mount", &mount, "app:mount"]));
    let container = Container { engine: NEW, id };
    succeed(&mut docker(NEW, &["cp", "models/.", &format!("{}:/models", container.id)]));
}

#[test]
fn a_hybrid_image_embeds_one_model_and_mounts_the_other() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let clone = folder.path().join("hybrid");
    succeed(Command::new("git").args(["clone", "--quiet", root().to_str().unwrap(), clone.to_str().unwrap()]));
    let manifest = std::fs::read_to_string(clone.join("Cargo.toml")).unwrap();
    let manifest = manifest
        .replace("[workspace.metadata.models.digits]", "[workspace.metadata.models.digits]\nstrategy = \"mount\"");
    std::fs::write(clone.join("Cargo.toml"), manifest).unwrap();
    xtask_in(&clone, &["lock"]);
    xtask_in(&clone, &["image", "--embed", "--tag", "app:hybrid"]);
    let output = clone.join("target/image/app/embed");
    assert_eq!(layers(&output.join("oci"))[0], locked_layers(&clone)[1], "digits-b is embedded");
    let mut script = Command::new(output.join("run.sh"));
    script.args(["--network", "host", "--env", &format!("LISTEN={ADDRESS}"), "--detach"]);
    script.env("DOCKER_HOST", variable(NEW));
    let container = Container::started(NEW, succeed(&mut script));
    answers();
    drop(container);
}

#[test]
fn hostile_paths_and_names_come_out_of_every_grammar_as_they_went_in() {
    let _alone = alone();
    let temporary = tempfile::tempdir().unwrap();
    let top = temporary.path().canonicalize().unwrap();
    let root = top.join("it's a \"w,s\" $HOME #1 x%h");
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let files = [
        "#hash", "$HOME", "%h", "- dash", "0777", "1e3", "a b", "c,omma", "co:lon", "it's", "null", "q\"uote", "yes",
        "~",
    ];
    for file in files {
        write(&format!("models/m/{file}"), "x");
    }
    let models = ["yes", "null", "0777", "1e3"]
        .map(|name| format!("[workspace.metadata.models.{name}]\nsource = \"models/m\"\n"));
    write("Cargo.toml", &format!("[workspace]\nresolver = \"3\"\nmembers = [\"app\"]\n{}", models.concat()));
    let image = "[package.metadata.image]\nhealthcheck = [\"$(X) $Y %h\"]\n";
    write("app/Cargo.toml", &format!("[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2024\"\n{image}"));
    write("app/src/main.rs", "fn main() {}");
    // Cargo and linkers refuse such a folder themselves.
    let target = top.join("target");
    let in_root = |arguments: &[&str]| {
        let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
        succeed(xtask.args(arguments).current_dir(&root).env("CARGO_TARGET_DIR", &target))
    };
    succeed(Command::new("cargo").args(["generate-lockfile", "--offline", "--quiet"]).current_dir(&root));
    in_root(&["lock"]);
    in_root(&["image", "--mount"]);
    let folder = target.join("image/tiny/mount");
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let mut expected = Vec::new();
    for model in ["0777", "1e3", "null", "yes"] {
        let source = |name: &str| root.join("models/m").join(name).to_str().unwrap().to_owned();
        expected.extend(files.map(|name| (source(name), format!("/models/{model}/{name}"))));
    }
    // The shell and the CSV of `--mount`, through the script itself.
    let bin = top.join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("docker"), "#!/bin/sh\nfor a; do printf '%s\\n' \"$a\"; done\n").unwrap();
    succeed(Command::new("chmod").args(["+x", bin.join("docker").to_str().unwrap()]));
    let printed = succeed(Command::new("env").arg(format!("PATH={}:/usr/bin:/bin", bin.display())).arg(file("run.sh")));
    let mounts: Vec<_> = printed.lines().filter(|line| line.starts_with("type=bind")).map(csv).collect();
    let value =
        |fields: &[String], key: &str| fields.iter().find_map(|field| field.strip_prefix(key)).unwrap().to_owned();
    let found: Vec<_> = mounts.iter().map(|fields| (value(fields, "source="), value(fields, "target="))).collect();
    assert_eq!(found, expected, "run.sh");
    succeed(Command::new("shellcheck").arg(file("run.sh")));
    // YAML and Compose's `$`: its own output doubles the `$` again.
    let config = compose_config(&file("compose.yaml"));
    let service = &config["services"]["tiny"];
    let plain = |value: &Value| value.as_str().unwrap().replace("$$", "$");
    let volumes = service["volumes"].as_array().unwrap();
    let found: Vec<_> = volumes.iter().map(|volume| (plain(&volume["source"]), plain(&volume["target"]))).collect();
    assert_eq!(found, expected, "compose.yaml");
    assert_eq!(plain(&service["healthcheck"]["test"][2]), "$(X) $Y %h");
    // YAML once more, as Kubernetes reads it; `$$(` is its `$(`.
    let pod = tool(&["kubectl", "annotate", "--local", "-f", &file("kubernetes.yaml"), "a=b", "-o", "json"]);
    let pod: Value = serde_json::from_str(&pod).unwrap();
    let container = &pod["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["readinessProbe"]["exec"]["command"][1], "$$(X) $Y %h");
    let paths: Vec<_> =
        container["volumeMounts"].as_array().unwrap().iter().map(|mount| plain(&mount["mountPath"])).collect();
    assert_eq!(paths, ["/models/0777", "/models/1e3", "/models/null", "/models/yes"]);
    // A unit's quoting, undone as systemd does.
    let generated = quadlet(&file("tiny.container"));
    let start = generated.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
    let words = systemd_words(start);
    let mounts: Vec<_> = words.iter().filter(|word| word.starts_with("type=bind")).map(|word| csv(word)).collect();
    let found: Vec<_> = mounts.iter().map(|fields| (value(fields, "source="), value(fields, "destination="))).collect();
    assert_eq!(found, expected, "tiny.container");
}

/// What Compose makes of the file.
fn compose_config(path: &str) -> Value {
    serde_json::from_str(&tool(&["docker", "compose", "-f", path, "config", "--format", "json"])).unwrap()
}

/// The units that Podman makes of the quadlet.
fn quadlet(path: &str) -> String {
    let units = tempfile::tempdir().unwrap();
    std::fs::copy(path, units.path().join(Path::new(path).file_name().unwrap())).unwrap();
    let folder = format!("QUADLET_UNIT_DIRS={}", units.path().display());
    tool(&["env", &folder, "/usr/libexec/podman/quadlet", "-dryrun", "-user"])
}

/// The fields of a line of CSV (RFC 4180).
fn csv(line: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let field = fields.last_mut().unwrap();
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => field.push(c),
        }
    }
    fields
}

/// The words of a command line of a unit (systemd.syntax(7), systemd.service(5)), for the escapes that quadlet writes.
fn systemd_words(line: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let word = words.last_mut().unwrap();
        match c {
            '\\' => match chars.next().unwrap() {
                'x' => {
                    let hex: String = chars.by_ref().take(2).collect();
                    word.push(char::from(u8::from_str_radix(&hex, 16).unwrap()));
                }
                escaped => word.push(escaped),
            },
            '"' => quoted = !quoted,
            '%' | '$' if chars.peek() == Some(&c) => {
                chars.next();
                word.push(c);
            }
            ' ' if !quoted => words.push(String::new()),
            c => word.push(c),
        }
    }
    words
}

#[test]
fn every_file_of_the_runtime_manifest_is_valid_where_it_is_read() {
    let _alone = alone();
    let folder = root().join("target/image/app/mount");
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    for volume in ["pvc", "image-volume"] {
        xtask(&["image", "--mount", "--kubernetes", volume]);
        for version in ["1.31", "1.32", "1.33", "1.34", "1.35", "1.36"] {
            python("kubernetes-validate", &["--strict", "-k", &format!("{version}.0"), &file("kubernetes.yaml")]);
        }
        tool(&["kubectl", "annotate", "--local", "-f", &file("kubernetes.yaml"), "a=b", "-o", "name"]);
    }
    python("check-jsonschema", &["--builtin-schema", "vendor.compose-spec", &file("compose.yaml")]);
    python("check-jsonschema", &["--schemafile", "schema/models-v1.schema.json", &file("models.json")]);
    let config = compose_config(&file("compose.yaml"));
    assert_eq!(config["services"]["app"]["volumes"][0]["bind"]["create_host_path"], Value::Null);
    succeed(Command::new("shellcheck").arg(file("run.sh")));
    let generated = quadlet(&file("app.container"));
    assert!(generated.contains("--mount type=bind,source="), "{generated}");
}
