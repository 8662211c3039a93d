"""Prompts that training and audit share are counted, exact and up to white space, and the audit says so."""

from types import SimpleNamespace

from rmtools.auditing.notes import contamination_notes
from rmtools.data.contamination import prompt_hashes, shared_prompts
from rmtools.data.rollouts import Rollout


def rows(*prompts):
    return [Rollout(p, p, ["a"], 1.0) for p in prompts]


def test_shared_prompts_are_counted():
    known = prompt_hashes(rows("1 + 1?\n", "1 + 1?\n", "2 + 2?"))
    assert {name: len(hashes) for name, hashes in known.items()} == {"exact": 2, "normalised": 2}
    assert shared_prompts(rows("1 + 1?\n", "1 + 1?\n", " 2  +\n2?", "1+1?", "3"), known) == (1, 2, 4)
    rendered = [Rollout("a", "<user> 1 + 1?", ["a"], 1.0, question="1 + 1?\n")]
    assert shared_prompts(rendered, known) == (1, 1, 1)


def test_an_audit_warns_of_prompts_it_was_trained_on():
    seen = SimpleNamespace(training={"prompts": prompt_hashes(rows("a b", "c"))})
    (text,) = contamination_notes(rows("a  b", "c", "d"), seen)
    assert text.startswith(
        "2 of the 3 audited prompts are among those the checkpoint was trained on (1 of them with other white"
    )
    (text,) = contamination_notes(rows("c", "d"), seen)
    assert "1 of the 2 audited prompts" in text
    assert "white space" not in text
    assert contamination_notes(rows("d"), seen) == []
    assert (
        contamination_notes(rows("c"), SimpleNamespace(training={}))
        == contamination_notes(rows("c"), None)
        == []
    )
