#!/usr/bin/env bash
# Installs the libraries that `deno task bench` measures beside this one, from npm and PyPI, without install scripts and
# without root. A second run takes no time; what cannot be installed is named, and the bench then names it as absent.
#   bash scripts/setup_peers.sh [NAME]  all, or those with that name in theirs, into
#                                       ${LOWRANK_HOME:-$HOME/.cache/lowrank}/peers
# The models come from setup_models.sh; wllama runs in the Chromium of setup_gpu.sh.
set -euo pipefail

home="${LOWRANK_HOME:-$HOME/.cache/lowrank}/peers"
mkdir -p "$home"
exec 9>"$home/.lock"
flock 9 # two callers at once: the second one waits

packages=(
  "onnxruntime-web@1.30.0"
  "@tensorflow/tfjs-core@4.22.0 @tensorflow/tfjs-backend-wasm@4.22.0"
  "@jax-js/jax@0.1.25"
  "ml-matrix@6.15.1"
  "@wllama/wllama@3.8.1"
  "node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1"
)
numpy="numpy==2.4.6"

# One folder per peer: they do not share dependencies, and one that fails takes no other with it.
install_npm() {
  local names=$1 folder
  folder="$home/$(sed -E 's/^@([^/]+)\//\1-/; s/@[0-9].*//' <<<"$names")"
  [ "$(cat "$folder/.done" 2>/dev/null)" = "$names" ] && return
  rm -rf "$folder"
  mkdir -p "$folder"
  echo '{"private":true}' >"$folder/package.json"
  # shellcheck disable=SC2086 # several names in one text
  (cd "$folder" && npm install --ignore-scripts --omit=optional --no-audit --no-fund --no-package-lock \
    --loglevel=error $names >npm.log 2>&1 9>&-) || {
    tail -5 "$folder/npm.log" >&2
    return 1
  }
  echo "$names" >"$folder/.done"
}

install_numpy() {
  [ "$(cat "$home/numpy/.done" 2>/dev/null)" = "$numpy" ] && return
  rm -rf "$home/numpy"
  python3 -m pip install --quiet --no-deps --disable-pip-version-check --target "$home/numpy" "$numpy" || return 1
  echo "$numpy" >"$home/numpy/.done"
}

only="${1:-}"
for names in "${packages[@]}"; do
  [[ $names == *$only* ]] || continue
  if install_npm "$names"; then echo "in place: $names"; else echo "ABSENT: $names"; fi
done
[[ $numpy == *$only* ]] || exit 0
if install_numpy; then echo "in place: $numpy"; else echo "ABSENT: $numpy"; fi
