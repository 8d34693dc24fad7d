//! `image --builder docker`: the image of the plan, or an error that says which step failed.

use std::fs::File;
use std::process::Command;

use serde_json::Value;

use crate::engines::{
    ask, build_arguments, builder, docker_build, engine, image_cleanup, inspect, locked_layers, old_engine, texts,
    xtask,
};
use crate::support::Workspace;

#[test]
fn two_builders_make_one_result() {
    let workspace = Workspace::committed();
    workspace.image("ports = [8080]\nhealthcheck = [\"check\"]\nenv = { GREETING = \"a \\\"b\\\" $c\" }");
    workspace.commit_with_dockerfile();
    let host = engine();
    let (ours, theirs) = ("model-lock-test/builders:oci", "model-lock-test/builders:docker");
    let _cleanup = (image_cleanup(&[&host], ours), image_cleanup(&[&host], theirs));
    xtask(&workspace, &host, &["image", "--embed", "--load", "--tag", ours]).expect(0);
    let built = docker_build(&workspace, "--embed", theirs).expect(0).says(&["COPY --link .context/"]);
    let (ours, theirs) = (inspect(&host, ours), inspect(&host, theirs));
    assert_eq!(Value::from(built.digest()), theirs["Id"]);
    let models = locked_layers(&workspace);
    assert_eq!(models.len(), 2);
    assert_eq!(texts(&theirs["RootFS"]["Layers"])[..2], models);
    assert_eq!(texts(&ours["RootFS"]["Layers"])[..2], models);
    for key in ["Labels", "Env", "User", "Entrypoint", "ExposedPorts", "Healthcheck", "WorkingDir"] {
        assert_eq!(theirs["Config"][key], ours["Config"][key], "{key}");
    }
    assert!(theirs["Config"]["Labels"]["org.opencontainers.image.revision"].as_str().unwrap().len() >= 40);
    // The same commit again: the same image.
    assert_eq!(
        docker_build(&workspace, "--embed", "model-lock-test/builders:docker").expect(0).digest(),
        built.digest()
    );
}

#[test]
fn the_lean_image_comes_with_its_runtime_manifest() {
    let workspace = Workspace::committed();
    let prints = "fn main() {\n    println!(\"{:?}\", std::fs::read_to_string(\"/srv/words/words.txt\"));\n}\n";
    workspace.write("app/src/main.rs", prints);
    let host = engine();
    let (ours, theirs) = ("model-lock-test/lean:oci", "model-lock-test/lean:docker");
    let _cleanup = (image_cleanup(&[&host], ours), image_cleanup(&[&host], theirs));
    for tag in [ours, theirs] {
        let built = if tag == ours {
            xtask(&workspace, &host, &["image", "--mount", "--load", "--tag", tag]).expect(0)
        } else {
            docker_build(&workspace, "--mount", tag).expect(0)
        };
        let image = inspect(&host, tag);
        assert_eq!(image["Id"], Value::from(built.digest()));
        assert_eq!(texts(&image["RootFS"]["Layers"]).len(), 1);
        let manifest: Value = serde_json::from_str(&workspace.text("target/image/app/mount/models.json")).unwrap();
        assert_eq!(manifest["image"]["reference"], tag);
        assert_eq!(manifest["image"]["digest"], image["Id"]);
        // The image is in the engine, and nothing has to be loaded.
        let script = workspace.path("target/image/app/mount/run.sh");
        let ran = Command::new(script).args(["--network", "none"]).env("DOCKER_HOST", &host).output().unwrap();
        assert_eq!(String::from_utf8(ran.stdout).unwrap(), "Ok(\"one\\ntwo\\n\")\n", "{:?}", ran.stderr);
    }
    let config = |tag| inspect(&host, tag)["Config"].clone();
    for key in ["Labels", "Env", "User", "Entrypoint"] {
        assert_eq!(config(theirs)[key], config(ours)[key], "{key}");
    }
}

