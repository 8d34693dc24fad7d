//! `image --load`: the id is what it must be, and nothing is sent twice.

use serde_json::Value;

use crate::engines::{
    build_arguments, builder, docker_build, engine, image_cleanup, inspect, locked_layers, old_engine, texts, xtask,
};
use crate::support::{Workspace, noise, safetensors};

#[test]
fn a_loaded_image_has_the_id_that_it_must_have() {
    let workspace = Workspace::committed();
    let (new, old) = (engine(), old_engine());
    let tag = "model-lock-test/load:a";
    let _cleanup = image_cleanup(&[&new, &old], tag);
    let built = workspace.run(&["image", "--embed", "--tag", tag, "--format", "json"]).expect(0).json();
    for (host, id) in [(&new, &built["digest"]), (&old, &built["config"])] {
        let loaded = xtask(&workspace, host, &["image", "--embed", "--load", "--tag", tag]).expect(0);
        assert_eq!(Value::from(loaded.digest()), built["digest"]);
        let image = inspect(host, tag);
        assert_eq!(&image["Id"], id, "{host}");
        let layers: Vec<_> = built["layers"].as_array().unwrap().iter().map(|layer| layer["digest"].clone()).collect();
        assert_eq!(image["RootFS"]["Layers"].as_array().unwrap(), &layers);
        // Nothing is sent twice.
        let again = xtask(&workspace, host, &["image", "--embed", "--load", "--tag", tag]).expect(0);
        assert!(!again.stderr.contains("Loading"), "{}", again.stderr);
    }
    // No layout is written beside it.
    let fresh = Workspace::locked();
    xtask(&fresh, &new, &["image", "--embed", "--load", "--tag", tag]).expect(0);
    assert!(!fresh.path("target/image/app/embed/oci").exists());
}

/// Programs that print a word, and that no engine has seen yet.
fn program() -> impl Fn(&str) -> String {
    let run = std::process::id();
    move |word| format!("fn main() {{\n    println!(\"{word} {run}\");\n}}\n")
}

#[test]
fn code_that_changed_is_loaded_without_the_models() {
    let workspace = Workspace::locked();
    let big = noise(1, 3 << 20);
    workspace.write("models/digits/model.safetensors", safetensors(&big));
    workspace.run(&["lock"]).expect(0);
    let tag = "model-lock-test/again:a";
    let _cleanup = image_cleanup(&[&engine(), &old_engine()], tag);
    let prints = program();
    for host in [engine(), old_engine()] {
        workspace.write("app/src/main.rs", prints("hello"));
        xtask(&workspace, &host, &["image", "--embed", "--load", "--tag", tag])
            .expect(0)
            .says(&["3 layers", "to send"]);
        workspace.write("app/src/main.rs", prints("changed"));
        let changed = xtask(&workspace, &host, &["image", "--embed", "--load", "--tag", tag]).expect(0);
        let changed = changed.says(&["1 of 3 layers to send"]);
        assert_eq!(
            texts(&inspect(&host, tag)["RootFS"]["Layers"])[..2],
            locked_layers(&workspace),
            "{}",
            changed.stderr
        );
        let ran = xtask(&workspace, &host, &["run", "--embed", "--network", "none"]).expect(0);
        assert!(ran.stderr.contains(&format!("changed {}\n", std::process::id())), "{}", ran.stderr);
    }
}

#[test]
fn layers_that_the_engine_built_are_not_taken_for_those_of_an_archive() {
    let workspace = Workspace::two_models();
    // Models and programs that no engine has seen yet.
    let (run, prints) = (std::process::id(), program());
    workspace.write("app/src/main.rs", prints("first"));
    workspace.write("models/digits/config.json", format!("{{\"run\": {run}}}\n"));
    workspace.write("models/words.txt", format!("{run}\n"));
    workspace.run(&["lock"]).expect(0);
    let (host, built, loaded) = (engine(), "model-lock-test/form:docker", "model-lock-test/form:oci");
    let _cleanup = (image_cleanup(&[&host], built), image_cleanup(&[&host], loaded));
    docker_build(&workspace, "--embed", built).expect(0);
    let load = ["image", "--embed", "--load", "--tag", loaded];
    let first = xtask(&workspace, &host, &load).expect(0).says(&["(3 layers to send"]);
    assert_eq!(first.stderr.matches("Loading").count(), 1, "{}", first.stderr);
    workspace.write("app/src/main.rs", prints("second"));
    xtask(&workspace, &host, &load).expect(0).says(&["(1 of 3 layers to send"]);
}

#[test]
fn wrong_bytes_move_no_name() {
    let workspace = Workspace::committed();
    let host = engine();
    let tag = "model-lock-test/wrong:a";
    let _cleanup = image_cleanup(&[&host], tag);
    xtask(&workspace, &host, &["image", "--embed", "--load", "--tag", tag]).expect(0);
    let before = inspect(&host, tag)["Id"].clone();
    workspace.write("app/src/main.rs", "fn main() {}\n");
    workspace.flip("models/digits/model.safetensors");
    let load = ["image", "--embed", "--load", "--tag", tag];
    let builder = builder();
    let build = build_arguments("--embed", tag, &builder, "host");
    for arguments in [&load[..], &build] {
        let refused = xtask(&workspace, &host, arguments).expect(1);
        refused.says(&["digits/model.safetensors has other bytes than models.lock says", "expected sha256:"]);
        assert_eq!(inspect(&host, tag)["Id"], before);
    }
}
