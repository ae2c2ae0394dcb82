#!/usr/bin/env bash
# Installs what runs the WebGPU tests without a GPU, on Debian as root: two software Vulkan drivers (lavapipe for Deno,
# SwiftShader, which comes with Chromium, for Dawn), Dawn for Node and Bun (npm `webgpu`), Chromium and what drives it.
# A second run takes no time. `SOFTWARE_GPU=1 deno task test` then uses them (scripts/engines.ts).
set -euo pipefail

home="${LOWRANK_HOME:-$HOME/.cache/lowrank}/gpu"
missing=()
for name in libvulkan1 mesa-vulkan-drivers chromium; do
  dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
done
if [ "${#missing[@]}" -gt 0 ]; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 update
  apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 install -y --no-install-recommends "${missing[@]}" >/dev/null
fi

want='{"private":true,"dependencies":{"webgpu":"0.6.2","playwright-core":"1.65.1"}}'
mkdir -p "$home"
exec 9>"$home/.lock"
flock 9
if [ "$(cat "$home/.done" 2>/dev/null)" != "$want" ]; then
  rm -f "$home/.done"
  printf '%s\n' "$want" >"$home/package.json"
  (cd "$home" && npm install --ignore-scripts --no-audit --no-fund --no-package-lock --loglevel=error >npm.log 2>&1 9>&-) || {
    tail -20 "$home/npm.log" >&2
    exit 1
  }
  printf '%s\n' "$want" >"$home/.done"
fi
echo "webgpu and playwright-core in place, chromium $(dpkg-query -W -f '${Version}' chromium)"
