#!/usr/bin/env bash
# On a machine with one NVIDIA GPU: one leg of the GPU recipe of ditf-tiny, at most 8 minutes. Run it again with the
# same $OUT, or with what came back of it under .train/gpu, and it goes on; three legs are the recipe.
#
#     OUT=results bench/train_gpu.sh [MINUTES]
#
# Needs torch, numpy, safetensors, Pillow and diffusers, which may lie in .whl/ as wheels.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
minutes=${1:-8}
pictures=${PICTURES:-200000}
out=${OUT:-.train/gpu}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH=$work/site:$PWD${PYTHONPATH:+:$PYTHONPATH}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
if compgen -G '.whl/*.whl' >/dev/null; then
  "$PYTHON" -m pip install --quiet --no-deps --no-index --target "$work/site" .whl/*.whl
fi

mkdir -p "$out"
for file in .train/gpu/*; do # what an earlier leg left
  [[ -e $file && ! -e $out/$(basename "$file") ]] && cp "$file" "$out/"
done

began=$SECONDS
"$PYTHON" -m ditf.tiny.pool --out "$work/pool" --images "$pictures" --size 64
left=$(awk "BEGIN { print $minutes - ($SECONDS - $began) / 60 }")

start=(--recipe gpu)
[[ -e $out/state.safetensors ]] && start=(--resume "$out")
"$PYTHON" -m ditf.tiny.train --out "$out" "${start[@]}" --device cuda --bf16 --pool "$work/pool" \
  --stop-after "$left" --measure-every 250000 --threads 8
tail -n 3 "$out/loss.csv" "$out/growth.csv"
