#!/usr/bin/env bash
# Prints the targets (SDRT_CUDA_ARCHS of build.rs) that this machine's NVIDIA GPUs need, such as 90a or 80,89: ptx for a
# chip that build.rs has no machine code for; all for a GPU of an unknown chip; nothing without a GPU of sm_80 or later.
set -euo pipefail

# A failing nvidia-smi prints a sentence in place of the numbers.
capabilities=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -xE '[0-9]+\.[0-9]' || true)
if [ -z "$capabilities" ]; then
    # The second is Windows' subsystem for Linux.
    if compgen -G "/dev/nvidia[0-9]*" >/dev/null || [ -e /dev/dxg ]; then echo all; fi
    exit
fi
for capability in $capabilities; do
    case $capability in
    8.0 | 8.6 | 8.9) echo "${capability/./}" ;;
    9.0) echo 90a ;;
    [1-7].*) ;; # too old for any of the kernels
    *) echo ptx ;;
    esac
done | sort -u | paste -sd,
