//! Models that are exchanged while they are served: the built binary, signals, and a mounted lock.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use model_lock::lock::revision_of;
use model_lock::{Digest, LockedLayer, LockedModel, ModelLock, codec};
use serde_json::{Value, json};
use support::{Client, PATIENCE, Service, app, lock, models, run, send_signal, workspace};

const LOCKED: &[(&str, &str)] = &[("MODEL_POLICY", "locked")];

/// The committed bytes of a file of `model`.
fn bytes(model: &str, path: &str) -> Vec<u8> {
    fs::read(workspace().join("models").join(model).join(path)).unwrap()
}

fn weights_digest(model: &str) -> String {
    Digest::of(&bytes(model, "model.safetensors")).to_string()
}

/// The workspace's lock, with its model `digits` changed.
fn changed(change: impl FnOnce(&mut LockedModel)) -> ModelLock {
    let mut models = lock().models().to_vec();
    change(models.iter_mut().find(|model| model.name.as_str() == "digits").unwrap());
    ModelLock::new(models).unwrap()
}

/// The workspace's lock, with the bytes of another model as those of `digits`.
fn lock_with(weights_of: &str) -> ModelLock {
    if weights_of == "digits" { lock() } else { pinning(|path| bytes(weights_of, path)) }
}

/// The workspace's lock, with these bytes as those of `digits`.
fn pinning(bytes: impl Fn(&str) -> Vec<u8>) -> ModelLock {
    changed(|digits| {
        for file in &mut digits.files {
            let bytes = bytes(file.path.as_str());
            (file.size, file.digest) = (bytes.len() as u64, Digest::of(&bytes));
            // No layer is made here; but what changes a file changes its layer.
            file.layer = LockedLayer { digest: Digest::of(file.digest.as_bytes()), size: file.layer.size };
        }
        digits.revision = revision_of(digits.files.iter().map(|file| (&file.path, file.digest)));
    })
}

/// Writes beside the file and renames, as whoever exchanges a mounted file should.
fn put(at: &Path, bytes: &[u8]) {
    let new = at.with_extension("new");
    fs::write(&new, bytes).unwrap();
    fs::rename(new, at).unwrap();
}

fn put_lock(root: &Path, lock: &ModelLock) {
    put(&root.join("models.lock"), codec::emit(lock).as_bytes());
}

/// Puts the bytes of a model in place of those of `digits`, and beside them the lock that says so.
fn mount(root: &Path, weights_of: &str) {
    for path in ["README.md", "model.safetensors"] {
        put(&root.join("digits").join(path), &bytes(weights_of, path));
    }
    put_lock(root, &lock_with(weights_of));
}

/// What every swap between the two models must be reported as.
fn swapped(from: &str, to: &str) -> String {
    let short = |model: &str| weights_digest(model)[..19].to_owned();
    format!("digits: {} -> {} (model.safetensors and 1 other file)", short(from), short(to))
}

/// Bodies of questions on which the two models differ, and what each model answers, by its digest.
struct Golden {
    questions: Vec<String>,
    answers: BTreeMap<String, Vec<Value>>,
}

impl Golden {
    /// Asks a service that has both models. Two of the answers are known from training.
    fn ask(service: &Service) -> Self {
        let golden: [Value; 2] = [include_str!("golden.json"), include_str!("golden-b.json")]
            .map(|text| serde_json::from_str(text).unwrap());
        let samples: Vec<Value> = serde_json::from_str(include_str!("heldout.json")).unwrap();
        let pixels = golden.iter().chain(samples.iter().step_by(60)).map(|sample| &sample["pixels"]);
        let questions: Vec<String> = pixels.map(|pixels| json!({ "pixels": pixels }).to_string()).collect();
        let mut client = service.client();
        let mut answers = BTreeMap::new();
        for (index, name) in ["digits", "digits-b"].into_iter().enumerate() {
            let of_model: Vec<Value> = questions
                .iter()
                .map(|question| {
                    let answer = client.predict_by(name, question).json();
                    assert_eq!(answer["model"]["name"], name);
                    assert_eq!(answer["model"]["digest"], weights_digest(name));
                    answer["probabilities"].clone()
                })
                .collect();
            let numbers = |value: &Value| serde_json::from_value::<Vec<f64>>(value.clone()).unwrap();
            let (found, known) = (numbers(&of_model[index]), numbers(&golden[index]["probabilities"]));
            assert!(found.iter().zip(&known).all(|(a, b)| (a - b).abs() < 1e-5), "{name}: {found:?}, {known:?}");
            answers.insert(weights_digest(name), of_model);
        }
        for (n, (a, b)) in
            answers[&weights_digest("digits")].iter().zip(&answers[&weights_digest("digits-b")]).enumerate()
        {
            assert_ne!(a, b, "question {n} tells the models apart");
        }
        Self { questions, answers }
    }

