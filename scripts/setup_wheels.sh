#!/usr/bin/env bash
# Gets packages from PyPI into a folder of their own, ${LOWRANK_HOME:-$HOME/.cache/lowrank}/NAME, and prints that folder:
# PYTHONPATH of it is all that they need. A second run with the same packages takes no time.
#   bash scripts/setup_wheels.sh NAME PACKAGE==VERSION...
set -euo pipefail

home="${LOWRANK_HOME:-$HOME/.cache/lowrank}"
name="$1" target="$home/$1"
shift
want="$* $(python3 -c 'import sys; print(sys.version_info[:2])')"

mkdir -p "$home"
exec 9>"$home/.$name.lock"
flock 9
if [ "$(cat "$target/.done" 2>/dev/null)" != "$want" ]; then
  rm -rf "$target"
  # Beside the target: /tmp may be too small for wheels of half a gigabyte.
  scratch=$(mktemp -d "$home/$name-scratch.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  TMPDIR="$scratch" python3 -m pip install --quiet --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
    --target "$target" "$@" 9>&-
  printf '%s\n' "$want" >"$target/.done"
fi
echo "$target"
