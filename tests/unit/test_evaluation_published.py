"""Published PRMs on ProcessBench: the scores of the benchmark's rows are those of bare transformers."""

import json

import numpy as np
from published import bare, save, tokenizer_of

from rmtools.data.rollouts import RolloutMetadata, Rollouts
from rmtools.evaluation.labelled import read_processbench
from rmtools.evaluation.step_scores import rows_as_trained, score_steps
from rmtools.lm.checkpoint import load_value_model
from rmtools.lm.formats import load as loading


def test_steps_of_processbench(tmp_path, monkeypatch):
    key = "math-shepherd"
    monkeypatch.setattr(loading, "load_tokenizer", lambda path: tokenizer_of(key))
    value = load_value_model(save(key, tmp_path / "model"), prm_format=key)[0]
    steps = ["First, 4 · 5 = 20.", "So 3 + 20 = 23.\nThat is $x = 23$."]
    row = {
        "id": "gsm8k-0",
        "problem": "What is 3 + 4 · 5?",
        "steps": steps,
        "final_answer_correct": True,
        "label": -1,
    }
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    (labelled,) = read_processbench([tmp_path / "rows.json"], value.steps.settings.delimiter)
    rows = Rollouts([labelled.rollout], RolloutMetadata.unknown([labelled.rollout]))
    found = score_steps(list(rows_as_trained(rows, value)), value)
    assert np.isnan(found.p[0][0])  # a prompt alone has no value in these formats
    np.testing.assert_allclose(found.p[0][1:], bare(key, row["problem"], steps), atol=1e-5)
    assert found.cost.parameters > 0