    /// That an answer to question `n` is right for the model that it names. Returns that model's digest.
    fn check(&self, n: usize, answer: &support::Answer) -> String {
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        let digest = answer["model"]["digest"].as_str().unwrap();
        assert_eq!(answer["probabilities"], self.answers[digest][n], "question {n}, answered by {digest}");
        digest.to_owned()
    }
}

/// However a test ends, its threads end too.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn twenty_swaps_and_no_request_notices() {
    const THREADS: usize = 8;
    const CONNECTIONS: usize = 16;
    const SWAPS: usize = 20;
    /// How many requests are answered between two swaps, at least.
    const BETWEEN: usize = 60;

    let service = Service::start(LOCKED);
    let golden = &Golden::ask(&service);
    let locks: BTreeMap<String, String> =
        ["digits", "digits-b"].map(|name| (weights_digest(name), lock_with(name).digest().to_string())).into();
    let locks = &locks;
    let done = &AtomicBool::new(false);
    let (sender, answered) = mpsc::channel();
    let address = service.address;
    let seen = std::thread::scope(|scope| {
        let end = Done(done);
        let clients: Vec<_> = (0..THREADS)
            .map(|thread| {
                let sender = sender.clone();
                scope.spawn(move || {
                    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| Client::connect(address)).collect();
                    let mut seen = BTreeMap::<String, usize>::new();
                    let question = |round: usize, n: usize| (thread + round + n) % golden.questions.len();
                    for round in 0.. {
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                        for (n, client) in clients.iter_mut().enumerate() {
                            let body = &golden.questions[question(round, n)];
                            client.send_head("POST", "/v1/predict", "application/json", body.len());
                            client.send(body.as_bytes());
                        }
                        for (n, client) in clients.iter_mut().enumerate() {
                            let answer = client.receive();
                            let digest = golden.check(question(round, n), &answer);
                            assert_eq!(answer.json()["model"]["name"], "digits");
                            assert_eq!(answer.json()["model"]["lock"], locks[&digest]);
                            *seen.entry(digest).or_default() += 1;
                        }
                        // Nobody listens any more after the last swap.
                        let _ = sender.send(CONNECTIONS);
                    }
                    seen
                })
            })
            .collect();
        let mut client = Client::connect(address);
        for swap in 0..SWAPS {
            let mut requests = 0;
            while requests < BETWEEN {
                requests += answered.recv_timeout(PATIENCE).expect("requests go on");
            }
            let [from, to] = if swap % 2 == 0 { ["digits", "digits-b"] } else { ["digits-b", "digits"] };
            mount(service.models(), to);
            let line = service.reload();
            assert!(line.starts_with("reloaded in ") && line.contains(&swapped(from, to)), "swap {swap}: {line}");
            assert_eq!(golden.check(0, &client.predict(&golden.questions[0])), weights_digest(to), "swap {swap}");
        }
        drop(end);
        let mut seen = BTreeMap::<String, usize>::new();
        for client in clients {
            for (digest, count) in client.join().unwrap() {
                *seen.entry(digest).or_default() += count;
            }
        }
        seen
    });
    assert!(seen.values().sum::<usize>() >= 1000, "{seen:?}");
    for name in ["digits", "digits-b"] {
        assert!(seen[&weights_digest(name)] >= 100, "both models were asked: {seen:?}");
    }
}

/// Signals that come while a reload runs lead to one more reload, which sees what was written before the last of them.
#[test]
fn no_signal_is_lost() {
    let service = Service::start(LOCKED);
    let mut client = service.client();
    let question = json!({ "pixels": vec![8; 64] }).to_string();
    for round in 0..10 {
        let [first, last] = if round % 2 == 0 { ["digits-b", "digits"] } else { ["digits", "digits-b"] };
        for name in [first, last] {
            mount(service.models(), name);
            send_signal(&service.child, "HUP");
            send_signal(&service.child, "HUP");
        }
        // A lost signal is a line that never comes, and waiting for it is bounded.
        while client.predict(&question).json()["model"]["digest"] != weights_digest(last) {
            service.next_line();
        }
    }
}

