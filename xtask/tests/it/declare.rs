//! Declarations that are refused: every problem at once, each with its file, key and value, exit 2, and nothing written.

use crate::support::Workspace;

/// Runs `lock` and `image` over a declaration whose problems are exactly these.
#[track_caller]
fn check(workspace: &Workspace, problems: &[&str]) {
    workspace.write("models.lock", "as it was");
    let head = match problems.len() {
        1 => "error: the declaration has an error\n".to_owned(),
        count => format!("error: the declaration has {count} errors\n"),
    };
    let expect = problems.iter().fold(head, |text, problem| text + "  " + problem + "\n");
    for command in [&["lock"][..], &["lock", "--check"], &["verify-models"], &["image", "--embed"]] {
        let output = workspace.run(command).expect(2).says_exactly(&expect);
        assert_eq!(output.stdout, "");
        // The rest is the same code; one command is enough where there are many cases.
        if problems.len() < 3 {
            break;
        }
    }
    assert_eq!(workspace.text("models.lock"), "as it was");
    assert!(!workspace.path("Dockerfile.embed").exists() && !workspace.path("target").exists());
}

/// One model with a source and one more line.
#[track_caller]
fn model(line: &str, problem: &str) {
    let workspace = Workspace::new(&format!("[workspace.metadata.models.m]\nsource = \"models/m\"\n{line}\n"));
    check(&workspace, &[&format!("`Cargo.toml`: {problem}")]);
}

/// One image with one line.
#[track_caller]
fn image(line: &str, problem: &str) {
    let workspace = Workspace::new("[workspace.metadata.models.digits]\nsource = \"models/digits\"\n");
    workspace.image(line);
    check(&workspace, &[&format!("`app/Cargo.toml`: {problem}")]);
}

#[test]
fn unknown_keys_are_named_with_the_nearest_known_one() {
    let key = "`workspace.metadata.models.m";
    model("taget = \"/m\"", &format!("{key}.taget` is not a known key; did you mean `target`?"));
    model("licence = \"MIT\"", &format!("{key}.licence` is not a known key; did you mean `license`?"));
    model(
        "allow_unsafe_format = true",
        &format!("{key}.allow_unsafe_format` is not a known key; did you mean `allow-unsafe-format`?"),
    );
    model(
        "colour = 1",
        &format!(
            "{key}.colour` is not a known key; known are source, target, license, include, exclude, mirrors, \
             strategy, allow-unsafe-format"
        ),
    );
    image("port = [1]", "`package.metadata.image.port` is not a known key; did you mean `ports`?");
    image(
        "colour = 1",
        "`package.metadata.image.colour` is not a known key; known are models, base, builder, ports, bin, env, \
         healthcheck, rustflags, target, user",
    );
}

