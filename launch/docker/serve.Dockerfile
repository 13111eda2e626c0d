# The server, for NVIDIA GPUs. The host provides the driver (580 or newer); CUDA 13 comes with jax.
#
#   docker build -f launch/docker/serve.Dockerfile -t janus-serve .
#   docker run --gpus all -p 8000:8000 -v /models:/models:ro -e JANUS_API_KEYS janus-serve --model /models/Janus-Pro-7B
FROM python:3.11-slim-bookworm

WORKDIR /opt/janus_jax
# Dependencies are installed in a layer of their own, which is cached until setup.py or constraints.txt change.
COPY setup.py pyproject.toml constraints.txt README.md LICENSE ./
COPY janus_jax/__init__.py janus_jax/
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt '.[cuda,hub,serve]'
COPY . .
RUN pip install --no-cache-dir --no-deps --force-reinstall . && useradd --create-home --uid 1000 janus
USER 1000

# jax takes three quarters of a GPU's memory by default.
ENV PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_MEM_FRACTION=0.92
EXPOSE 8000
ENTRYPOINT ["janus-serve", "--host", "0.0.0.0"]
