//! `cargo xtask verify-models`: every byte, and every disagreement in one run.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use crate::support::{Output, Workspace, noise, sha256};

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 10\n";

/// A model `m` of these ten-byte files, locked.
fn tens(names: &[&str]) -> Workspace {
    let workspace = Workspace::new("[workspace.metadata.models.m]\nsource = \"models/m\"\n");
    for name in names {
        workspace.write(format!("models/m/{name}"), "0123456789");
    }
    workspace.run(&["lock"]).expect(0);
    workspace
}

/// Replaces the file by something else of that name.
fn instead(workspace: &Workspace, path: &str, make: impl FnOnce(&Path)) {
    workspace.remove(path);
    make(&workspace.path(path));
}

#[test]
fn models_as_locked_are_confirmed_with_the_digest_of_the_lock() {
    let workspace = Workspace::locked();
    let output = workspace.run(&["verify-models"]).expect(0).says_exactly(
        "   Verifying digits, words (3 files, 86 B)\n    Verified 2 models (3 files, 86 B): as in models.lock\n",
    );
    assert_eq!(output.digest(), sha256(&workspace.read("models.lock")));
    let quiet = workspace.run(&["verify-models", "--quiet"]).expect(0).says_exactly("");
    assert_eq!(quiet.stdout, output.stdout);
}

#[test]
fn every_kind_of_disagreement_is_listed_in_one_run() {
    let names = ["different", "directory", "empty", "longer", "missing", "pointer", "right", "shorter"];
    let workspace = tens(&names);
    workspace.write("models/m/different", "0123456780");
    instead(&workspace, "models/m/directory", |at| fs::create_dir(at).unwrap());
    workspace.write("models/m/empty", "");
    workspace.write("models/m/longer", "0123456789a");
    workspace.remove("models/m/missing");
    workspace.write("models/m/pointer", POINTER);
    workspace.write("models/m/shorter", "012345678");
    workspace.write("models/m/sub/extra", "extra");
    let expected = format!("    expected {} (10 bytes)\n", sha256(b"0123456789"));
    let found = |text: &str| format!("    found    {} ({} bytes)\n", sha256(text.as_bytes()), text.len());
    let expect = [
        "   Verifying m (8 files, 80 B)\n",
        "error: 7 of 8 files do not match models.lock, and 1 file is not in it\n",
        "  m/different has other bytes than models.lock says\n",
        &expected,
        &found("0123456780"),
        "  m/directory is not a regular file\n",
        &expected,
        "    a directory stands in its place\n",
        "  m/empty is shorter than models.lock says\n",
        &expected,
        &found(""),
        "    it is empty\n",
        "  m/longer is longer than models.lock says\n",
        &expected,
        &found("0123456789a"),
        "  m/missing is missing\n",
        &expected,
        "  m/pointer is longer than models.lock says\n",
        &expected,
        &found(POINTER),
        "    it is a Git LFS pointer, not the file itself\n",
        "  m/shorter is shorter than models.lock says\n",
        &expected,
        &found("012345678"),
        "  m/sub/extra is not in models.lock\n",
        "    found    5 bytes\n",
        "  help: restore what is locked (`git checkout -- models/m`), or run `cargo xtask lock` if the change is meant\n",
    ]
    .concat();
    let output = workspace.run(&["verify-models"]).expect(1).says_exactly(&expect);
    assert_eq!(output.stdout, "");
}

#[test]
fn one_disagreement_has_the_form_that_the_design_shows() {
    let workspace = tens(&["a", "b", "c", "d"]);
    workspace.write("models/m/c", "x123456789");
    workspace.run(&["verify-models", "-q"]).expect(1).says_exactly(&format!(
        "error: 1 of 4 files does not match models.lock\n  m/c has other bytes than models.lock says\n    expected {} \
         (10 bytes)\n    found    {} (10 bytes)\n  help: restore what is locked (`git checkout -- models/m`), or run \
         `cargo xtask lock` if the change is meant\n",
        sha256(b"0123456789"),
        sha256(b"x123456789"),
    ));
    workspace.write("models/m/c", "0123456789");
    workspace.write("models/m/e", "");
    workspace.write("models/m/f", "");
    workspace.run(&["verify-models", "-q"]).expect(1).says(&["error: 2 files are not in models.lock\n"]);
}

