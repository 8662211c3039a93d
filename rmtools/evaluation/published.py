"""Figures that others published, to stand beside one's own; none was measured here."""

from dataclasses import dataclass

SUBSETS = ("gsm8k", "math", "olympiadbench", "omnimath")


@dataclass(frozen=True)
class PublishedF1:
    """F1 (percent) of a process reward model on ProcessBench's `SUBSETS` and their average, and who reported it."""

    model: str
    f1: tuple[float, float, float, float]
    average: float
    source: str


BENCH, LESSONS = "arXiv 2412.06559, Table 3", "arXiv 2501.07301"
PROCESSBENCH = (
    PublishedF1("Qwen2.5-Math-PRM-72B", (87.3, 80.6, 74.3, 71.1), 78.3, LESSONS),
    PublishedF1("Qwen2.5-Math-PRM-7B", (82.4, 77.6, 67.5, 66.3), 73.5, LESSONS),
    PublishedF1("Qwen2.5-Math-7B-PRM800K", (68.2, 62.6, 50.7, 44.3), 56.5, BENCH),
    PublishedF1("Skywork-PRM-7B", (70.8, 53.6, 22.9, 21.0), 42.1, BENCH),
    PublishedF1("Math-Shepherd-PRM-7B", (47.9, 29.5, 24.8, 23.8), 31.5, BENCH),
    PublishedF1("RLHFlow-PRM-Mistral-8B", (50.4, 33.4, 13.8, 15.8), 28.4, BENCH),
)
"""Most were reported at the threshold that is best on the GSM8K subset."""

BEST_OF_N = (
    ("GSM8K", "best of 1024", 92.4, "majority of 1024", 84.2),
    ("MATH", "best of 1024", 46.3, "majority of 1024", 36.8),
)
"""RLHFlow's Llama3.1-8B-PRM on samples of its own policy: how much a good verifier adds at large n (percent)."""
BEST_OF_N_SOURCE = "RLHFlow/RLHF-Reward-Modeling, math-rm"
