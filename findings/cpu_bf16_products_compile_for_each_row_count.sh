#!/usr/bin/env bash
# torch 2.13.0, CPU: a bfloat16 matrix product compiles a kernel (oneDNN) for every number of rows that it meets for the
# first time. Seen: 200 products of 400 to 599 rows with a 256 x 512 matrix, each number once: about 5 ms each; the same
# 200 again: about 0.6 ms each. In float32 the first time costs as much as the second. Experts without a capacity have
# another number of rows every step, so they meet this in every layer, and the kernels (1,024 are kept) look like a leak
# of some hundred MB. Rounding the number of rows up to one of a few ends both.
# Fails if new numbers of rows are less than 2.5 times as slow in bfloat16, or more than 2 times as slow in float32.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import time
import torch

def first_and_second(dtype):
    x, weight = torch.randn(600, 512).to(dtype), torch.randn(256, 512).to(dtype)
    x[:600] @ weight.T
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        for rows in range(400, 600):
            x[:rows] @ weight.T
        seconds.append((time.perf_counter() - started) / 200)
    return seconds

first, second = first_and_second(torch.bfloat16)
print(f"bfloat16: {1e3 * first:.2f} ms the first time, {1e3 * second:.2f} ms the second")
wide_first, wide_second = first_and_second(torch.float32)
print(f"float32:  {1e3 * wide_first:.2f} ms the first time, {1e3 * wide_second:.2f} ms the second")
assert first > 2.5 * second and wide_first < 2 * wide_second
PYTHON
