//! The service from outside: the built binary, the committed models, a plain TCP client.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::{Service, Stopped, app, lock, models, run, send_signal};

const ZEROS: &str = "[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,\
                      0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]";

/// The body of a question whose first pixel is `value`, as written.
fn first_pixel(value: &str) -> String {
    format!(r#"{{"pixels":{}}}"#, ZEROS.replacen('0', value, 1))
}

#[test]
fn recognises_the_held_out_digits() {
    let samples: Vec<Value> = serde_json::from_str(include_str!("heldout.json")).unwrap();
    let service = Service::start(&[("IMAGE_REVISION", "0123456789abcdef0123456789abcdef01234567")]);
    let mut client = service.client();
    let mut right = 0;
    for sample in &samples {
        let body = json!({ "pixels": sample["pixels"] }).to_string();
        let first = client.predict(&body);
        assert_eq!(first.status, 200, "{}", first.body);
        assert_eq!(first.body, client.predict(&body).body, "the same input gives the same bytes");
        let answer = first.json();
        right += usize::from(answer["label"] == sample["label"]);
        let probabilities: Vec<f64> = serde_json::from_value(answer["probabilities"].clone()).unwrap();
        assert_eq!(probabilities.len(), 10);
        assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{probabilities:?}");
        assert_eq!(answer["model"]["name"], "digits");
        assert_eq!(answer["model"]["digest"], weights_digest());
        assert_eq!(answer["commit"], "0123456789abcdef0123456789abcdef01234567");
    }
    assert!(right * 100 >= samples.len() * 97, "{right} of {} are right", samples.len());
}

fn weights_digest() -> String {
    let lock = lock();
    let digits = lock.models().iter().find(|model| model.name.as_str() == "digits").unwrap();
    digits.files.iter().find(|file| file.path.as_str() == "model.safetensors").unwrap().digest.to_string()
}

#[test]
fn says_what_it_runs() {
    let service = Service::start(&[]);
    let mut client = service.client();
    let health = client.get("/healthz");
    assert_eq!((health.status, health.json()), (200, json!({ "status": "ok" })));

    let listing = client.get("/v1/models").json();
    let lock = lock();
    assert_eq!(listing["lock"], lock.digest().to_string());
    assert_eq!((&listing["commit"], &listing["mounted"]), (&Value::Null, &Value::Null));
    assert_eq!((&listing["policy"], &listing["default"]), (&json!("pinned"), &json!("digits")));
    let names: Vec<&str> = listing["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, lock.models().iter().map(|model| model.name.as_str()).collect::<Vec<_>>());
    let digits = listing["models"].as_array().unwrap().iter().find(|model| model["name"] == "digits").unwrap();
    assert_eq!(digits["digest"], weights_digest());
    assert_eq!(digits["target"], "/models/digits");
    assert_eq!(digits["license"], "MIT OR Apache-2.0");
    let files: Vec<&str> = digits["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(files, ["README.md", "model.safetensors"]);

    let page = client.get("/");
    assert_eq!(page.status, 200);
    assert!(page.head.contains("content-type: text/html; charset=utf-8"), "{}", page.head);
    assert!(page.head.contains("content-security-policy: default-src 'none'"), "{}", page.head);
    assert!(!page.body.replace("http://www.w3.org/2000/svg", "").contains("://"), "the page reaches nowhere else");
}

/// The page's examples are held-out samples, and the model knows every one.
#[test]
fn the_examples_of_the_page_are_recognised() {
    let samples: Vec<Value> = serde_json::from_str(include_str!("heldout.json")).unwrap();
    let service = Service::start(&[]);
    let mut client = service.client();
    let page = client.get("/").body;
    let examples: Vec<&str> =
        page.lines().filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix("\",")).collect();
    assert_eq!(examples.len(), 10);
    for (digit, example) in examples.into_iter().enumerate() {
        let pixels: Vec<u32> = example.chars().map(|pixel| pixel.to_digit(17).unwrap()).collect();
        assert!(samples.contains(&json!({ "pixels": pixels, "label": digit })), "example {digit} is held out");
        assert_eq!(client.predict(&json!({ "pixels": pixels }).to_string()).json()["label"], digit);
    }
}

#[test]
fn refuses_what_is_not_a_question() {
    let service = Service::start(&[]);
    let mut client = service.client();
    let mut check = |status: u16, body: &str, message: &str| {
        let answer = client.predict(body);
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        assert_eq!(answer.json(), json!({ "error": message }), "{body}");
    };
    let not_json = "the body is not JSON: ";
    check(400, "", &format!("{not_json}EOF while parsing a value at line 1 column 0"));
    check(400, r#"{"pixels":[0"#, &format!("{not_json}EOF while parsing a list at line 1 column 12"));
    check(400, &first_pixel("NaN"), &format!("{not_json}expected value at line 1 column 12"));
    check(400, &first_pixel("-"), &format!("{not_json}invalid number at line 1 column 13"));
    check(422, "{}", "missing field `pixels` at line 1 column 2");
    check(422, "[1]", "invalid type: integer `1`, expected a sequence at line 1 column 2");
    check(422, r#"{"pixel":[]}"#, "unknown field `pixel`, expected `pixels` at line 1 column 8");
    check(422, r#"{"pixels":[]}"#, "found 0 pixels, expected 64");
    check(422, &first_pixel("0,0"), "found 65 pixels, expected 64");
    check(422, &first_pixel("16.1"), "pixel 0 is 16.1, expected a number from 0 to 16");
    check(422, &first_pixel("-0.001"), "pixel 0 is -0.001, expected a number from 0 to 16");
    check(422, &first_pixel("1e39"), "pixel 0 is 1e39, expected a number from 0 to 16");
    check(422, &first_pixel("1e999"), "pixel 0 is 1e999, expected a number from 0 to 16");
    check(422, &first_pixel("null"), "pixel 0 is null, expected a number from 0 to 16");
    check(422, &first_pixel(r#""NaN""#), r#"pixel 0 is "NaN", expected a number from 0 to 16"#);
    check(422, &first_pixel(r#""8""#), r#"pixel 0 is "8", expected a number from 0 to 16"#);
    assert_eq!(client.predict(&first_pixel("16")).status, 200);
    assert_eq!(client.predict(&first_pixel("1.5e1")).status, 200);

    let padded = format!("{}{}", first_pixel("0"), " ".repeat(16 * 1024));
    let long = client.predict(&padded);
    assert_eq!((long.status, long.json()), (413, json!({ "error": "the body is over 16384 bytes" })));

    for content_type in ["text/plain", "application/x-www-form-urlencoded", ""] {
        let answer = service.client().request("POST", "/v1/predict", content_type, &first_pixel("0"));
        assert_eq!(answer.status, 415, "{}", answer.body);
        assert_eq!(answer.json(), json!({ "error": "the content type must be application/json" }));
    }
    let parameter =
        service.client().request("POST", "/v1/predict", "Application/JSON; charset=utf-8", &first_pixel("0"));
    assert_eq!(parameter.status, 200);
}

#[test]
fn unknown_routes_and_methods_are_json_too() {
    let service = Service::start(&[]);
    let mut client = service.client();
    for path in ["/nowhere", "/v1/models/", "/v1", "/../etc/passwd"] {
        let answer = client.get(path);
        assert_eq!((answer.status, answer.json()), (404, json!({ "error": format!("there is no `{path}` here") })));
    }
    let get = client.get("/v1/predict");
    assert_eq!((get.status, get.json()), (405, json!({ "error": "`/v1/predict` does not take GET" })));
    assert!(get.head.contains("allow: POST"), "{}", get.head);
    let delete = client.request("DELETE", "/v1/models", "", "");
    assert_eq!((delete.status, delete.json()), (405, json!({ "error": "`/v1/models` does not take DELETE" })));
}

#[test]
fn verifies_before_it_opens_its_port() {
    let service = Service::start(&[]);
    let files: usize = lock().models().iter().map(|model| model.files.len()).sum();
    assert!(
        service.log[0].starts_with("verified ") && service.log[0].contains(&format!("({files} files, ")),
        "{:?}",
        service.log
    );
    assert!(service.log[1].starts_with("listening on http://127.0.0.1:"), "{:?}", service.log);
    for (verify, expect) in [("size", "checked the sizes, not the digests, of "), ("off", "loaded ")] {
        let service = Service::start(&[("MODEL_VERIFY", verify)]);
        assert!(service.log[0].starts_with(expect), "{:?}", service.log);
    }
}

#[test]
fn the_health_check_asks_the_service() {
    let service = Service::start(&[]);
    let listen = service.address.to_string();
    assert_eq!(run(app("healthcheck").env("LISTEN", &listen)), Stopped::new(0, "", ""));
    // Listening on all addresses means that loopback answers.
    let everywhere = format!("0.0.0.0:{}", service.address.port());
    assert_eq!(run(app("healthcheck").env("LISTEN", everywhere)).code, 0);
    drop(service);
    let down = run(app("healthcheck").env("LISTEN", &listen));
    assert_eq!(down.code, 1);
    assert!(down.stderr.starts_with(&format!("error: no answer from http://{listen}/healthz: ")), "{}", down.stderr);
}

#[test]
fn stops_on_request_and_finishes_what_it_has_begun() {
    for name in ["TERM", "INT"] {
        let mut service = Service::start(&[]);
        let mut client = service.client();
        // The service asks for the body only once it works on the request, so the request is in flight when the signal
        // comes.
        let body = first_pixel("0");
        client.send_head("POST", "/v1/predict", "application/json\r\nExpect: 100-continue", body.len());
        assert_eq!(client.receive_head(), "HTTP/1.1 100 Continue\r\n\r\n");
        send_signal(&service.child, name);
        service.wait_until_refused();
        client.send(body.as_bytes());
        assert_eq!(client.receive().status, 200);
        assert_eq!(service.wait(), 0);
        assert!(service.rest_of_log().contains(&format!("stopped by SIG{name}")));
    }
}

/// What is done to the models, and what the findings must say.
type Damage = (&'static str, fn(&Path), &'static [&'static str]);

const DAMAGE: &[Damage] = &[
    (
        "a file is missing",
        |digits| fs::remove_file(digits.join("model.safetensors")).unwrap(),
        &["model.safetensors", "has other files"],
    ),
    (
        "two files are missing",
        |digits| {
            fs::remove_file(digits.join("model.safetensors")).unwrap();
            fs::remove_file(digits.join("README.md")).unwrap();
        },
        &["none of its 2 files is there", "is empty"],
    ),
    ("the folder is missing", |digits| fs::remove_dir_all(digits).unwrap(), &["nothing is mounted there"]),
    (
        "a byte is flipped",
        |digits| {
            let file = digits.join("model.safetensors");
            let mut bytes = fs::read(&file).unwrap();
            let last = bytes.last_mut().unwrap();
            *last ^= 1;
            fs::write(file, bytes).unwrap();
        },
        &["model.safetensors", "expected sha256:", "found sha256:"],
    ),
    (
        "the model card is edited",
        |digits| fs::write(digits.join("README.md"), "# digits\n").unwrap(),
        &["README.md", "expected sha256:"],
    ),
    (
        "a file is cut short",
        |digits| {
            let file = fs::File::options().write(true).open(digits.join("model.safetensors")).unwrap();
            file.set_len(1000).unwrap();
        },
        &["model.safetensors", "1,000 bytes"],
    ),
    (
        "a directory is in place of a file",
        |digits| {
            fs::remove_file(digits.join("model.safetensors")).unwrap();
            fs::create_dir(digits.join("model.safetensors")).unwrap();
        },
        &["model.safetensors", "docker run -v"],
    ),
    (
        "a Git LFS pointer is in place of a file",
        |digits| {
            let pointer =
                format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 19528\n", "0".repeat(64));
            fs::write(digits.join("model.safetensors"), pointer).unwrap();
        },
        &["model.safetensors", "Git LFS pointer"],
    ),
];

#[test]
fn says_what_is_wrong_with_the_models_and_opens_no_port() {
    for (what, damage, expect) in DAMAGE {
        let folder = models();
        damage(&folder.path().join("digits"));
        for command in ["verify-models", "serve"] {
            let stopped = run(app(command).env("MODEL_ROOT", folder.path()).env("LISTEN", "127.0.0.1:0"));
            assert_eq!(stopped.code, 1, "{what}: {}", stopped.stderr);
            assert_eq!(stopped.stdout, "", "{what}");
            assert!(
                stopped.stderr.lines().all(|line| line.starts_with("error: model `digits`: ")),
                "{what}: {}",
                stopped.stderr
            );
            assert!(!stopped.stderr.contains("listening"), "{what}: {}", stopped.stderr);
            for text in *expect {
                assert!(stopped.stderr.contains(text), "{what}: expected {text:?} in {}", stopped.stderr);
            }
        }
    }
}

/// What is done to one file, and the one line about it.
type Fault = (&'static str, fn(&Path), &'static str);

/// The ways in which one file goes wrong on its way to a container.
#[test]
fn five_faults_have_five_lines() {
    let faults: [Fault; 5] = [
        ("removed", |file| fs::remove_file(file).unwrap(), "is missing: expected sha256:"),
        (
            "truncated",
            |file| fs::File::options().write(true).open(file).unwrap().set_len(1000).unwrap(),
            "is shorter than models.lock says: expected sha256:",
        ),
        (
            "flipped",
            |file| {
                let mut bytes = fs::read(file).unwrap();
                bytes[20_000] ^= 1;
                fs::write(file, bytes).unwrap();
            },
            "has other bytes than models.lock says: expected sha256:",
        ),
        (
            "replaced by a directory",
            |file| {
                fs::remove_file(file).unwrap();
                fs::create_dir(file).unwrap();
            },
            "is not a regular file: expected sha256:",
        ),
        (
            "unreadable",
            |file| fs::set_permissions(file, fs::Permissions::from_mode(0o000)).unwrap(),
            "failed to read `",
        ),
    ];
    for (what, fault, expect) in faults {
        let folder = models();
        let file = folder.path().join("digits/model.safetensors");
        fault(&file);
        for argument in ["serve", "verify-models"] {
            let Some(mut command) = unprivileged(folder.path(), argument) else { return };
            let stopped = run(command.env("MODEL_ROOT", folder.path()).env("LISTEN", "127.0.0.1:0"));
            assert_eq!((stopped.code, stopped.stdout.as_str()), (1, ""), "{what}: {}", stopped.stderr);
            assert_eq!(stopped.stderr.lines().count(), 1, "{what}: {}", stopped.stderr);
            assert!(stopped.stderr.starts_with("error: model `digits`: "), "{what}: {}", stopped.stderr);
            assert!(stopped.stderr.contains(file.to_str().unwrap()), "{what}: {}", stopped.stderr);
            let others = faults.iter().filter(|(_, _, line)| *line != expect && stopped.stderr.contains(line));
            assert!(stopped.stderr.contains(expect) && others.count() == 0, "{what}: {}", stopped.stderr);
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).ok();
    }
}

/// The binary as a user who cannot read everything.
#[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
fn unprivileged(folder: &Path, argument: &str) -> Option<Command> {
    let probe = folder.join("probe");
    fs::write(&probe, "").unwrap();
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&probe).is_err() {
        return Some(app(argument));
    }
    // The superuser reads everything, so another user has to try.
    if Command::new("setpriv").arg("--version").output().is_err() {
        eprintln!("skipped: the superuser can read everything, and there is no setpriv");
        return None;
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.join("app");
    // Copied by a child: a descriptor of this process, still open for writing in a child that another test is
    // starting, would make the copy too busy to run.
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_app")).arg(&copy).status().unwrap().success());
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65532", "--regid=65532", "--clear-groups"]).arg(copy).arg(argument).env_clear();
    Some(command)
}

#[test]
fn a_mount_that_no_file_can_be_had_from_is_one_line() {
    let folder = models();
    let digits = folder.path().join("digits");
    let Some(mut command) = unprivileged(folder.path(), "serve") else { return };
    fs::set_permissions(&digits, fs::Permissions::from_mode(0o000)).unwrap();
    let stopped = run(command.env("MODEL_ROOT", folder.path()).env("LISTEN", "127.0.0.1:0"));
    fs::set_permissions(&digits, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!((stopped.code, stopped.stderr.lines().count()), (1, 1), "{}", stopped.stderr);
    assert!(
        stopped.stderr.starts_with("error: model `digits`: none of its 2 files is readable: "),
        "{}",
        stopped.stderr
    );
    assert!(stopped.stderr.contains("`chmod a+rX` the source of the mount"), "{}", stopped.stderr);
}

#[test]
fn a_body_that_does_not_come_is_given_up() {
    let service = Service::start(&[]);
    let mut client = service.client();
    client.send_head("POST", "/v1/predict", "application/json", 200);
    let answer = client.receive();
    assert_eq!((answer.status, answer.json()), (408, json!({ "error": "the body did not come within 5 s" })));
}

#[test]
fn intact_models_are_one_line() {
    let folder = models();
    let stopped = run(app("verify-models").env("MODEL_ROOT", folder.path()));
    assert_eq!((stopped.code, stopped.stderr.as_str()), (0, ""));
    assert!(stopped.stdout.starts_with("verified ") && stopped.stdout.lines().count() == 1, "{}", stopped.stdout);
}

#[test]
fn settings_are_checked_first() {
    for (name, value, message) in [
        (
            "LISTEN",
            "8080",
            "error: LISTEN is `8080`, expected an address and a port such as `0.0.0.0:8080` or `[::]:8080`\n",
        ),
        ("MODEL_VERIFY", "no", "error: MODEL_VERIFY: `no` is not one of `full`, `size`, `off`\n"),
        ("MODEL_POLICY", "any", "error: MODEL_POLICY: `any` is not one of `pinned`, `locked`\n"),
    ] {
        assert_eq!(run(app("serve").env(name, value)), Stopped::new(2, "", message));
    }
    let taken = Service::start(&[]);
    let folder = models();
    let stopped = run(app("serve").env("MODEL_ROOT", folder.path()).env("LISTEN", taken.address.to_string()));
    assert_eq!(stopped.code, 2);
    assert!(stopped.stderr.contains(&format!("error: cannot listen on {}: ", taken.address)), "{}", stopped.stderr);
}

#[test]
fn arguments() {
    let help = run(&mut app("--help"));
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    for text in ["Usage: app [COMMAND]", "MODEL_POLICY", "`x-model: NAME`", "SIGHUP"] {
        assert!(help.stdout.contains(text), "expected {text} in {}", help.stdout);
    }
    assert_eq!(run(&mut app("--version")), Stopped::new(0, concat!("app ", env!("CARGO_PKG_VERSION"), "\n"), ""));
    for wrong in [app("serv"), {
        let mut two = app("serve");
        two.arg("now");
        two
    }] {
        let mut wrong = wrong;
        let stopped = run(&mut wrong);
        assert_eq!(stopped.code, 2);
        assert!(stopped.stderr.starts_with("error: unexpected arguments `serv"), "{}", stopped.stderr);
        assert!(stopped.stderr.contains("Usage: app [COMMAND]"));
    }
}