#[test]
fn what_stands_in_a_files_place_is_a_finding_beside_all_others() {
    let workspace = tens(&["dangling", "link-out", "pipe", "wrong"]);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("x"), "another 10").unwrap();
    instead(&workspace, "models/m/pipe", |at| assert!(Command::new("mkfifo").arg(at).status().unwrap().success()));
    instead(&workspace, "models/m/dangling", |at| symlink("nowhere", at).unwrap());
    instead(&workspace, "models/m/link-out", |at| symlink(outside.path().join("x"), at).unwrap());
    workspace.write("models/m/wrong", "012345678x");
    workspace.run(&["verify-models"]).expect(1).says(&[
        "error: 4 of 4 files do not match models.lock\n",
        "\n  m/dangling ",
        "\n  m/link-out ",
        "\n  m/pipe is not a regular file\n",
        "    a pipe, socket or device stands in its place\n",
        "\n  m/wrong has other bytes than models.lock says\n",
    ]);
}

#[test]
fn what_cannot_be_part_of_a_model_is_extra_beside_all_others() {
    let workspace = tens(&["a", "wrong"]);
    symlink("nowhere", workspace.path("models/m/x-dangling")).unwrap();
    assert!(Command::new("mkfifo").arg(workspace.path("models/m/x-pipe")).status().unwrap().success());
    workspace.write("models/m/wrong", "012345678x");
    workspace.run(&["verify-models"]).expect(1).says(&[
        "m/wrong has other bytes than models.lock says\n",
        "x-dangling",
        "x-pipe",
    ]);
}

#[test]
fn a_source_that_is_gone_or_of_another_kind_is_a_finding() {
    let workspace = Workspace::locked();
    workspace.remove("models/digits");
    instead(&workspace, "models/words.txt", |at| fs::create_dir(at).unwrap());
    workspace.run(&["verify-models"]).expect(1).says(&[
        "error: 3 of 3 files do not match models.lock\n",
        "\n  digits/config.json is missing\n",
        "\n  digits/model.safetensors is missing\n",
        "\n  words/words.txt is not a regular file\n",
        "    a directory stands in its place\n",
    ]);
    instead(&workspace, "models/words.txt", |at| fs::write(at, "one\ntwo\n").unwrap());
    workspace.write("models/digits", "a file in the folder's place");
    workspace.run(&["verify-models"]).expect(1).says(&[
        "error: 2 of 3 files do not match models.lock",
        "\n  digits/config.json is missing\n",
        "\n  digits/model.safetensors is missing\n",
    ]);
}

#[test]
fn a_flipped_bit_under_an_old_time_stamp_is_found() {
    let workspace = Workspace::locked();
    let path = "models/digits/model.safetensors";
    let (before, at) = (workspace.read(path), workspace.path(path));
    let look = || at.metadata().map(|metadata| (metadata.len(), metadata.mtime(), metadata.mtime_nsec())).unwrap();
    let looked = look();
    workspace.flip(path);
    assert_eq!(look(), looked, "size and modification time tell nothing");
    let expect = format!(
        "  digits/model.safetensors has other bytes than models.lock says\n    expected {} (69 bytes)\n    found    {} \
         (69 bytes)\n",
        sha256(&before),
        sha256(&workspace.read(path)),
    );
    workspace.run(&["verify-models"]).expect(1).says(&[
        "error: 1 of 3 files does not match models.lock\n",
        &expect,
        "git checkout -- models/digits",
    ]);
    workspace.flip(path);
    workspace.run(&["verify-models"]).expect(0);
}