/// Whoever writes into the files that are being read gets a refusal, or one model or the other: nothing in between.
#[test]
fn writes_in_place_during_reloads_never_mix() {
    let service = Service::start(LOCKED);
    let golden = Golden::ask(&service);
    let mut client = service.client();
    let root = service.models();
    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = Done(done);
        scope.spawn(|| {
            let versions = ["digits", "digits-b"].map(|name| {
                let files =
                    ["README.md", "model.safetensors"].map(|path| (root.join("digits").join(path), bytes(name, path)));
                (files, codec::emit(&lock_with(name)))
            });
            for (files, lock) in versions.iter().cycle().take_while(|_| !done.load(Ordering::Relaxed)) {
                for (at, bytes) in files {
                    fs::write(at, bytes).unwrap();
                }
                fs::write(root.join("models.lock"), lock).unwrap();
            }
        });
        for _ in 0..100 {
            let line = service.reload();
            assert!(line.starts_with("reloaded in ") || line.starts_with("reload refused, still serving "), "{line}");
            for (n, question) in golden.questions.iter().enumerate() {
                golden.check(n, &client.predict(question));
            }
        }
        drop(end);
    });
    mount(root, "digits-b");
    assert!(service.reload().starts_with("reloaded in "));
    assert_eq!(golden.check(0, &client.predict(&golden.questions[0])), weights_digest("digits-b"));
}

/// What is done to the mounted files, and what is said about it.
type Fault = (&'static str, fn(&Path), &'static str);

const RULE: &str = "; a mounted models.lock may change what is in the models that this program was built with, not their \
                    names, targets or file names";

const FAULTS: &[Fault] = &[
    (
        "a byte is flipped",
        |root| {
            mount(root, "digits-b");
            let mut weights = bytes("digits-b", "model.safetensors");
            weights[20_000] ^= 1;
            put(&root.join("digits/model.safetensors"), &weights);
        },
        "has other bytes than models.lock says: expected sha256:83c6d5106eef",
    ),
    (
        "a file is cut short",
        |root| {
            mount(root, "digits-b");
            put(&root.join("digits/model.safetensors"), &bytes("digits-b", "model.safetensors")[..20_000]);
        },
        "is shorter than models.lock says",
    ),
    (
        "a file is missing",
        |root| {
            mount(root, "digits-b");
            fs::remove_file(root.join("digits/model.safetensors")).unwrap();
        },
        "is missing",
    ),
    (
        "the lock is new, the models are not",
        |root| put_lock(root, &lock_with("digits-b")),
        "README.md` is shorter than models.lock says",
    ),
    (
        "the other model is damaged",
        |root| {
            mount(root, "digits-b");
            put(&root.join("digits-b/model.safetensors"), b"");
        },
        "model `digits-b`: ",
    ),
    (
        "what is locked is no classifier",
        |root| {
            put(&root.join("digits/model.safetensors"), b"\x08\0\0\0\0\0\0\0{}      ");
            let card = fs::read(root.join("digits/README.md")).unwrap();
            let pin = |path: &str| {
                if path == "README.md" { card.clone() } else { b"\x08\0\0\0\0\0\0\0{}      ".to_vec() }
            };
            put_lock(root, &pinning(pin));
        },
        "model.safetensors` cannot be used: ",
    ),
    (
        "a size that no file has",
        |root| {
            put_lock(root, &changed(|digits| digits.files[1].size = i64::MAX.unsigned_abs()));
        },
        "is shorter than models.lock says: expected sha256:9bd1b3c3d815",
    ),
    (
        "a newer version",
        |root| put(&root.join("models.lock"), codec::emit(&lock()).replace("version = 1", "version = 2").as_bytes()),
        "models.lock` is refused: unsupported version 2: this program reads version 1",
    ),
    (
        "a merge conflict",
        |root| {
            let text = codec::emit(&lock()).replace("version = 1", "version = 1\n<<<<<<< ours");
            put(&root.join("models.lock"), text.as_bytes());
        },
        "models.lock` is refused: line 4: a merge conflict is not resolved",
    ),
    (
        "an unknown key",
        |root| put(&root.join("models.lock"), codec::emit(&lock()).replace("target =", "\"\\u001b[31m\" =").as_bytes()),
        "unknown field `\\u{1b}[31m`",
    ),
    (
        "not text",
        |root| put(&root.join("models.lock"), b"\xff\xfe"),
        "models.lock` is refused: stream did not contain valid UTF-8",
    ),
    (
        "a folder in its place",
        |root| {
            let _ = fs::remove_file(root.join("models.lock"));
            fs::create_dir(root.join("models.lock")).unwrap();
        },
        "models.lock` is refused: it is a directory, which is what `docker run -v` makes of a missing source",
    ),
    (
        "a link to nothing",
        |root| {
            let _ = fs::remove_file(root.join("models.lock"));
            std::os::unix::fs::symlink("gone", root.join("models.lock")).unwrap();
        },
        "models.lock` is refused: No such file or directory",
    ),
    (
        "a new name",
        |root| {
            let mut models = lock().models().to_vec();
            let mut more = models[0].clone();
            (more.name, more.target) = ("letters".parse().unwrap(), "/models/letters".parse().unwrap());
            for file in &mut more.files {
                file.layer.digest = Digest::of(b"letters");
            }
            models.push(more);
            put_lock(root, &ModelLock::new(models).unwrap());
        },
        "models.lock` is refused: model `letters` is not one of this program",
    ),
    (
        "a missing name",
        |root| {
            let models = lock().models().iter().filter(|model| model.name.as_str() != "digits-b").cloned().collect();
            put_lock(root, &ModelLock::new(models).unwrap());
        },
        "models.lock` is refused: model `digits-b` is not in it",
    ),
    (
        "another target",
        |root| put_lock(root, &changed(|digits| digits.target = "/srv/digits".parse().unwrap())),
        "models.lock` is refused: model `digits` has target `/srv/digits`, expected `/models/digits`",
    ),
    (
        "another file name",
        |root| put_lock(root, &changed(|digits| digits.files[1].path = "weights.safetensors".parse().unwrap())),
        "models.lock` is refused: model `digits` has a file `weights.safetensors` that this program does not know",
    ),
    (
        "a file less",
        |root| put_lock(root, &changed(|digits| drop(digits.files.remove(0)))),
        "models.lock` is refused: model `digits` has no file `README.md`",
    ),
];

