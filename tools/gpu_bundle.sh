#!/usr/bin/env bash
# Packs the tests, the benches and sdrt into .gpu/, for a GPU machine that has Python but no Rust.
# There, in a checkout: .gpu/run.sh test | bench | sanitize | sdrt
set -euo pipefail
cd "$(dirname "$0")/.."

rm -rf .gpu
mkdir -p .gpu/bundle/{tests,benches}
cargo build --release --bins --tests --bench '*' --message-format=json-render-diagnostics |
    python3 -c '
import json, shutil, sys

for line in sys.stdin:
    artifact = json.loads(line)
    if artifact.get("reason") != "compiler-artifact" or not artifact["executable"]:
        continue
    name, kind = artifact["target"]["name"], artifact["target"]["kind"][0]
    if kind == "bench":
        place = f"benches/{name}"
    elif kind == "test":
        place = f"tests/{name}"
    elif artifact["profile"]["test"]:
        place = "tests/unit-" + kind
    elif kind == "bin":
        place = name
    else:
        continue
    shutil.copy2(artifact["executable"], ".gpu/bundle/" + place)
'
find .gpu/bundle -type f -exec strip --strip-debug {} +

# The weights inside sdrt come with the checkout already: zeros in their place, and run.sh puts them back.
python3 - .gpu/bundle <<'PYTHON'
import hashlib, json, pathlib, sys

bundle = pathlib.Path(sys.argv[1])
binary = bytearray((bundle / "sdrt").read_bytes())
cut = []
for file in sorted(pathlib.Path("models/emoji").rglob("*.safetensors")):
    weights = file.read_bytes()
    start = binary.find(weights)
    if start < 0:
        sys.exit(f"gpu_bundle.sh: sdrt does not have the bytes of {file}")
    binary[start : start + len(weights)] = bytes(len(weights))
    cut.append([str(file), start, hashlib.sha256(weights).hexdigest()])
(bundle / "sdrt").write_bytes(binary)
(bundle / "sdrt.cut.json").write_text(json.dumps(cut))
PYTHON

# Every binary embeds the same kernels: a window that spans several binaries stores them once.
tar --sort=name -cf - -C .gpu bundle | xz --lzma2=preset=6,dict=128MiB >.gpu/bundle.tar.xz
rm -r .gpu/bundle
cp tools/gpu_run.sh .gpu/run.sh
du -sh .gpu/bundle.tar.xz
if [ "$(stat -c %s .gpu/bundle.tar.xz)" -gt $((20 << 20)) ]; then
    echo "gpu_bundle.sh: .gpu/bundle.tar.xz is larger than 20 MB" >&2
    exit 1
fi
