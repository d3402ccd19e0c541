#!/usr/bin/env bash
# Prints the targets (SDRT_CUDA_ARCHS of build.rs) that this machine's NVIDIA GPUs need, such as 90a or 80,89; ptx for a
# chip that build.rs has no machine code for; nothing without a GPU.
set -euo pipefail

nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | while read -r capability; do
    case $capability in
    8.0 | 8.6 | 8.9) echo "${capability/./}" ;;
    9.0) echo 90a ;;
    [1-7].*) ;; # too old for any of the kernels
    *.*) echo ptx ;;
    esac
done | sort -u | paste -sd, || true
