#!/usr/bin/env bash
# Runs what `make gpu-bundle` packed, in a checkout of the same commit, which has the files that tests read.
#   .gpu/run.sh test [NAME..] [-- ARG..]   all test binaries, or those named; arguments for each
#   .gpu/run.sh bench NAME [ARG..]         a bench
#   .gpu/run.sh sanitize [ARG..]           the small kernel tests under compute-sanitizer, or those named
#   .gpu/run.sh sdrt ARG..                 sdrt itself
# Tests find their files under SDRT_ROOT, which is the checkout, and sdrt itself in SDRT_BIN.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bundle=$here/bundle

if [ ! -d "$bundle" ] || [ "$here/bundle.tar.xz" -nt "$bundle" ]; then
    rm -rf "$bundle"
    python3 - "$here" <<'PYTHON'
import hashlib, json, pathlib, sys, tarfile

here = pathlib.Path(sys.argv[1])
tarfile.open(here / "bundle.tar.xz").extractall(here)
# The weights inside sdrt come from the checkout.
sdrt = here / "bundle/sdrt"
binary = bytearray(sdrt.read_bytes())
for file, start, sha256 in json.loads((here / "bundle/sdrt.cut.json").read_text()):
    weights = (here.parent / file).read_bytes()
    if hashlib.sha256(weights).hexdigest() != sha256:
        sys.exit(f"{file} is another one than sdrt was built with; run make gpu-bundle again")
    binary[start : start + len(weights)] = weights
sdrt.write_bytes(binary)
PYTHON
    touch "$bundle"
fi
export SDRT_ROOT SDRT_BIN=$bundle/sdrt
SDRT_ROOT=$(dirname "$here")

# cuBLASLt 13: in torch's packages, where there is no toolkit.
libraries=$(python3 - <<'PYTHON'
import pathlib, sys

folders = [pathlib.Path(path, "nvidia/cu13/lib") for path in sys.path]
print(":".join(str(folder) for folder in folders if list(folder.glob("libcublasLt.so*"))))
PYTHON
)
libraries=${libraries:-$(dirname "$(find / -name 'libcublasLt.so.13' -not -path '/proc/*' 2>/dev/null | head -n 1)")}
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

verb=${1:-}
[ $# -gt 0 ] && shift
case $verb in
test)
    export SDRT_REQUIRE_GPU=${SDRT_REQUIRE_GPU:-1}
    names=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do names+=("$1") && shift; done
    [ "${1:-}" = -- ] && shift
    [ ${#names[@]} -gt 0 ] || mapfile -t names < <(find "$bundle/tests" -maxdepth 1 -type f -printf '%f\n' | sort)
    cd "$SDRT_ROOT"
    failed=()
    for name in "${names[@]}"; do
        echo "== $name"
        "$bundle/tests/$name" "$@" || failed+=("$name")
    done
    [ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2 && exit 1; }
    ;;
bench)
    name=${1:?"bench NAME; there are: $(ls "$bundle/benches" | tr '\n' ' ')"}
    shift
    exec "$bundle/benches/$name" --bench "$@"
    ;;
sanitize)
    export SDRT_REQUIRE_GPU=1
    cd "$SDRT_ROOT"
    check() { compute-sanitizer --error-exitcode 9 --tool "$1" "$bundle/tests/kernels" "${@:2}" --test-threads 1; }
    echo "== memcheck"
    check memcheck "${@:-small}"
    echo "== racecheck"
    # racecheck of CUDA 13.0 ends the process at a graph with a conditional node: without those loops.
    check racecheck "${@:-small}" --skip loops_while --skip loops_stop
    ;;
sdrt) exec "$bundle/sdrt" "$@" ;;
*)
    sed -n '2,7s/^# //p' "$here/run.sh" >&2
    exit 2
    ;;
esac
