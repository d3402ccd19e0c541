#!/usr/bin/env bash
# Puts NVIDIA's compiler into ./.cuda, from its packages on PyPI: no root, nothing outside this folder.
#   tools/install_nvcc.sh               install, if .cuda is not there already
#   tools/install_nvcc.sh --if-missing  the same, but only where build.rs would find no other nvcc
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
)

works() { [ -n "$1" ] && "$1" --version >/dev/null 2>&1; }

if works .cuda/bin/nvcc && [ "$(cat .cuda/packages 2>/dev/null)" = "${PACKAGES[*]}" ]; then
    exit 0
fi
if [ "${1:-}" = --if-missing ]; then
    # An NVCC that is set but empty asks for a build without CUDA.
    [ -z "${NVCC-unset}" ] && exit 0
    for nvcc in "${NVCC:-}" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "$(type -P nvcc || true)" \
        /usr/local/cuda/bin/nvcc; do
        works "$nvcc" && exit 0
    done
fi

if ! python3 -m pip --version >/dev/null 2>&1; then
    echo "install_nvcc.sh: needs python3 with pip (Debian and Ubuntu: apt install python3-pip)" >&2
    exit 1
fi
download=$(mktemp -d)
trap 'rm -rf "$download" .cuda.partial' EXIT
echo "Fetching nvcc 13.0 into .cuda (about 100 MB)"
if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --dest "$download" "${PACKAGES[@]}"; then
    echo "install_nvcc.sh: pip could not fetch NVIDIA's packages; they exist for Linux and Windows," >&2
    echo "on x86-64 and 64-bit Arm. Another way: install CUDA 13 and set CUDA_HOME." >&2
    exit 1
fi

rm -rf .cuda.partial
python3 - "$download" .cuda.partial <<'PYTHON'
import pathlib, shutil, sys, zipfile

download, target = map(pathlib.Path, sys.argv[1:])
root = pathlib.PurePosixPath("nvidia/cu13")
for wheel in sorted(download.glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            path = pathlib.PurePosixPath(entry.filename)
            # lib/ holds what host programs link against; kernels need none of it.
            if entry.is_dir() or not path.is_relative_to(root) or path.parts[2] == "lib":
                continue
            file = target / path.relative_to(root)
            file.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as packed, open(file, "wb") as plain:
                shutil.copyfileobj(packed, plain)
            if "bin" in file.parent.parts:
                file.chmod(0o755)
PYTHON
echo "${PACKAGES[*]}" >.cuda.partial/packages
works .cuda.partial/bin/nvcc || { echo "install_nvcc.sh: the nvcc from PyPI does not run here" >&2; exit 1; }
rm -rf .cuda
mv .cuda.partial .cuda
# cargo runs build.rs again only when a file that it watches has changed.
touch build.rs
