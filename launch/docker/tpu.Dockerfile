# For TPU VMs:
#
#   docker build -f launch/docker/tpu.Dockerfile -t janus-tpu .
#   docker run --privileged --network=host -v /data:/data:ro janus-tpu \
#       janus-train --config finetune --workdir gs://BUCKET/runs/mine
FROM python:3.11-slim-bookworm

WORKDIR /opt/janus_jax
# Dependencies are installed in a layer of their own, which is cached until setup.py or constraints.txt change.
COPY setup.py pyproject.toml constraints.txt README.md LICENSE ./
COPY janus_jax/__init__.py janus_jax/
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt '.[tpu,gcs]'
COPY . .
# The container runs as root, because only root can open the chips' device files.
RUN pip install --no-cache-dir --no-deps --force-reinstall .

ENV PYTHONUNBUFFERED=1
CMD ["janus-train", "--help"]
