#!/usr/bin/env bash
# Runs on every machine of a TPU pod when it starts (launch/tpu/train.sh hands it over): trains, and leaves the exit code
# in /var/lib/janus/exit_code. A machine that was only told to go for a while goes on by itself.
set -euo pipefail

readonly PREEMPTED=75 # janus_jax.errors.ExitCode
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
# They were quoted for a shell.
eval "arguments=($(attribute janus-arguments))"
gcloud auth configure-docker --quiet "${image%%/*}"
docker pull "$image"

while :; do
  code=0
  # shellcheck disable=SC2154 # `arguments` comes out of the eval.
  docker run --rm --name janus --privileged --network=host --volume=/shared:/shared --stop-timeout=600 --log-driver=gcplogs "$image" \
    launch.train --distributed "${arguments[@]}" || code=$?
  [[ $code == "$PREEMPTED" ]] || break
  sleep "${PAUSE:-10}"
done
echo "$code" >"$STATE/exit_code"
