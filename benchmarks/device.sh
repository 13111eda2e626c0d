#!/usr/bin/env bash
# Measures inference on one accelerator with random weights, in at most LIMIT seconds (default 520):
#
#     benchmarks/device.sh OUT
#
# For each model of MODELS: image tokens one by one and in windows, in bfloat16 and int8, for each batch of BATCHES,
# compared with the time to read the weights; then SigLIP, the prefill and the VQ decoder, compared with transformers on
# PyTorch if it is installed. Each part may take what is left of LIMIT, so the most important ones come first. OUT
# receives a log per part and device.json, one line of JSON that is also printed at the end. The parts need jax, flax and
# the packages of inference only.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: benchmarks/device.sh OUT}
models=${MODELS:-janus_pro_1b janus_pro_7b}
batches=${BATCHES:-1,32} windows=${WINDOWS:-16} dtype=${DTYPE:-bfloat16} limit=${LIMIT:-520}
python=${PYTHON:-python3}
mkdir -p "$out"
: >"$out/parts.jsonl"

part() { # NAME COMMAND...: runs a part in the remaining time, and keeps its last line, a JSON object.
    local name=$1 left=$((limit - SECONDS))
    shift
    if ((left < 10)); then
        echo "$name: skipped, no time left"
        return
    fi
    echo "$name"
    if timeout "$left" "$python" -m "$@" 2>"$out/$name.err" | tee "$out/$name.log"; then
        tail -n 1 "$out/$name.log" | "$python" -c \
            'import json, sys; print(json.dumps({"part": sys.argv[1], **json.loads(sys.stdin.read())}))' \
            "$name" >>"$out/parts.jsonl"
    else
        echo "$name: failed; see $out/$name.err"
    fi
}

for model in $models; do
    for quantization in none int8; do
        part "generate_${model}_$quantization" benchmarks.generate --preset="$model" --dtype="$dtype" \
            --quantization="$quantization" --batches="$batches" --windows="$windows" --repeats=1
    done
    part "inference_$model" benchmarks.inference --preset="$model" --dtype="$dtype" --only=siglip,prefill,vq_decode \
        --repeats=1 --torch="${TORCH:-true}"
done
"$python" -c 'import json, sys; print(json.dumps([json.loads(line) for line in open(sys.argv[1])]))' \
    "$out/parts.jsonl" | tee "$out/device.json"