#[test]
fn values_of_a_wrong_type_are_named() {
    for (line, problem) in [
        ("target = 1", "target` is the number `1`, expected a string"),
        ("license = true", "license` is the boolean `true`, expected a string"),
        ("license = \"\"", "license` is empty"),
        ("include = \"*.bin\"", "include` is the string `*.bin`, expected a list of strings"),
        ("exclude = [1]", "exclude` has the item `1`, expected strings without control characters"),
        ("include = [\"[\"]", "include` has the glob `[`, which is refused: "),
        ("strategy = \"copy\"", "strategy` is `copy`, expected `embed` or `mount`"),
        ("allow-unsafe-format = \"yes\"", "allow-unsafe-format` is the string `yes`, expected `true` or `false`"),
        ("mirrors = {}", "mirrors` is a table, expected a list of strings"),
    ] {
        let workspace = Workspace::new(&format!("[workspace.metadata.models.m]\nsource = \"models/m\"\n{line}\n"));
        let expect = format!("`Cargo.toml`: `workspace.metadata.models.m.{problem}");
        workspace.run(&["lock"]).expect(2).says(&["error: the declaration has an error\n", &expect]);
        assert!(!workspace.path("models.lock").exists());
    }
    for (models, problem) in [
        ("models = 1", "`workspace.metadata.models` is the number `1`, expected a table of models"),
        ("models = []", "`workspace.metadata.models` is a list, expected a table of models"),
        ("models.m = \"models/m\"", "`workspace.metadata.models.m` is the string `models/m`, expected a table"),
        ("models.m.source = [\"a\"]", "`workspace.metadata.models.m.source` is a list, expected a string"),
        (
            "models.m.license = \"MIT\"",
            "`workspace.metadata.models.m.source` is missing: name a file or folder of the workspace, or a URL",
        ),
    ] {
        let workspace = Workspace::new(&format!("[workspace.metadata]\n{models}\n"));
        check(&workspace, &[&format!("`Cargo.toml`: {problem}")]);
    }
    for (line, problem) in [
        ("ports = 8080", "ports` is `8080`, expected a list of numbers from 1 to 65535"),
        ("ports = [0]", "ports` is `[0]`, expected a list of numbers from 1 to 65535"),
        ("ports = [65536]", "ports` is `[65536]`, expected a list of numbers from 1 to 65535"),
        ("ports = [80.5]", "ports` is `[80.5]`, expected a list of numbers from 1 to 65535"),
        ("ports = [\"80\"]", "ports` is `[\"80\"]`, expected a list of numbers from 1 to 65535"),
        ("env = [\"A=1\"]", "env` is a list, expected a table"),
        ("env.A = 1", "env.A` is the number `1`, expected a string without control characters"),
        ("env.\"A B\" = \"\"", "env.A B` is not a name for an environment variable"),
        ("env.PATH = \"/\"", "env.PATH` is set by the image itself"),
        ("env.IMAGE_REVISION = \"1\"", "env.IMAGE_REVISION` is set by the image itself"),
        ("bin = \"other\"", "bin` is `other`, which is no binary of `app`"),
        (
            "target = \"x86_64-pc-windows-msvc\"",
            "target` is `x86_64-pc-windows-msvc`, expected a triple for Linux, as in `x86_64-unknown-linux-musl`",
        ),
        ("models = \"digits\"", "models` is the string `digits`, expected a list of strings"),
    ] {
        image(line, &format!("`package.metadata.image.{problem}"));
    }
}

#[test]
fn users_that_are_root_or_not_numeric_are_refused() {
    for user in
        ["root", "0:0", "0:65532", "65532:0", "65532", "nobody:nogroup", "1:2:3", "-1:1", "4294967296:1", "1 :1"]
    {
        image(
            &format!("user = {user:?}"),
            &format!(
                "`package.metadata.image.user` is `{user}`, expected a numeric `UID:GID` other than root, as in \
                 `65532:65532`"
            ),
        );
    }
}

#[test]
fn targets_that_could_break_a_container_are_refused() {
    let dots = "has a `.` or `..` component";
    let owned = "lies in a folder that the container runtime owns";
    let whiteout = "has a component that starts with `.wh.`, which deletes files in an image layer";
    for (target, shown, reason) in [
        ("models/m", "models/m", "is not absolute: start it with `/`, as in `/models/NAME`"),
        ("", "", "is not absolute: start it with `/`, as in `/models/NAME`"),
        ("/", "/", "is the root folder: name a folder below it, as in `/models/NAME`"),
        ("/models/../etc", "/models/../etc", dots),
        ("/models/./m", "/models/./m", dots),
        ("/models//m", "/models//m", "has an empty component"),
        ("/models/m/", "/models/m/", "has an empty component"),
        ("/models/\\n", "/models/\\n", "has a control character"),
        ("/models/\\u0000", "/models/\\0", "has a control character"),
        ("/models/\\u001b[31m", "/models/\\u{1b}[31m", "has a control character"),
        ("/models\\\\m", "/models\\\\m", "has a backslash: separate components by `/`"),
        ("/models/é", "/models/é", "has a character that is not ASCII"),
        ("/models/.wh.m", "/models/.wh.m", whiteout),
        ("/models/.wh..wh..opq", "/models/.wh..wh..opq", whiteout),
        ("/etc", "/etc", owned),
        ("/proc/m", "/proc/m", owned),
        ("/sys/fs", "/sys/fs", owned),
        ("/dev/shm", "/dev/shm", owned),
        ("/run/secrets", "/run/secrets", owned),
        ("/ETC/m", "/ETC/m", owned),
    ] {
        model(
            &format!("target = \"{target}\""),
            &format!("`workspace.metadata.models.m.target` is refused: target `{shown}` {reason}"),
        );
    }
    let long = format!("/m/{}", "x".repeat(256));
    model(
        &format!("target = {long:?}"),
        &format!(
            "`workspace.metadata.models.m.target` is refused: target `{long}` has a component of more than 255 bytes"
        ),
    );
}