#[test]
fn what_cargo_is_told_in_the_workspace_holds_in_the_container() {
    let workspace = Workspace::locked();
    workspace.vendor();
    workspace.replace(
        "app/Cargo.toml",
        "[package.metadata.image]\n",
        "[package.metadata.image]\nrustflags = [\"--cfg=fast\"]\n",
    );
    let program = "fn main() {\n    println!(\"{} {}\", tiny::target::WORD, cfg!(fast));\n}\n";
    workspace.write("app/src/main.rs", program);
    workspace.commit_with_dockerfile();
    let host = engine();
    let [ours, theirs, plain] = ["oci", "docker", "plain"].map(|builder| format!("model-lock-test/vendor:{builder}"));
    let _cleanup = [&ours, &theirs, &plain].map(|tag| image_cleanup(&[&host], tag));
    xtask(&workspace, &host, &["image", "--embed", "--load", "--tag", &ours]).expect(0);
    xtask(&workspace, &host, &build_arguments("--embed", &theirs, &builder(), "none")).expect(0);
    plain_build(&workspace, &host, &plain, "none");
    for tag in [ours, theirs, plain] {
        let ran =
            Command::new("docker").args(["-H", &host, "run", "--rm", "--network", "none", &tag]).output().unwrap();
        assert_eq!(String::from_utf8(ran.stdout).unwrap(), "vendored true\n", "{tag}");
    }
}

/// `docker buildx build` of Dockerfile.embed.
fn plain_build(workspace: &Workspace, host: &str, tag: &str, network: &str) {
    let built = Command::new("docker")
        .args(["buildx", "build", "--network", network, "--build-arg", &builder(), "--tag", tag])
        .args(["--file", "Dockerfile.embed", "."])
        .current_dir(workspace.root())
        .env("DOCKER_HOST", host)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

#[test]
fn a_model_of_the_same_size_and_time_comes_out_new() {
    let workspace = Workspace::committed();
    let host = engine();
    let [ours, theirs, plain] = ["oci", "docker", "plain"].map(|builder| format!("model-lock-test/stale:{builder}"));
    let _cleanup = [&ours, &theirs, &plain].map(|tag| image_cleanup(&[&host], tag));
    let at = workspace.path("models/words.txt");
    let modified = at.metadata().unwrap().modified().unwrap();
    for round in 0..10 {
        workspace.write("models/words.txt", format!("round {round}\n"));
        File::options().write(true).open(&at).unwrap().set_modified(modified).unwrap();
        workspace.run(&["lock"]).expect(0);
        // The first stages the context of the last.
        workspace.run(&["image", "--embed"]).expect(0);
        xtask(&workspace, &host, &["image", "--embed", "--load", "--tag", &ours]).expect(0);
        docker_build(&workspace, "--embed", &theirs).expect(0);
        plain_build(&workspace, &host, &plain, "host");
        for tag in [&ours, &theirs, &plain] {
            let image = inspect(&host, tag);
            assert_eq!(texts(&image["RootFS"]["Layers"])[..2], locked_layers(&workspace), "round {round}, {tag}");
        }
    }
}

#[test]
fn a_step_that_fails_is_told_with_its_last_lines() {
    let workspace = Workspace::committed();
    workspace.write("app/src/main.rs", "fn main() {\n    this_does_not_exist();\n}\n");
    let tag = "model-lock-test/fails:a";
    let failed = docker_build(&workspace, "--embed", tag).expect(2);
    failed.says(&[
        "failed to build the image at the step `[build",
        "| error[E0425]: cannot find function `this_does_not_exist`",
        "the step ended with exit code: 101",
        "help: ",
    ]);
    assert_eq!(ask(&engine(), "GET", &format!("/images/{tag}/json")).0, 404);
}

#[test]
fn an_engine_that_cannot_build_it_is_told_before_anything_is_sent() {
    let workspace = Workspace::committed();
    let refused = xtask(&workspace, &old_engine(), &["image", "--embed", "--builder", "docker"]).expect(2);
    refused.says(&["Docker Engine 20.10", "`COPY --link` needs Docker Engine 23.0", "--builder docker", "--load"]);
}

#[test]
fn what_the_engine_cannot_do_is_refused_before_it_is_asked() {
    let workspace = Workspace::committed();
    let nowhere = "unix:///nowhere";
    for flag in [&["--print-digest"][..], &["--output", "x"]] {
        let arguments = [&["image", "--embed", "--builder", "docker"], flag].concat();
        xtask(&workspace, nowhere, &arguments).expect(2).says(&["in the engine, and nowhere else", "--builder docker"]);
    }
    let arguments = ["image", "--embed", "--build-arg", "A=b"];
    xtask(&workspace, nowhere, &arguments).expect(2).says(&["`--build-arg` and `--network` are for the engine"]);
    let arguments = ["image", "--embed", "--builder", "docker", "--build-arg", "1=b"];
    xtask(&workspace, nowhere, &arguments).expect(2).says(&["it is not `NAME=VALUE`"]);
}