/// How many of the faults, from the end, are against the rule.
const AGAINST_THE_RULE: usize = 5;

#[test]
fn whatever_is_wrong_the_old_model_stays() {
    let mut service = Service::start(LOCKED);
    let golden = Golden::ask(&service);
    let mut client = service.client();
    let serving = ["digits", "digits-b"].map(|name| format!("{name} {}", &weights_digest(name)[..19])).join(", ");
    for (index, (what, fault, expect)) in FAULTS.iter().enumerate() {
        let root = service.models();
        fault(root);
        let line = service.reload();
        assert!(line.starts_with(&format!("reload refused, still serving {serving}: ")), "{what}: {line}");
        assert!(line.contains(expect), "{what}: {line}");
        assert_eq!(line.contains(RULE), index >= FAULTS.len() - AGAINST_THE_RULE, "{what}: {line}");
        for (n, question) in golden.questions.iter().enumerate() {
            assert_eq!(golden.check(n, &client.predict(question)), weights_digest("digits"), "{what}");
        }
        // And what was refused is no obstacle to what comes next.
        repair(root);
        let line = service.reload();
        assert!(line.starts_with("reloaded in ") && line.contains(", nothing changed"), "{what}: {line}");
    }
    send_signal(&service.child, "TERM");
    assert_eq!((service.wait(), service.rest_of_log().as_str()), (0, "stopped by SIGTERM\n"));
}

/// The committed models without a mounted lock.
fn repair(root: &Path) {
    let at = root.join("models.lock");
    let _ = fs::remove_file(&at).or_else(|_| fs::remove_dir(&at));
    for model in ["digits", "digits-b"] {
        for path in ["README.md", "model.safetensors"] {
            put(&root.join(model).join(path), &bytes(model, path));
        }
    }
}

#[test]
fn whatever_is_wrong_at_the_start_opens_no_port() {
    for (what, fault, expect) in FAULTS {
        let folder = models();
        fault(folder.path());
        for command in ["verify-models", "serve"] {
            let mut command = app(command);
            command.env("MODEL_ROOT", folder.path()).env("LISTEN", "127.0.0.1:0").env("MODEL_POLICY", "locked");
            let stopped = run(&mut command);
            if *what == "what is locked is no classifier" && stopped.code == 0 {
                // The bytes are those of the lock, which is all that `verify-models` asks.
                assert!(stopped.stdout.starts_with("verified 2 models"), "{}", stopped.stdout);
                continue;
            }
            assert_eq!((stopped.code, stopped.stdout.as_str()), (1, ""), "{what}: {}", stopped.stderr);
            assert!(stopped.stderr.contains(expect), "{what}: {}", stopped.stderr);
            assert!(stopped.stderr.lines().all(|line| line.starts_with("error: ")), "{what}: {}", stopped.stderr);
        }
    }
}