#[test]
fn any_bit_of_a_file_that_is_read_on_two_threads_counts() {
    let workspace = Workspace::new("[workspace.metadata.models.m]\nsource = \"models/m.dat\"\n");
    let bytes = noise(7, (9 << 20) + 17);
    workspace.write("models/m.dat", &bytes);
    workspace.run(&["lock"]).expect(0);
    workspace.run(&["verify-models"]).expect(0);
    for at in [0, (1 << 20) - 1, 1 << 20, 5 << 20, bytes.len() - 1] {
        let mut wrong = bytes.clone();
        wrong[at] ^= 0x80;
        workspace.write("models/m.dat", &wrong);
        workspace.run(&["verify-models"]).expect(1).says(&[
            "m/m.dat has other bytes than models.lock says\n",
            &format!("    found    {} (9,437,201 bytes)\n", sha256(&wrong)),
        ]);
    }
    workspace.write("models/m.dat", &bytes[..bytes.len() - 1]);
    workspace.run(&["verify-models"]).expect(1).says(&["m/m.dat is shorter", "(9,437,200 bytes)\n"]);
}

#[test]
fn two_files_of_a_hundred_that_were_swapped_are_both_named() {
    let workspace = Workspace::new("[workspace.metadata.models.m]\nsource = \"models/m\"\n");
    for index in 0..100u64 {
        workspace.write(format!("models/m/shard-{index:03}"), noise(index + 1, 1000));
    }
    workspace.run(&["lock"]).expect(0);
    let at = |index: u32| workspace.path(format!("models/m/shard-{index:03}"));
    fs::rename(at(17), at(999)).unwrap();
    fs::rename(at(71), at(17)).unwrap();
    fs::rename(at(999), at(71)).unwrap();
    let output = workspace.run(&["verify-models"]).expect(1).says(&[
        "error: 2 of 100 files do not match models.lock\n",
        "  m/shard-017 has other bytes than models.lock says\n",
        "  m/shard-071 has other bytes than models.lock says\n",
    ]);
    assert_eq!(output.stderr.matches("m/shard-").count(), 2, "{}", output.stderr);
}

#[test]
fn json_says_the_same() {
    let workspace = tens(&["a", "b", "c"]);
    let document = workspace.run(&["verify-models", "--format", "json"]).expect(0).json();
    let lock = sha256(&workspace.read("models.lock"));
    assert_eq!(
        document,
        serde_json::json!({
            "ok": true, "lock": lock, "findings": [], "unread": [],
            "models": [{ "name": "m", "files": 3, "size": 30 }],
        })
    );
    workspace.write("models/m/a", "x123456789");
    workspace.remove("models/m/b");
    workspace.write("models/m/d", "extra");
    let document = workspace.run(&["verify-models", "--format", "json"]).expect(1).json();
    let expected = serde_json::json!({ "size": 10, "digest": sha256(b"0123456789") });
    let at = |name: &str| format!("[ROOT]/models/m/{name}");
    assert_eq!(
        document["findings"],
        serde_json::json!([
            { "model": "m", "path": "a", "kind": "different", "expected": expected,
              "found": { "size": 10, "digest": sha256(b"x123456789") }, "at": at("a"), "cause": null },
            { "model": "m", "path": "b", "kind": "missing", "expected": expected, "found": null, "at": at("b"),
              "cause": null },
            { "model": "m", "path": "d", "kind": "extra", "expected": null, "found": { "size": 5 }, "at": at("d"),
              "cause": null },
        ])
    );
    assert_eq!((&document["ok"], &document["error"]["code"]), (&false.into(), &4.into()));
    assert_eq!(document["error"]["message"], "2 of 3 files do not match models.lock, and 1 file is not in it");
}

#[test]
fn only_chosen_models_are_read() {
    let workspace = Workspace::locked();
    workspace.flip("models/words.txt");
    workspace
        .run(&["verify-models", "digits"])
        .expect(0)
        .says(&["   Verifying digits (2 files, 78 B)\n", "    Verified 1 model (2 files, 78 B): as in models.lock\n"]);
    workspace.run(&["verify-models", "words"]).expect(1).says(&["error: 1 of 1 file does not match models.lock\n"]);
    workspace.run(&["verify-models", "words", "digits"]).expect(1).says(&["error: 1 of 3 files does not match"]);
    workspace.run(&["verify-models"]).expect(1);
}

