#!/usr/bin/env bash
# Trains on TPUs that Google Cloud queues for, and queues again when they are taken away:
#
#   PROJECT=mine ZONE=us-west4-a IMAGE=us-docker.pkg.dev/mine/janus/tpu SHARE=10.0.0.2:/janus \
#       launch/tpu/train.sh pro-7b v5litepod-256 \
#       --config configs/janus_pro_7b.py --config.stage=2 --workdir /shared/runs/pro_7b ...
#
# A name, the accelerator's type, then launch.train's arguments. IMAGE is built from launch/docker/tpu.Dockerfile; SHARE
# is the NFS export (Filestore, say) that every machine mounts as /shared.
#
#   SLICES=2                         several slices of that type, joined over the data-centre network
#   RUNTIME=v2-alpha-tpuv5-lite      the machines' system; the default fits the type
#   SPOT=1                           machines that may be taken away at any time
#
# The machines start training by themselves (startup.sh), so nothing hangs on this terminal: the same command, given
# again, watches a run that is under way. The script ends with launch.train's exit code, and gives the machines back.
set -euo pipefail

readonly PREEMPTED=75 # janus_jax.errors.ExitCode
readonly PAUSE="${PAUSE:-60}"

if [[ $# -lt 3 || -z ${PROJECT:-} || -z ${ZONE:-} || -z ${IMAGE:-} || -z ${SHARE:-} ]]; then
  echo "usage: PROJECT=... ZONE=... IMAGE=... SHARE=... $0 NAME TYPE --config FILE --workdir DIR ..." >&2
  exit 2
fi
readonly name=$1 type=$2
shift 2

case $type in
  v4-*) runtime=tpu-ubuntu2204-base ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) runtime=${RUNTIME:?"no system is known for $type; name one in RUNTIME"} ;;
esac
readonly runtime=${RUNTIME:-$runtime}

here=$(cd "$(dirname "$0")" && pwd)
place=(--project="$PROJECT" --zone="$ZONE")
if [[ ${SLICES:-1} == 1 ]]; then
  nodes=(--node-id="$name")
  first=$name
else
  nodes=(--node-count="$SLICES" --node-prefix="$name")
  first=$name-0
fi

# What a shell on the machines makes the same words of.
arguments=$(printf '%q ' "$@")
metadata=$(mktemp)
trap 'rm -f "$metadata"' EXIT
printf '%s' "$arguments" >"$metadata"

queue() {
  gcloud compute tpus queued-resources create "$name" "${place[@]}" "${nodes[@]}" \
    --accelerator-type="$type" --runtime-version="$runtime" ${SPOT:+--spot} \
    --metadata="janus-image=$IMAGE,janus-share=$SHARE" \
    --metadata-from-file="startup-script=$here/startup.sh,janus-arguments=$metadata"
}

state() {
  gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format='value(state.state)' 2>/dev/null ||
    echo NONE
}

give_back() {
  gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
}

# The exit code that the first machine has left; nothing while it is at work.
ended() {
  gcloud compute tpus tpu-vm ssh "$first" "${place[@]}" --worker=0 \
    --command='cat /var/lib/janus/exit_code 2>/dev/null || true' 2>/dev/null || true
}

told=
while :; do
  now=$(state)
  [[ $now == "$told" ]] || echo "$name: $now"
  told=$now
  case $now in
    NONE) queue ;;
    SUSPENDED | FAILED)
      # Taken away. What was saved is in the workdir.
      give_back
      continue
      ;;
    ACTIVE)
      code=$(ended)
      if [[ $code =~ ^[0-9]+$ && $code != "$PREEMPTED" ]]; then
        echo "$name: launch.train ended with $code."
        give_back
        exit "$code"
      fi
      ;;
    *) ;; # It waits in the queue, or is being set up.
  esac
  sleep "$PAUSE"
done