#[test]
fn a_mounted_lock_counts_at_the_start_and_can_be_taken_away() {
    let folder = models();
    mount(folder.path(), "digits-b");
    let verified = run(app("verify-models").env("MODEL_ROOT", folder.path()).env("MODEL_POLICY", "locked"));
    assert_eq!((verified.code, verified.stderr.as_str()), (0, ""));
    assert!(verified.stdout.starts_with("verified 2 models (4 files, "), "{}", verified.stdout);

    let service = Service::start_with(folder, LOCKED);
    let at = service.models().join("models.lock").display().to_string();
    let mounted = lock_with("digits-b").digest().to_string();
    let line = format!("the models are those of `{at}`, {mounted}");
    assert!(service.log.contains(&line), "{:?}", service.log);
    let mut client = service.client();
    let listing = client.get("/v1/models").json();
    assert_eq!(
        (&listing["lock"], &listing["mounted"], &listing["policy"]),
        (&json!(mounted), &json!(at), &json!("locked"))
    );
    assert_eq!(listing["models"][0]["digest"], weights_digest("digits-b"));
    assert_eq!(listing["models"][0]["revision"], lock_with("digits-b").model("digits").unwrap().revision);
    let question = json!({ "pixels": vec![8; 64] }).to_string();
    let answer = client.predict(&question).json();
    assert_eq!(answer["model"], json!({ "name": "digits", "digest": weights_digest("digits-b"), "lock": mounted }));

    repair(service.models());
    let line = service.reload();
    assert!(line.contains(&swapped("digits-b", "digits")), "{line}");
    let locks = [lock_with("digits-b"), lock()].map(|lock| lock.digest().short());
    assert!(line.ends_with(&format!("; models.lock: {} -> {}", locks[0], locks[1])), "{line}");
    let listing = client.get("/v1/models").json();
    assert_eq!((&listing["lock"], &listing["mounted"]), (&json!(lock().digest().to_string()), &Value::Null));
}

#[test]
fn pinned_takes_no_other_model_whatever_is_mounted() {
    for environment in [&[][..], &[("MODEL_POLICY", "")], &[("MODEL_POLICY", "pinned")]] {
        let service = Service::start(environment);
        let golden = Golden::ask(&service);
        let mut client = service.client();
        mount(service.models(), "digits-b");
        let line = service.reload();
        assert!(line.starts_with("reload refused, still serving digits sha256:9bd1b3c3d815"), "{line}");
        assert!(line.contains("expected sha256:"), "{line}");
        let at = service.models().join("models.lock");
        let hint = format!("; MODEL_POLICY is pinned, so `{}` does not count", at.display());
        assert!(line.ends_with(&hint), "{line}");
        assert_eq!(golden.check(0, &client.predict(&golden.questions[0])), weights_digest("digits"));

        // A lock by itself is not even looked at.
        repair(service.models());
        fs::create_dir(service.models().join("models.lock")).unwrap();
        let line = service.reload();
        assert!(line.contains(", nothing changed (MODEL_POLICY is pinned)"), "{line}");
    }
    let folder = models();
    mount(folder.path(), "digits-b");
    for command in ["serve", "verify-models"] {
        let stopped = run(app(command).env("MODEL_ROOT", folder.path()).env("LISTEN", "127.0.0.1:0"));
        assert_eq!(stopped.code, 1, "{}", stopped.stderr);
        assert_eq!(stopped.stderr.matches("than models.lock says").count(), 2, "{}", stopped.stderr);
    }
}

#[test]
fn a_header_chooses_the_model() {
    let service = Service::start(&[]);
    let golden = Golden::ask(&service);
    let mut client = service.client();
    let question = &golden.questions[0];
    assert_eq!(golden.check(0, &client.predict(question)), weights_digest("digits"));
    for name in ["digits", "digits-b"] {
        assert_eq!(golden.check(0, &client.predict_by(name, question)), weights_digest(name));
    }
    let known = "only `digits`, `digits-b`";
    for (name, shown) in
        [("letters", "letters"), ("Digits", "Digits"), ("", ""), ("digits,digits-b", "digits,digits-b"), ("é`", "é`")]
    {
        let answer = client.predict_by(name, question);
        let error = format!("there is no model `{shown}`, {known}");
        assert_eq!((answer.status, answer.json()), (404, json!({ "error": error })), "{name}");
    }
    let twice = client.predict_by("digits\r\nx-model: digits-b", question);
    assert_eq!((twice.status, twice.json()), (400, json!({ "error": "there is more than one `x-model` header" })));
}
