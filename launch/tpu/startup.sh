#!/usr/bin/env bash
# Startup script of every machine of a TPU pod, set by launch/tpu/train.sh. It trains, and writes the exit code to
# /var/lib/janus/exit_code. If the machine still exists after a preemption notice, training resumes. A full disk is retried
# up to JANUS_MAX_RESTARTS (20) times.
set -euo pipefail

readonly PREEMPTED=75 STALLED=76 STORAGE_UNAVAILABLE=69 DISK_FULL=74 # janus_jax.errors.ExitCode
readonly STATE="${STATE:-/var/lib/janus}"

attribute() {
  curl --silent --fail --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

install_gcsfuse() {
  local keys=/usr/share/keyrings/cloud.google.asc source
  curl --silent --fail --show-error https://packages.cloud.google.com/apt/doc/apt-key.gpg >"$keys"
  source="https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main"
  echo "deb [signed-by=$keys] $source" >/etc/apt/sources.list.d/gcsfuse.list
  apt-get update --quiet
  apt-get install --yes --quiet gcsfuse
}

mkdir -p "$STATE"
rm -f "$STATE/exit_code"
image=$(attribute janus-image)
mkdir -p /data
if ! mountpoint -q /data; then
  command -v gcsfuse >/dev/null || install_gcsfuse
  gcsfuse -o ro,allow_other --implicit-dirs --file-cache-max-size-mb=-1 --cache-dir=/var/cache/gcsfuse \
    --metadata-cache-ttl-secs=-1 --only-dir=data "$(attribute janus-bucket)" /data
fi
# launch/tpu/train.sh quoted the arguments for a shell.
eval "arguments=($(attribute janus-arguments))"
gcloud auth configure-docker --quiet "${image%%/*}"
docker pull "$image"

full=0
while :; do
  code=0
  # shellcheck disable=SC2154 # eval sets `arguments`
  docker run --rm --name janus --privileged --network=host --volume=/data:/data:ro --stop-timeout=600 --log-driver=gcplogs "$image" \
    janus-train --distributed "${arguments[@]}" || code=$?
  if [[ $code == "$DISK_FULL" && $full -lt ${JANUS_MAX_RESTARTS:-20} ]]; then
    full=$((full + 1))
  elif [[ ! $code =~ ^($PREEMPTED|$STALLED|$STORAGE_UNAVAILABLE)$ ]]; then
    break
  fi
  sleep "${PAUSE:-10}"
done
echo "$code" >"$STATE/exit_code"
