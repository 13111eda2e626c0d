#!/usr/bin/env bash
# Measures one accelerator with random weights, in at most LIMIT seconds (default 530):
#
#     benchmarks/device.sh OUT
#
# For each model of MODELS: image tokens one by one and in windows, in bfloat16 and int8, for each batch of BATCHES,
# compared with the time to read the weights; the training step of the stages of Janus-Pro (of a 7B model the first, in
# which the language model is frozen); then SigLIP, the prefill, the VQ decoder and a whole image, compared with
# transformers on PyTorch if both can be imported.
#
# Each part has a budget in seconds and ends after it. The budgets add up to less than LIMIT; for other models or slower
# machines, BUDGET_PERCENT scales them. OUT receives a log per part, device.json (one line of JSON with the results and
# the state of every part, also printed at the end) and tables.md. `python -m benchmarks.device_tables OUT/device.json
# --write_docs` writes the tables to docs/performance.md. The parts need jax, flax, optax and the packages of inference only.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: benchmarks/device.sh OUT}
models=${MODELS:-janus_pro_1b janus_pro_7b} stages=${STAGES:-1 2 3}
batches=${BATCHES:-1,8,32,128} windows=${WINDOWS:-16} tokens=${TOKENS:-196} length=${LENGTH:-4096}
dtype=${DTYPE:-bfloat16} limit=${LIMIT:-530} percent=${BUDGET_PERCENT:-100}
python=${PYTHON:-python3}
mkdir -p "$out"
: >"$out/parts.jsonl"

record() { # NAME STATE [LOG]: appends the state of a part, and the last JSON object of its log.
    "$python" - "$@" >>"$out/parts.jsonl" <<'PYTHON'
import json, sys

name, state, *log = sys.argv[1:]
lines = [line for path in log for line in open(path) if line.startswith("{")]
print(json.dumps({"part": name, "state": state, **(json.loads(lines[-1]) if lines else {})}))
PYTHON
}

part() { # SECONDS NAME COMMAND...: runs a part in its budget.
    local budget=$(($1 * percent / 100)) name=$2 left=$((limit - SECONDS)) state=done
    shift 2
    if ((left < 10)); then
        echo "$name: skipped, no time left"
        record "$name" "skipped: no time left"
        return
    fi
    budget=$((budget < left ? budget : left))
    echo "$name (at most $budget s)"
    timeout -k 2 "$budget" "$python" -m "$@" 2>"$out/$name.err" | tee "$out/$name.log"
    case ${PIPESTATUS[0]} in
        0) ;;
        124 | 137) state="stopped after $budget s" ;;
        *) state="failed" ;;
    esac
    if [[ $state != done ]]; then
        echo "$name: $state; see $out/$name.err"
    fi
    record "$name" "$state" "$out/$name.log"
}

generate() { # SECONDS MODEL QUANTIZATION BATCHES
    part "$1" "generate_$2_$3" benchmarks.generate --preset="$2" --dtype="$dtype" --quantization="$3" --batches="$4" \
        --windows="$windows" --image_tokens="$tokens" --repeats=1
}

train() { # SECONDS MODEL STAGE SEQUENCES
    part "$1" "train_$2_$3" benchmarks.train --model="$2" --dtype="$dtype" --stages="$3" --rows="$4" --length="$length" \
        --pairs=3 --nocompiling
}

compare() { # SECONDS MODEL NAME FIGURES
    part "$1" "$3_$2" benchmarks.inference --preset="$2" --dtype="$dtype" --only="$4" --repeats=1 \
        --torch="${TORCH:-true}"
}

for model in $models; do
    case $model in
        *7b)
            generate 65 "$model" none 1,32
            generate 40 "$model" int8 1
            train 55 "$model" 1 4
            ;;
        *)
            generate 90 "$model" none "$batches"
            generate 50 "$model" int8 "${batches%%,*}"
            for stage in $stages; do
                train 40 "$model" "$stage" 8
            done
            compare 40 "$model" inference siglip,prefill,vq_decode
            compare 60 "$model" image token
            ;;
    esac
done
"$python" -c 'import json, sys; print(json.dumps([json.loads(line) for line in open(sys.argv[1])]))' \
    "$out/parts.jsonl" >"$out/device.json"
"$python" -m benchmarks.device_tables "$out/device.json" >"$out/tables.md"
cat "$out/tables.md" "$out/device.json"
