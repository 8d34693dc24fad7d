//! A member of the workspace, as a Dockerfile needs it: its folder, its targets, and the members it depends on.

use std::path::Path;

use cargo_metadata::TargetKind;

use super::table::Problems;
use super::{Member, relative};

pub(super) fn member(
    package: &cargo_metadata::Package,
    root: &Path,
    manifest: &str,
    metadata: &cargo_metadata::Metadata,
    problems: &mut Problems,
) -> Member {
    let wanted = [
        TargetKind::Bin,
        TargetKind::Lib,
        TargetKind::ProcMacro,
        TargetKind::CustomBuild,
        TargetKind::CDyLib,
        TargetKind::RLib,
    ];
    let mut targets: Vec<(String, bool)> = package
        .targets
        .iter()
        .filter(|target| target.kind.iter().any(|kind| wanted.contains(kind)))
        .map(|target| {
            let program = target.is_kind(TargetKind::Bin) || target.is_kind(TargetKind::CustomBuild);
            (relative(root, target.src_path.as_std_path()), program)
        })
        .collect();
    targets.sort();
    let mut depends_on = Vec::new();
    for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
        if metadata.workspace_packages().iter().any(|member| member.name.as_str() == dependency.name) {
            depends_on.push(dependency.name.clone());
        } else if let Some(path) = &dependency.path {
            problems.0.push(format!(
                "`{manifest}`: dependency `{}` at `{path}` is not a member of the workspace, so no image can be built from the workspace alone",
                dependency.name
            ));
        }
    }
    depends_on.sort();
    depends_on.dedup();
    let folder = manifest.strip_suffix("Cargo.toml").unwrap_or(manifest).trim_end_matches('/').to_owned();
    Member { name: package.name.to_string(), folder, targets, depends_on }
}
