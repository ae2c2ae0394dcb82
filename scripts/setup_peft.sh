#!/usr/bin/env bash
# Gets PEFT and what it runs on from PyPI, into ${LOWRANK_HOME:-$HOME/.cache/lowrank}/peft: 3 GB to load, 6 GB on disk,
# two minutes, nearly all of it the GPU libraries without which the Linux wheel of torch does not start. A second run
# takes no time. Prints the folder; PYTHONPATH of it is all that the packages need.
set -euo pipefail

home="${LOWRANK_HOME:-$HOME/.cache/lowrank}"
target="$home/peft"
want="peft==0.21.2 torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 $(python3 -c 'import sys; print(sys.version_info[:2])')"

mkdir -p "$home"
exec 9>"$home/.peft.lock"
flock 9
if [ "$(cat "$target/.done" 2>/dev/null)" != "$want" ]; then
  rm -rf "$target"
  # Beside the target: /tmp may be too small for wheels of half a gigabyte.
  scratch=$(mktemp -d "$home/peft-scratch.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  # shellcheck disable=SC2086
  TMPDIR="$scratch" python3 -m pip install --quiet --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
    --target "$target" ${want%% (*} 9>&-
  printf '%s\n' "$want" >"$target/.done"
fi
echo "$target"
