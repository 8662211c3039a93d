"""What a type checker sees of the public face: checked by `make lint`, never run."""

from typing import assert_type

import numpy as np

import rmtools as rm
from rmtools.data.prompts import Prompt


def program() -> None:
    model = rm.families.persistent(horizon=4, eps=0.1)
    finite: rm.FiniteModel = model
    exact: rm.ExactResult = rm.solve(finite)
    seen: list[rm.Step] = []
    root: rm.Particles = model.particles(groups=2)
    result: rm.SMCResult = rm.smc(root, n_particles=4, rng=np.random.default_rng(0), observe=seen.append)
    steps, tilt = rm.StepSettings("\n", 8), rm.Tilt(0.01)
    rollouts: rm.Rollouts = rm.load_rollouts("rollouts")
    policy: rm.StepPolicy = rm.load_policy("policy", steps)
    policy = rm.connect(["http://localhost:8000/v1"], "policy", steps)
    scorer: rm.Scorer = rm.load_value_model("prm")[0]
    served: rm.StepPolicy = rm.connect("http://localhost:8000/v1", "policy", steps)
    more: rm.Rollouts = rm.collect_rollouts("policy", 4, task="crossing")
    trainer = rm.PRMTrainer("policy", train_dataset=rollouts, args=rm.PRMConfig(output_dir="prm"))
    report: rm.AuditReport = rm.audit(rollouts, scorer)
    samples: rm.Samples = rm.sample(scorer, rm.load_prompts("prompts.jsonl"), policy=policy)
    error: ValueError = rm.UserError("fact", "fix")
    assert_type(samples[0].best, str | None)
    assert_type(result.log_z, np.ndarray | None)
    assert_type(rm.load_prompts("prompts.jsonl"), list[Prompt])
    print(exact, tilt, more, served, trainer, report.model.cost.n_for_cv, error)
    rm.sample(3, ["a"])  # type: ignore[arg-type]  # an error, or the comment is one