#[test]
fn a_target_that_would_hide_the_program_is_refused() {
    for target in ["/usr/local/bin/app", "/usr", "/usr/local/bin/app/weights"] {
        let workspace = Workspace::two_models();
        workspace.replace("Cargo.toml", "/srv/words", target);
        workspace.run(&["lock"]).expect(0);
        workspace.run(&["image", "--embed"]).expect(2).says_exactly(&format!(
            "error: model `words`: target `{target}` would hide the program `/usr/local/bin/app`\n  help: choose \
             another `target` in Cargo.toml, as in `/models/NAME`\n"
        ));
    }
}

#[test]
fn targets_that_collide_are_both_named() {
    for (first, second, outer, inner) in [
        ("/m/x", "/m/x", "/m/x", "/m/x"),
        ("/m/x", "/m/x/y/z", "/m/x", "/m/x/y/z"),
        ("/m/X", "/M/x/y", "/m/X", "/M/x/y"),
        ("/models/b", "/models/b", "/models/b", "/models/b"),
    ] {
        let workspace = Workspace::new(&format!(
            "[workspace.metadata.models]\na = {{ source = \"a\", target = {first:?} }}\nb = {{ source = \"b\", target \
             = {second:?} }}\n"
        ));
        check(
            &workspace,
            &[&format!("`Cargo.toml`: models `a` and `b` collide: target `{outer}` is or contains target `{inner}`")],
        );
    }
    // The default target counts, also where only the letter case differs; a common beginning does not.
    let workspace =
        Workspace::new("[workspace.metadata.models]\nBert = { source = \"a\" }\nbert = { source = \"b\" }\n");
    check(
        &workspace,
        &["`Cargo.toml`: models `Bert` and `bert` collide: target `/models/Bert` is or contains target `/models/bert`"],
    );
    let workspace =
        Workspace::new("[workspace.metadata.models]\nm = { source = \"a.txt\" }\nm-2 = { source = \"a.txt\" }\n");
    workspace.write("a.txt", "a");
    workspace.run(&["lock"]).expect(0);
}

#[test]
fn bad_model_names_are_refused() {
    let reason = "is not 1 to 100 of `A-Z a-z 0-9 - _ .`, beginning and ending with a letter or digit";
    let long = "x".repeat(101);
    for (key, shown) in [
        ("", ""),
        ("a/b", "a/b"),
        ("../a", "../a"),
        (".a", ".a"),
        ("a-", "a-"),
        ("a b", "a b"),
        ("é", "é"),
        (&long, &long),
    ] {
        let workspace = Workspace::new(&format!("[workspace.metadata.models.{key:?}]\nsource = \"a\"\n"));
        let expect =
            format!("`Cargo.toml`: `workspace.metadata.models.{key}` is refused: model name `{shown}` {reason}");
        check(&workspace, &[&expect]);
    }
    let workspace = Workspace::new("[workspace.metadata.models.\"a\\nb\"]\nsource = \"a\"\n");
    workspace.run(&["lock"]).expect(2).says(&["model name `a\\nb` is not 1 to 100 of"]);
}

#[test]
fn sources_that_leave_the_workspace_or_have_no_known_scheme_are_refused() {
    let help = "; name a file or folder below the workspace's Cargo.toml, or a URL";
    let known = "is not one of hf://…, https://…, s3://…, gs://…, az://…, oci://…";
    for (source, reason) in [
        ("/models/m", format!("path `/models/m` is absolute: a path within a model is relative{help}")),
        ("../m", format!("path `../m` has a `.` or `..` component{help}")),
        ("models/../../m", format!("path `models/../../m` has a `.` or `..` component{help}")),
        ("", format!("path `` is empty{help}")),
        ("a\\nb", format!("path `a\\nb` has a control character{help}")),
        ("ftp://example.com/m", format!("`ftp://example.com/m` {known}")),
        ("http://example.com/m", format!("`http://example.com/m` {known}")),
        ("file:///m", format!("`file:///m` {known}")),
        ("hf://", format!("`hf://` {known}")),
        ("hf://a b", format!("`hf://a b` {known}")),
    ] {
        let workspace = Workspace::new(&format!("[workspace.metadata.models.m]\nsource = \"{source}\"\n"));
        check(&workspace, &[&format!("`Cargo.toml`: `workspace.metadata.models.m.source` is refused: {reason}")]);
    }
}