#[test]
fn an_unknown_model_is_refused_with_the_nearest_one() {
    let workspace = Workspace::locked();
    workspace
        .run(&["verify-models", "digit"])
        .expect(2)
        .says_exactly("error: no model `digit` is declared\n  help: did you mean `digits`?\n");
    workspace
        .run(&["verify-models", "digits", "bert"])
        .expect(2)
        .says_exactly("error: no model `bert` is declared\n  help: declared are: digits, words\n");
    let workspace = Workspace::new("");
    workspace.run(&["verify-models", "bert"]).expect(2).says_exactly(
        "error: no model `bert` is declared\n  help: declare it under `[workspace.metadata.models]` in Cargo.toml\n",
    );
}

#[test]
fn no_models_at_all_is_a_yes_that_says_so() {
    let workspace = Workspace::new("");
    for locked in [false, true] {
        if locked {
            workspace.run(&["lock"]).expect(0);
        }
        workspace.run(&["verify-models"]).expect(0).says(&[
            "warning: no models are declared\n  help: declare one under `[workspace.metadata.models]` in Cargo.toml\n",
        ]);
    }
}

/// Runs it as somebody who is refused by permissions: as root that takes dropping the capability to override them.
fn run_without_override(workspace: &Workspace, arguments: &[&str]) -> Output {
    if workspace.path("Cargo.toml").metadata().unwrap().uid() == 0 {
        let script = "exec setpriv --bounding-set=-dac_override,-dac_read_search -- \"$@\"";
        return workspace.run_through(script, arguments);
    }
    workspace.run(arguments)
}

#[test]
fn a_file_that_cannot_be_read_is_neither_right_nor_wrong() {
    let workspace = tens(&["a", "b", "c"]);
    fs::set_permissions(workspace.path("models/m/b"), fs::Permissions::from_mode(0o000)).unwrap();
    let unread = "  failed to read `[ROOT]/models/m/b` of model `m`: Permission denied (os error 13)\n";
    let output = run_without_override(&workspace, &["verify-models"]).expect(2).never_says(&["match", "Verified"]);
    let output = output.says(&["error: failed to read 1 of 3 files\n", unread, "  help: check the permissions"]);
    assert_eq!(output.stdout, "");
    let document = run_without_override(&workspace, &["verify-models", "--format", "json"]).expect(2).json();
    assert_eq!((&document["ok"], &document["error"]["code"]), (&false.into(), &6.into()));
    assert_eq!(document["findings"], serde_json::json!([]));
    assert_eq!(document["unread"][0]["at"], "[ROOT]/models/m/b");
    // A disagreement elsewhere is still one, and both are told.
    workspace.write("models/m/c", "x123456789");
    run_without_override(&workspace, &["verify-models"]).expect(1).says(&["  m/c has other bytes", unread]);
    run_without_override(&workspace, &["lock"]).expect(2).says(&["models/m/b`", "Permission denied"]);
}

#[test]
fn a_folder_that_cannot_be_read_is_neither_right_nor_wrong() {
    let workspace = tens(&["a", "sub/b"]);
    fs::set_permissions(workspace.path("models/m/sub"), fs::Permissions::from_mode(0o000)).unwrap();
    let output = run_without_override(&workspace, &["verify-models"]);
    fs::set_permissions(workspace.path("models/m/sub"), fs::Permissions::from_mode(0o755)).unwrap();
    output
        .expect(2)
        .never_says(&["match models.lock", "missing", "Verified"])
        .says(&["models/m/sub", "Permission denied"]);
}

#[test]
fn hostile_names_cannot_colour_the_log() {
    let workspace = tens(&["a"]);
    workspace.write("models/m/\u{202e}txt.exe", "x");
    let output = workspace.run(&["verify-models"]).expect(1).says(&["m/\\u{202e}txt.exe is not in models.lock\n"]);
    assert!(!output.stderr.contains('\u{202e}'));
}
