"""``rmtools env``: the versions and the machine that a bug report needs."""

import os
import platform

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "numpy", "typer")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM")


def command() -> None:
    """Print versions, devices and thread settings, for a bug report; no name, no folder."""
    print("\n".join(f"{name:<24}  {value}" for name, value in environment().items()))


def environment() -> dict[str, str]:
    """Return what the command prints, by label."""
    import torch

    import rmtools

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "rmtools": rmtools.__version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        "CUDA": f"{torch.version.cuda or 'not in this torch'}, {len(gpus)} devices",
        **{f"GPU {i}": name for i, name in enumerate(gpus)},
        "MPS": "available" if torch.backends.mps.is_available() else "not available",
        "CPU cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        **{name: os.environ.get(name, "not set") for name in THREADS},
    }


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