#[test]
fn a_source_of_another_machine_is_not_supported_yet_and_its_secrets_are_not_told() {
    let workspace = Workspace::new(
        "[workspace.metadata.models.m]\nsource = \"https://user:hunter2@example.com/m?token=hunter3\"\n",
    );
    workspace.run(&["lock"]).expect(2).never_says(&["hunter2", "hunter3"]).says(&[
        "error: model `m`: sources such as `https://example.com/m` are not supported yet\n",
        "\n  help: download the files into the workspace and name their folder as the source\n",
    ]);
    let workspace = Workspace::new("[workspace.metadata.models.m]\nsource = \"ftp://user:hunter2@example.com/m\"\n");
    workspace.run(&["lock"]).expect(2).never_says(&["hunter2"]).says(&["is not one of hf://…"]);
}

#[test]
fn base_and_builder_are_pinned_by_digest() {
    let unpinned = "it names no digest, and a tag can mean another image tomorrow: append `@sha256:…`, which `docker \
                    buildx imagetools inspect` and `crane digest` print";
    for key in ["base", "builder"] {
        for (value, shown, reason) in [
            ("debian:12", "debian:12", unpinned),
            ("debian", "debian", unpinned),
            ("gcr.io/distroless/static:latest", "gcr.io/distroless/static:latest", unpinned),
            ("Debian:12", "Debian:12", "its path is not lower-case letters, digits, `.`, `_`, `-`, separated by `/`"),
            (
                "debian@sha256:00",
                "debian@sha256:00",
                "`sha256:00` is not a digest: expected `sha256:<64 lower-case hex digits>`",
            ),
        ] {
            image(
                &format!("{key} = {value:?}"),
                &format!("`package.metadata.image.{key}` `{shown}` is not an image reference: {reason}"),
            );
        }
    }
}

#[test]
fn an_image_names_only_declared_models() {
    image(
        "models = [\"digit\"]",
        "`package.metadata.image.models` names `digit`, which is not declared in `Cargo.toml`; did you mean `digits`?",
    );
    image("models = [\"bert\"]", "`package.metadata.image.models` names `bert`, which is not declared in `Cargo.toml`");
}

#[test]
fn flags_for_the_compiler_mean_the_same_everywhere() {
    let has = |flag: &str| format!("`package.metadata.image.rustflags` has the item `{flag}`");
    let example = "as in `-Ctarget-cpu=x86-64-v3`";
    for flag in ["-C target-cpu=x", "-Ca=$HOME", "-Ca#b", "-C`a`"] {
        let problem = format!("{}, expected one flag without spaces, quotes, `$`, `#`, {example}", has(flag));
        image(&format!("rustflags = [\"{flag}\"]"), &problem);
    }
    let problem =
        format!("{}, which means another processor on every machine; name one, {example}", has("-Ctarget-cpu=native"));
    image("rustflags = [\"-Ctarget-cpu=native\"]", &problem);
    // What the workspace's configuration says is not taken in silence, nor left out in silence.
    let workspace = Workspace::locked();
    workspace.write(".cargo/config.toml", "[build]\nrustflags = [\"-Ctarget-cpu=native\"]\n");
    let call = ["image", "--embed", "--check"];
    let says = ["images are compiled without `build.rustflags`", "help: declare what they need as `rustflags`"];
    workspace.run(&call).expect(1).says(&says);
    workspace.image("rustflags = []");
    workspace.run(&call).expect(1).never_says(&["rustflags"]);
}

#[test]
fn no_text_reaches_another_line_of_a_dockerfile() {
    let has = "has a control character: `MIT\\nRUN evil`";
    model("license = \"MIT\\nRUN evil\"", &format!("`workspace.metadata.models.m.license` {has}"));
    for (line, key) in [
        ("base = \"scratch\\nRUN evil\"", "base` has a control character: `scratch\\nRUN evil`"),
        ("builder = \"rust\\nRUN evil\"", "builder` has a control character: `rust\\nRUN evil`"),
        ("user = \"1:1\\nRUN evil\"", "user` has a control character: `1:1\\nRUN evil`"),
        (
            "env.A = \"1\\nRUN evil\"",
            "env.A` is the string `1\\nRUN evil`, expected a string without control characters",
        ),
        (
            "healthcheck = [\"a\\nRUN evil\"]",
            "healthcheck` has the item `\"a\\nRUN evil\"`, expected strings without control characters",
        ),
        ("target = \"x-linux-\\nRUN evil\"", "target` has a control character: `x-linux-\\nRUN evil`"),
    ] {
        image(line, &format!("`package.metadata.image.{key}"));
    }
}

