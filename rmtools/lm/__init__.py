"""Language models: what a step is, stepwise decoding, value models, and particles over both.

``rmtools.lm.sample_prompts`` is :func:`rmtools.lm.inference.sample_prompts`; torch is loaded when it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmtools.lm.inference import SamplerSettings, sample_prompts, settings_for

__all__ = ["SamplerSettings", "sample_prompts", "settings_for"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rmtools.lm import inference

    return getattr(inference, name)
