"""How to read each line of the audit's table."""

# The start of a line's label, and how to read the line.
READING = {
    "a finished solution is worth": (
        "To the model and to the controls: the verifier's potential, or the model's own last value. Z, σ² and the target "
        "are of that."
    ),
    "RMS b, enumerated": (
        "Root mean square over prefixes of b = log ρ, where ρ is the mean value one step later "
        "over the value now; in nats, 0 for a consistent model. Exact: the steps of every prefix "
        "were enumerated under the policy. This is the line to compare models by."
    ),
    "RMS b, sampled, corrected": (
        "The same from the sampled children, their noise taken off. A mean square below 0 has "
        "root 0. 'Not resolved' means that half of the children give another answer: more "
        "children are needed, do not quote it."
    ),
    "RMS b, sampled, plug-in": (
        "The same without the correction: too large, by sampling noise. It says how much noise there was."
    ),
    "RMS b where the sampler goes": (
        "The same at the prefixes that the sampler visits: each weighed with its value over the "
        "root's, within prompt and depth. ESS: as many equally weighed prefixes are worth as much."
    ),
    "RMS b, gauge-fixed": (
        "The same without a constant per prompt and depth, which the sampler does not feel: the "
        "part of the error that costs particles. Over prompts whose solutions all have one "
        "length."
    ),
    "mean (rho - 1)^2, at least": (
        "Without children only errors averaged over bins of depth and value can be seen; errors "
        "of both signs in one bin cancel unseen. The mean square of the rest is a lower bound."
    ),
    "mean (rho - 1)^2": ("Mean squared relative error of one step, unbiased at any number of children."),
    "sum of b along a solution": (
        "Σ b over the steps of one solution. A persistent bias adds up to T times the error, "
        "noise of random sign to √T times."
    ),
    "V(s0) minus Z": (
        "Value of the prompt minus the share of the target that solutions really reach: 0 for a "
        "calibrated start."
    ),
    "sigma^2, enumerated": (
        "The same exactly, of prompts whose solutions were enumerated under the policy and written out as tables."
    ),
    "sigma^2 of a perfect value, enumerated": "What the true value would cost on the same tables.",
    "particles of a perfect value times": (
        "σ² over that of a perfect value: what the model's Bellman error costs."
    ),
    "particles of Thm 5.1": (
        "The paper's worst-case count, with the largest L and error seen. It holds for every "
        "model with such bounds; the line above is for this one."
    ),
    "mean b (bias)": (
        "Signed mean of b. Errors of random sign cancel along a solution, a bias of one sign adds up."
    ),
    "c = T RMS b": (
        "Steps of a solution times the error: with b of this size throughout, the value stays "
        "within e^±c of the true one. The theorems need c bounded as solutions grow longer."
    ),
    "L, 50% / 95% / max": (
        "How much one step changes the value: quantiles of the larger of the ratio and its inverse."
    ),
    "Brier (constant)": (
        "Mean squared error of the predicted probability of success; in brackets the score of "
        "always predicting the base rate, which a useful model beats."
    ),
    "ECE / AUC": (
        "Mean gap between predicted probability and success rate over ten bins (0 is best, noise "
        "adds to it); chance that a success is ranked above a failure (.5 is a guess)."
    ),
    "sigma^2, pooled": (
        "The sampler's cost: N particles estimate Z with relative variance σ²/N, with multinomial "
        "resampling at every step."
    ),
    "particles": (
        "Particles for the accuracies named, rounded up: for the coefficient of variation of the "
        "estimate of Z, and for the total variation between output and target. Enumerated where the tables "
        "hold every prompt; from rollouts that one is an upper bound."
    ),
}


def reading(label: str) -> str:
    """Return how to read a line of the table."""
    return next((text for start, text in READING.items() if label.startswith(start)), "")
