"""Initializes jax's devices, and checks that the attention kernel runs on them."""

from janus_jax.config import AttentionKernel
from janus_jax.errors import JanusError

_REQUIREMENTS = {
    "cuda": "an NVIDIA GPU with its driver, and the package jax[cuda13]",
    "rocm": "an AMD GPU with its driver, and jax's plugin for ROCm",
    "gpu": "a GPU with its driver, and jax's plugin for it, such as jax[cuda13]",
    "tpu": "a TPU, and the package jax[tpu]",
}
# Kernel -> its platform, and the hardware in words. The kernels auto and xla run on all platforms.
_KERNELS: dict[AttentionKernel, tuple[str, str]] = {"cudnn": ("gpu", "an NVIDIA GPU"), "splash": ("tpu", "a TPU")}


def initialize_devices(attention: AttentionKernel = "auto", setting: str = "attention") -> str:
    """Initializes jax's devices and returns their platform: `cpu`, `gpu` or `tpu`.

    Call it before any work, but after `join_cluster`.

    Args:
      attention: Attention kernel that the caller will use.
      setting: Name of the kernel's setting in error messages.

    Raises:
      JanusError: jax finds no device of a platform in JAX_PLATFORMS, or the kernel needs another platform.
    """
    import jax

    try:
        platform: str = jax.default_backend()
    # AssertionError: jax skips CUDA if it sees no GPU, and may then have no platform left.
    except (AssertionError, RuntimeError) as error:
        platforms: str = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
        raise JanusError(_describe_failure(platforms, str(error))) from error
    needed, hardware = _KERNELS.get(attention, (platform, ""))
    if platform != needed:
        raise JanusError(
            f"{setting} is {attention}, which needs {hardware}, but the devices are of the platform {platform}; use "
            f"auto, which selects a kernel for the devices."
        )
    return platform


def _describe_failure(platforms: str, reason: str) -> str:
    """Returns the sentence for a failed initialization of the devices.

    Args:
      platforms: Value of JAX_PLATFORMS, possibly empty.
      reason: jax's message, possibly empty.
    """
    names = [name for name in platforms.split(",") if name != "cpu"]
    failed = next((name for name in names if f"'{name}'" in reason), names[0] if names else "")
    if failed in _REQUIREMENTS:
        return (
            f"JAX_PLATFORMS is {platforms}, but jax finds no device of the platform {failed}, which needs "
            f"{_REQUIREMENTS[failed]}; set JAX_PLATFORMS=cpu, or unset it to use the devices that jax finds."
        )
    if failed:
        return (
            f"JAX_PLATFORMS is {platforms}, but jax has no platform {failed}; set it to cpu, cuda, rocm or tpu, or "
            f"unset it to use the devices that jax finds."
        )
    return f"jax cannot use its devices ({' '.join(reason.split()):.200}); set JAX_PLATFORMS=cpu to use the CPU."
