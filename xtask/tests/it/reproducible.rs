//! One commit, one digest: two clones under conditions that differ in everything that must not matter.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Output, Workspace, command, inherited, output, triple};

/// An app that has every kind of path in it that compilers put there: of its sources, and of what its build script made.
fn app(workspace: &Workspace) {
    workspace.write(
        "app/build.rs",
        "fn main() {\n    let out = std::env::var_os(\"OUT_DIR\").unwrap();\n    let file = \
         std::path::Path::new(&out).join(\"made.rs\");\n    std::fs::write(file, \"pub fn place() -> &'static str { \
         file!() }\").unwrap();\n}\n",
    );
    workspace.write("app/src/lib.rs", "include!(concat!(env!(\"OUT_DIR\"), \"/made.rs\"));\n");
    workspace.write(
        "app/src/main.rs",
        "fn main() {\n    println!(\"{}\\n{}\", app::place(), file!());\n    if std::env::args().len() > 1 {\n        \
         panic!(\"with a place\");\n    }\n}\n",
    );
}

/// Conditions of a build.
struct Conditions {
    /// The folder of the clone, below a temporary one.
    folder: &'static str,
    umask: &'static str,
    variables: Vec<(&'static str, OsString)>,
}

/// Clones the workspace and builds its image.
fn build(origin: &Workspace, top: &Path, conditions: &Conditions) -> (Output, PathBuf) {
    let root = top.join(conditions.folder);
    fs::create_dir_all(root.parent().unwrap()).unwrap();
    let shell = |folder: &Path, script: &str| {
        let mut shell = command("sh", folder);
        shell.arg("-c").arg(format!("umask {}; exec \"$@\"", conditions.umask)).arg("sh");
        shell.args(script.split('|'));
        shell
    };
    let clone = format!("git|clone|--quiet|{}|{}", origin.root().display(), root.display());
    output(&mut shell(top, &clone), top).expect(0);
    let mut build = shell(&root, &format!("{}|image|--embed", env!("CARGO_BIN_EXE_xtask")));
    build.envs(conditions.variables.iter().cloned());
    (output(&mut build, &root), root)
}

/// The program in the image.
fn program(target: &Path) -> Vec<u8> {
    fs::read(target.join("image/cargo").join(triple()).join("release/app")).unwrap()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn two_clones_under_different_conditions_give_one_digest() {
    let origin = Workspace::locked();
    app(&origin);
    origin.commit_with_dockerfile();
    let temp = tempfile::tempdir().unwrap();
    let top = temp.path().canonicalize().unwrap();
    // Another home: no toolchain and no registry in it, but a configuration that would change what is compiled.
    let (home, cargo_home, elsewhere) =
        (top.join("other home"), top.join("cargo of another user"), top.join("elsewhere"));
    fs::create_dir_all(&home).unwrap();
    fs::create_dir_all(&cargo_home).unwrap();
    let rustflags = "[build]\nrustflags = [\"-Copt-level=0\", \"-Cdebuginfo=2\"]\njobs = 1\n";
    fs::write(cargo_home.join("config.toml"), rustflags).unwrap();
    fs::write(home.join(".gitconfig"), "[core]\nabbrev = 5\n").unwrap();
    let rustup = inherited("RUSTUP_HOME").map(PathBuf::from);
    let rustup = rustup.or_else(|| inherited("HOME").map(|home| PathBuf::from(home).join(".rustup"))).unwrap();
    let first = Conditions {
        folder: "a",
        umask: "022",
        variables: vec![("TZ", "UTC".into()), ("LC_ALL", "C".into()), ("CARGO_BUILD_JOBS", "1".into())],
    };
    let second = Conditions {
        folder: "b/with a space/and deeper/workspace-of-another-name",
        umask: "077",
        variables: vec![
            ("HOME", home.clone().into()),
            ("CARGO_HOME", cargo_home.clone().into()),
            ("RUSTUP_HOME", rustup.into()),
            ("GIT_CONFIG_GLOBAL", home.join(".gitconfig").into()),
            ("CARGO_TARGET_DIR", elsewhere.clone().into()),
            ("USER", "somebody".into()),
            ("TZ", "Pacific/Kiritimati".into()),
            ("LC_ALL", "tr_TR.UTF-8".into()),
            ("CARGO_BUILD_JOBS", "2".into()),
            ("RUSTFLAGS", "-Copt-level=0 -Cdebuginfo=2".into()),
            ("CARGO_ENCODED_RUSTFLAGS", "-Copt-level=1".into()),
            ("CARGO_BUILD_RUSTFLAGS", "-Copt-level=1".into()),
            ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0".into()),
            ("CARGO_PROFILE_RELEASE_DEBUG", "2".into()),
            ("CARGO_INCREMENTAL", "1".into()),
            ("RUSTC_WRAPPER", "/bin/false".into()),
            ("CFLAGS", "-O0".into()),
            ("UNRELATED", "x".into()),
        ],
    };
    let (built, root) = build(&origin, &top, &first);
    let one = built.expect(0).never_says(&["-dirty"]).digest();
    // The second clone has its files from another order and with other times.
    let (built, other) = build(&origin, &top, &second);
    let built = built.expect(0);
    let clone = Workspace::at(&other);
    for path in clone.git(&["ls-files"]).lines().rev() {
        clone.remove(path);
        clone.git(&["checkout", "--", path]);
        let file = fs::File::options().write(true).open(clone.path(path)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000)).unwrap();
    }
    fs::remove_dir_all(&elsewhere).unwrap();
    let mut again = clone.command();
    again.args(["image", "--embed"]).envs(second.variables.iter().cloned());
    let again = output(&mut again, clone.root()).expect(0);
    assert_eq!(built.digest(), one);
    assert_eq!(again.digest(), one);

    let (program, other_program) = (program(&root.join("target")), program(&elsewhere));
    assert!(program == other_program);
    for path in [&root, &other, &home, &cargo_home, &elsewhere, &top] {
        assert!(!contains(&program, path.to_str().unwrap()), "{}", path.display());
    }
    // The paths are there, under names that are the same everywhere: otherwise the line before would prove nothing.
    let run = root.join("target/image/cargo").join(triple()).join("release/app");
    let said = output(&mut command(run, &top), &top).expect(0).stdout;
    let (made, source) = said.trim_end().split_once('\n').unwrap();
    assert!(made.starts_with("/target/") && made.ends_with("/made.rs"), "{made}");
    assert_eq!(source, "app/src/main.rs");
    assert!(contains(&program, made) && contains(&program, source));
}

#[test]
fn another_commit_gives_another_digest() {
    let workspace = Workspace::committed();
    let before = workspace.run(&["image", "--embed"]).expect(0).digest();
    workspace.write("README.md", "changed");
    workspace.commit();
    assert_ne!(workspace.run(&["image", "--embed"]).expect(0).digest(), before);
}

#[test]
fn a_configuration_outside_the_workspace_never_changes_the_image_in_silence() {
    let origin = Workspace::committed();
    let expect = origin.run(&["image", "--embed"]).expect(0).digest();
    let temp = tempfile::tempdir().unwrap();
    let top = temp.path().canonicalize().unwrap();
    let clone = top.join("clone");
    output(command("git", &top).args(["clone", "--quiet"]).arg(origin.root()).arg(&clone), &top).expect(0);
    let clone = Workspace::at(&clone);
    assert_eq!(clone.run(&["image", "--embed"]).expect(0).digest(), expect);
    // Cargo reads the configuration of every folder above, and that of its home; a profile there beats that of the
    // workspace's Cargo.toml.
    let (above, home) = (top.join(".cargo"), top.join("cargo-home"));
    for folder in [&above, &home] {
        fs::create_dir(folder).unwrap();
        let config = folder.join("config.toml");
        fs::write(&config, "[profile.release]\nopt-level = 0\ndebug = 2\n").unwrap();
        let built = clone.run_with(&["image", "--embed"], |command| {
            if folder == &home {
                command.env("CARGO_HOME", &home);
            }
        });
        if built.code == 0 {
            assert_eq!(built.digest(), expect, "{}", config.display());
        } else {
            built.expect(2).says(&[config.to_str().unwrap(), "profile"]);
        }
        fs::remove_file(config).unwrap();
    }
}