#[test]
fn a_line_end_in_what_the_package_says_of_itself_is_refused() {
    // Cargo takes them as they are, and both become labels.
    for (key, old) in [("license", "Apache-2.0"), ("repository", "https://example.com/app")] {
        let workspace = Workspace::two_models();
        workspace.run(&["lock"]).expect(0);
        workspace.replace("app/Cargo.toml", old, &format!("{old}\\nRUN evil"));
        workspace
            .run(&["image", "--embed"])
            .expect(2)
            .says(&[&format!("`app/Cargo.toml`: `package.{key}`"), "control character"]);
        assert!(!workspace.path("Dockerfile.embed").exists());
    }
}

#[test]
fn all_problems_of_all_files_are_told_at_once() {
    let workspace = Workspace::new(
        "[workspace.metadata.models.a]\nsource = \"/a\"\ntarget = \"a\"\ncolour = 1\n\n\
         [workspace.metadata.models.b]\nsource = \"b\"\nlicense = 1\n",
    );
    workspace.image("ports = [0]\nuser = \"root\"\nmodels = [\"bert\"]\n");
    check(
        &workspace,
        &[
            "`Cargo.toml`: `workspace.metadata.models.a.colour` is not a known key; known are source, target, \
             license, include, exclude, mirrors, strategy, allow-unsafe-format",
            "`Cargo.toml`: `workspace.metadata.models.a.target` is refused: target `a` is not absolute: start it with \
             `/`, as in `/models/NAME`",
            "`Cargo.toml`: `workspace.metadata.models.a.source` is refused: path `/a` is absolute: a path within a \
             model is relative; name a file or folder below the workspace's Cargo.toml, or a URL",
            "`Cargo.toml`: `workspace.metadata.models.b.license` is the number `1`, expected a string",
            "`app/Cargo.toml`: `package.metadata.image.models` names `bert`, which is not declared in `Cargo.toml`",
            "`app/Cargo.toml`: `package.metadata.image.ports` is `[0]`, expected a list of numbers from 1 to 65535",
            "`app/Cargo.toml`: `package.metadata.image.user` is `root`, expected a numeric `UID:GID` other than root, \
             as in `65532:65532`",
        ],
    );
}

#[test]
fn an_error_in_json_has_its_code_and_lines() {
    let workspace = Workspace::new("[workspace.metadata.models.m]\nsource = \"/m\"\ntarget = \"m\"\n");
    let document = workspace.run(&["lock", "--format", "json"]).expect(2).json();
    assert_eq!(document["ok"], false);
    assert_eq!(document["error"]["code"], 8);
    assert_eq!(document["error"]["message"], "the declaration has 2 errors");
    assert_eq!(document["error"]["details"].as_array().unwrap().len(), 2);
}

#[test]
fn what_is_no_workspace_is_refused() {
    let workspace = Workspace::new("");
    workspace.remove("Cargo.toml");
    workspace.remove("app/Cargo.toml");
    workspace.run(&["lock"]).expect(2).says(&[
        "error: failed to read the workspace with `cargo metadata`\n  caused by: could not find `Cargo.toml` in `[ROOT]`",
    ]);
    workspace.write("Cargo.toml", "[workspace\n");
    workspace.run(&["verify-models"]).expect(2).says(&[
        "error: failed to read the workspace with `cargo metadata`\n",
        "  caused by: unclosed table, expected `]`\n",
        " Cargo.toml:1:11\n",
    ]);
}

#[test]
fn the_command_line_is_checked() {
    let workspace = Workspace::new("");
    for (arguments, part) in [
        (&["image"][..], "required arguments were not provided"),
        (&["image", "--embed", "--mount"], "cannot be used with"),
        (&["image", "--embed", "--check", "--dry-run"], "cannot be used with"),
        (&["lokc"], "lock"),
        (&["lock", "--chek"], "--check"),
        (&["image", "--embed", "--tag", "Not A Name"], "is not an image reference"),
        (&["image", "--embed", "--platform", "windows/amd64"], "is not of the form `linux/ARCH`"),
    ] {
        let output = workspace.run(arguments).expect(2).says(&["error: ", part]);
        assert_eq!(output.stdout, "");
    }
}
