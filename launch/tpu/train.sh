#!/usr/bin/env bash
# Requests queued TPUs from Google Cloud, trains on them, and requests them again after a preemption:
#
#   PROJECT=mine ZONE=us-west4-a IMAGE=us-docker.pkg.dev/mine/janus/tpu BUCKET=mine-janus \
#       launch/tpu/train.sh pro-7b v5litepod-256 \
#       --config janus_pro_7b --config.stage=2 --workdir gs://mine-janus/runs/pro_7b ...
#
# The arguments are a name, the accelerator type, and the arguments of janus-train. IMAGE is built from
# launch/docker/tpu.Dockerfile. Every machine mounts the folder data/ of BUCKET as /data, read-only, with Cloud Storage
# FUSE. Runs are written to a bucket directly.
#
#   SLICES=2                         several slices of that type, connected by the data-center network
#   RUNTIME=v2-alpha-tpuv5-lite      system image of the machines; the default depends on the type
#   SPOT=1                           machines that can be preempted at any time
#
# The machines start training by themselves (startup.sh), so training does not depend on this terminal. To watch the run
# again, repeat the command. At the end the script deletes the machines and exits with janus-train's exit code.
set -euo pipefail

readonly PREEMPTED=75 STALLED=76 STORAGE_UNAVAILABLE=69 # janus_jax.errors.ExitCode
readonly PAUSE="${PAUSE:-60}"

if [[ $# -lt 3 || -z ${PROJECT:-} || -z ${ZONE:-} || -z ${IMAGE:-} || -z ${BUCKET:-} ]]; then
  echo "usage: PROJECT=... ZONE=... IMAGE=... BUCKET=... $0 NAME TYPE --config FILE --workdir DIR ..." >&2
  exit 2
fi
readonly name=$1 type=$2
shift 2

case $type in
  v4-*) runtime=tpu-ubuntu2204-base ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) runtime=${RUNTIME:?"unknown type $type; set RUNTIME to its system image"} ;;
esac
readonly runtime=${RUNTIME:-$runtime}

here=$(cd "$(dirname "$0")" && pwd)
location=(--project="$PROJECT" --zone="$ZONE")
if [[ ${SLICES:-1} == 1 ]]; then
  nodes=(--node-id="$name")
  first=$name
else
  nodes=(--node-count="$SLICES" --node-prefix="$name")
  first=$name-0
fi

# Quoted, so that the shell on the machines splits them into the same words.
arguments=$(printf '%q ' "$@")
metadata=$(mktemp)
trap 'rm -f "$metadata"' EXIT
printf '%s' "$arguments" >"$metadata"

queue() {
  gcloud compute tpus queued-resources create "$name" "${location[@]}" "${nodes[@]}" \
    --accelerator-type="$type" --runtime-version="$runtime" ${SPOT:+--spot} \
    --metadata="janus-image=$IMAGE,janus-bucket=$BUCKET" \
    --metadata-from-file="startup-script=$here/startup.sh,janus-arguments=$metadata"
}

state() {
  gcloud compute tpus queued-resources describe "$name" "${location[@]}" --format='value(state.state)' 2>/dev/null ||
    echo NONE
}

delete() {
  gcloud compute tpus queued-resources delete "$name" "${location[@]}" --force --quiet
}

# Prints the exit code that the first machine has written, or nothing while it trains.
exit_code() {
  gcloud compute tpus tpu-vm ssh "$first" "${location[@]}" --worker=0 \
    --command='cat /var/lib/janus/exit_code 2>/dev/null || true' 2>/dev/null || true
}

previous=
while :; do
  now=$(state)
  [[ $now == "$previous" ]] || echo "$name: $now"
  previous=$now
  case $now in
    NONE) queue ;;
    SUSPENDED | FAILED)
      # Preempted. The workdir has the checkpoints.
      delete
      continue
      ;;
    ACTIVE)
      code=$(exit_code)
      if [[ $code =~ ^[0-9]+$ && ! $code =~ ^($PREEMPTED|$STALLED|$STORAGE_UNAVAILABLE)$ ]]; then
        echo "$name: janus-train exited with $code."
        delete
        exit "$code"
      fi
      ;;
    *) ;; # waiting in the queue, or being set up
  esac
  sleep "$PAUSE"
done
