#!/usr/bin/env bash
# On a machine with a GPU: the GPU tests, then the benchmarks; JSON into $OUT (default bench/results), a short table last.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-bench/results}
mkdir -p "$out"
name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' ' '-')
stamp=$(date +%F)
TRITON_INTERPRET=0 python3 -m pytest tests/kernels -m gpu -p no:cacheprovider 2>&1 | tee "$out/$stamp-$name-tests.log"
tests=${PIPESTATUS[0]}
python3 -m pytest bench/test_matching.py --benchmark-only --benchmark-json "$out/$stamp-$name-matching.json" \
  --benchmark-columns min,median,rounds 2>&1 | tee "$out/$stamp-$name-bench.log"
tail -n 3 "$out/$stamp-$name-tests.log"
tail -n 30 "$out/$stamp-$name-bench.log"
exit "$tests"
