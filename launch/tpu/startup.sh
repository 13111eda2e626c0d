#!/usr/bin/env bash
# Startup script of every machine of a TPU pod, set by launch/tpu/train.sh. It trains, and writes the exit code to
# /var/lib/janus/exit_code. If the machine still exists after a preemption notice, training resumes.
set -euo pipefail

readonly PREEMPTED=75 STALLED=76 # janus_jax.errors.ExitCode
readonly STATE="${STATE:-/var/lib/janus}"

attribute() {
  curl --silent --fail --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

mkdir -p "$STATE"
rm -f "$STATE/exit_code"
image=$(attribute janus-image)
mkdir -p /shared
mountpoint -q /shared || mount -t nfs -o nofail "$(attribute janus-share)" /shared
# launch/tpu/train.sh quoted the arguments for a shell.
eval "arguments=($(attribute janus-arguments))"
gcloud auth configure-docker --quiet "${image%%/*}"
docker pull "$image"

while :; do
  code=0
  # shellcheck disable=SC2154 # eval sets `arguments`
  docker run --rm --name janus --privileged --network=host --volume=/shared:/shared --stop-timeout=600 --log-driver=gcplogs "$image" \
    janus-train --distributed "${arguments[@]}" || code=$?
  [[ $code =~ ^($PREEMPTED|$STALLED)$ ]] || break
  sleep "${PAUSE:-10}"
done
echo "$code" >"$STATE/exit_code"
