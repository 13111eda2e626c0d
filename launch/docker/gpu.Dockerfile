# For NVIDIA GPUs; the driver (580 or newer) is the host's, CUDA 13 comes with jax:
#
#   docker build -f launch/docker/gpu.Dockerfile -t janus-gpu .
#   docker run --gpus all -v /shared:/shared janus-gpu \
#       launch.train --config configs/finetune.py --workdir /shared/runs/mine
FROM python:3.11-slim-bookworm

WORKDIR /opt/janus_jax
# First what seldom changes: the packages.
COPY setup.py constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt '.[cuda]'
COPY . .
RUN pip install --no-cache-dir --no-deps -e . && useradd --create-home --uid 1000 janus
USER 1000

# jax takes three quarters of a GPU by itself.
ENV PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_MEM_FRACTION=0.92
ENTRYPOINT ["python", "-m"]
CMD ["launch.train", "--help"]
