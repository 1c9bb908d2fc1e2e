#!/usr/bin/env bash
# On a machine with one NVIDIA GPU: the GPU tests, then every suite, within 9 minutes; one JSON and one log into
# $OUT (default bench/results), a short table last.
#
# Needs torch, Triton, numpy, safetensors, Pillow, pytest, hypothesis and pytest-benchmark; nothing is fetched. What is
# missing can lie in .whl/ as wheels, which are installed for this run alone:
#     pip download --no-deps --dest .whl pytest-benchmark diffusers
# Without pytest-benchmark only the tests run; without diffusers the suites that need it say so.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-540} # seconds in all
RESERVE=25          # of them for the summary, and for a suite that takes its time to stop
# By importance, with the most seconds each may take. A suite without a file is left out.
read -ra suites <<<"${SUITES:-adaln:120 nearest:120 upsampled:60 matching:45 channels:45 propagate:60 fuse:60 truncation:60 dense:60 loading:60}"
needs_diffusers=" fuse truncation "

out=${OUT:-bench/results}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=$out/gpu-$(date +%F).log
: >"$log"
: >"$work/stages"

export TRITON_INTERPRET=0 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export PYTHONPATH=$work/site:$PWD${PYTHONPATH:+:$PYTHONPATH}
unset DITF_KERNELS_BACKEND DITF_VERIFY_REPORT

say() { echo "$*" | tee -a "$log"; }

stage_ends() { echo "$1 $2 $3 ${4:-}" >>"$work/stages"; } # name, exit status, seconds, note

has() { "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

# run NAME SECONDS COMMAND...: under a limit and what is left of the whole. Interrupted, pytest still writes its reports.
run() {
  local name=$1 most=$2 left=$((LIMIT - RESERVE - SECONDS)) began=$SECONDS status
  shift 2
  ((left < most)) && most=$left
  if ((most < 10)); then
    stage_ends "$name" 124 0 "not run: no time left"
    return
  fi
  say "== $name (at most $most s)"
  timeout --signal=INT --kill-after=15 "$most" "$@" 2>&1 | tee -a "$log"
  status=${PIPESTATUS[0]}
  stage_ends "$name" "$status" $((SECONDS - began))
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | tee -a "$log"
if compgen -G '.whl/*.whl' >/dev/null; then
  "$PYTHON" -m pip install --quiet --no-deps --no-index --target "$work/site" .whl/*.whl 2>&1 | tee -a "$log"
fi

run tests 150 "$PYTHON" -m pytest tests/kernels -m gpu -p no:cacheprovider --continue-on-collection-errors \
  --junitxml "$work/tests.xml"

reports=()
for suite in "${suites[@]}"; do
  name=${suite%:*}
  file=bench/test_$name.py
  if [[ ! -f $file ]]; then
    continue
  elif ! has pytest_benchmark; then
    stage_ends "$name" 5 0 "not run: pytest-benchmark is missing, put its wheel into .whl/"
    continue
  elif [[ $needs_diffusers == *" $name "* ]] && ! has diffusers; then
    stage_ends "$name" 5 0 "not run: diffusers is missing, put its wheel into .whl/"
    continue
  fi
  reports+=("$work/$name.json")
  run "$name" "${suite#*:}" "$PYTHON" -m pytest "$file" -p no:cacheprovider -rs --benchmark-quiet \
    --benchmark-json "$work/$name.json"
done

"$PYTHON" bench/summary.py --out "$out" --tests "$work/tests.xml" --stages "$work/stages" \
  --commit "$(git rev-parse HEAD 2>/dev/null)" "${reports[@]}" 2>&1 | tee -a "$log"
exit "${PIPESTATUS[0]}"
