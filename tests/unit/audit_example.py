"""A small audit report of three models, made from random rollouts: for tests of what is written and drawn from it."""

import re
from html import unescape

import numpy as np

from rmtools.auditing import AuditReport
from rmtools.auditing.model_audit import AuditOptions, Subject, audit_model
from rmtools.core import Tilt
from rmtools.data.rollouts import Child, Rollout
from rmtools.data.scoring import ScoredRollouts

PROMPTS, PER_PROMPT, T, K = 8, 4, 3, 4
TILT = Tilt(0.05)


def rollouts(rng):
    def row(g, i):
        children = [
            [
                Child(f"{k}\n", t == T - 1, float(rng.random() < 0.4) if t == T - 1 else None)
                for k in range(K - 1)
            ]
            for t in range(T)
        ]
        completions = [[float(rng.random() < 0.4) for _ in range(2)] for _ in range(T)]
        return Rollout(f"p{g}", f"prompt {g}", [f"{i}\n"] * T, float(i % 2), children, completions)

    return [row(g, i) for g in range(PROMPTS) for i in range(PER_PROMPT)]


def scored(rows, rng, noise):
    """Values around the base rate with an error of about ``noise`` nats, the potential at the end."""
    n = len(rows)
    reward = np.asarray([r.reward for r in rows])
    own = [TILT.log_value(np.log(0.45) - noise * np.abs(rng.normal(size=T + 1))) for _ in rows]
    value = [v.copy() for v in own]
    for v, phi in zip(value, TILT.log_potential(reward), strict=True):
        v[-1] = phi
    parents = np.concatenate([v[:-1] for v in value])
    children = parents[:, None] + noise * rng.normal(size=(n * T, K))
    return ScoredRollouts(
        prompt=np.repeat(np.arange(PROMPTS), PER_PROMPT),
        log_value=value,
        own_log_value=own,
        reward=reward,
        prefix_trajectory=np.repeat(np.arange(n), T),
        prefix_depth=np.tile(np.arange(T), n),
        prefix_log_value=parents,
        child_log_value=children,
        child_present=np.ones((n * T, K), dtype=bool),
        horizon=T,
    )


def example_report():
    rng = np.random.default_rng(3)
    rows = rollouts(rng)
    found = [
        audit_model(
            Subject(role, f"runs/{role}", TILT),
            rows,
            scored(rows, rng, noise),
            AuditOptions(0.25, 0.05, 6.0),
            np.random.default_rng(k),
            noise * rng.normal(size=len(rows) * T),
        )
        for k, (role, noise) in enumerate((("model", 0.1), ("constant", 0.5), ("untrained", 0.8)))
    ]
    provenance = {
        "checkpoint": "runs/<b>prm</b>",
        "policy": "runs/policy",
        "task": "crossing",
        "horizon": T,
        "terminal": "verifier",
        "n_prompts": PROMPTS,
        "n_trajectories": len(rows),
        "delta_cv": 0.25,
        "delta_tv": 0.05,
        "training": {"target": "td"},
    }
    return AuditReport(
        tuple(found),
        {},
        provenance,
        {"mean": 0.001, "largest": 0.02, "left_out": 3.0},
        ("mind the <script>gap</script> | end",),
    )


def visible(html):
    """The words of a page, without tags."""
    return unescape(re.sub(r"<[^>]+>", " ", html))


def assert_self_contained(html):
    assert not re.search(r"<(script|link(?! rel=\"icon\" href=\"data:)|iframe|object)\b", html)
    addresses = re.findall(r"(?:src|href|srcset|action)\s*=\s*[\"']?([^\"'> ]+)", html)
    assert addresses
    assert all(a.startswith("data:") for a in addresses)
    assert "url(" not in html
    assert "@import" not in html
    assert 'name="viewport"' in html
