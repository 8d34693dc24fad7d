#!/bin/sh
# Times the commands that read models against programs that do the least that could be done, in turn, on one made-up
# model, and prints each time and the ratio. Usage: benches/run.sh [MiB]. Needs openssl, GNU tar and about 5 times the space.
# With DOCKER_HOST set, also what that engine does, which needs `docker` and as much space again where the engine is.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
mib=${1:-2048}
cargo build --quiet --manifest-path "$here/Cargo.toml" --package xtask
xtask=$here/target/debug/xtask
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p app/src models/m
printf '[workspace]\nresolver = "3"\nmembers = ["app"]\n[workspace.metadata.models.m]\nsource = "models/m"\n' >Cargo.toml
printf '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2024"\n[package.metadata.image]\n' >app/Cargo.toml
echo 'fn main() {}' >app/src/main.rs
cargo generate-lockfile --quiet --offline
half=$((mib / 2))
for part in a b; do head -c "${half}M" /dev/urandom >"models/m/$part.weights"; done
sleep 3 # Younger files get no stamps.
"$xtask" lock --quiet >/dev/null
"$xtask" image --embed --quiet --print-digest >/dev/null # compiles the app

seconds() { # seconds CMD…: wall time
  start=$(date +%s%N)
  "$@" >/dev/null 2>&1
  end=$(date +%s%N)
  echo "scale=2; ($end - $start) / 1000000000" | bc
}
compare() { # compare NAME OURS PEER
  best_ours=999999 best_peer=999999
  for _ in 1 2 3; do
    ours=$(seconds sh -c "$2") peer=$(seconds sh -c "$3")
    [ "$(echo "$ours < $best_ours" | bc)" = 1 ] && best_ours=$ours
    [ "$(echo "$peer < $best_peer" | bc)" = 1 ] && best_peer=$peer
  done
  printf '| %s | %.2f s | %.2f s | %.2f |\n' "$1" "$best_ours" "$best_peer" "$(echo "scale=4; $best_ours / $best_peer" | bc)"
}
echo "| $mib MiB in two files | here | peer | ratio |"
echo "|---|---|---|---|"
compare "\`verify-models\` / \`openssl dgst -sha256\`" "$xtask verify-models" "openssl dgst -sha256 models/m/*"
compare "\`lock\` / \`openssl dgst -sha256\`" "$xtask lock" "openssl dgst -sha256 models/m/*"
compare "\`image --embed --output\`, first time / \`tar -c\` to a file and \`openssl dgst\` of it" \
  "rm -rf out target/image/stamps.json; $xtask image --embed --output out" "tar -cf out.tar models && openssl dgst -sha256 out.tar; rm -f out.tar"
compare "\`image --embed --output\`, nothing changed / the same" \
  "$xtask image --embed --output out" "tar -cf out.tar models && openssl dgst -sha256 out.tar; rm -f out.tar"

[ -n "${DOCKER_HOST:-}" ] || exit 0
"$xtask" image --embed --quiet --output image.tar >/dev/null
forget='docker image rm --force app:embed bench:latest >/dev/null 2>&1; docker image prune --force >/dev/null'
cat >plain.Dockerfile <<'EOF'
FROM scratch
COPY models /models
COPY app/src /app
EOF
printf '*\n!models\n!app\n' >plain.Dockerfile.dockerignore
plain='docker buildx build --quiet --file plain.Dockerfile --tag bench .'
compare "\`image --embed --load\`, first time / \`docker load\` of the same image" \
  "$forget; $xtask image --embed --load" "$forget; docker load --input image.tar"
compare "\`image --embed --load\`, first time / \`docker build\` of a Dockerfile with \`COPY models /models\`" \
  "$forget; $xtask image --embed --load" "docker builder prune --all --force; $forget; $plain"
# shellcheck disable=SC2016 # expanded where it is run
change='count=$(cat count 2>/dev/null || echo 0); echo $((count + 1)) >count; echo "fn main() { println!(\"$count\"); }" >app/src/main.rs'
"$xtask" image --embed --load --quiet >/dev/null
compare "\`image --embed --load\` after a change of code / \`docker load\` of the whole" \
  "$change; $xtask image --embed --load" "docker load --input image.tar"
sh -c "$forget; docker builder prune --all --force" >/dev/null 2>&1
