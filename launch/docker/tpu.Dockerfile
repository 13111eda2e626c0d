# For TPU machines:
#
#   docker build -f launch/docker/tpu.Dockerfile -t janus-tpu .
#   docker run --privileged --network=host -v /shared:/shared janus-tpu \
#       launch.train --config configs/finetune.py --workdir /shared/runs/mine
FROM python:3.11-slim-bookworm

WORKDIR /opt/janus_jax
# First what seldom changes: the packages.
COPY setup.py constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt '.[tpu]'
COPY . .
# As root, for the chips are devices of the host's root.
RUN pip install --no-cache-dir --no-deps -e .

ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["python", "-m"]
CMD ["launch.train", "--help"]
