"""The printed shares: intervals over prompts, also where all prompts agree."""

import pytest
from scipy import stats

from rmtools.cli.sample_report import intervals


def records(*prompts):
    return [{"prompt": p} for p in prompts]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_prompts_that_agree_leave_an_exact_bound(value):
    """That of a binomial with as many trials as prompts; a prompt that occurs twice is one."""
    found = intervals(records("a", "b", "c", "d", "d"), {"draw": [value] * 5})["draw"]
    exact = stats.binomtest(int(4 * value), 4).proportion_ci(0.95, "exact")
    assert (found.estimate, found.low, found.high) == pytest.approx((value, exact.low, exact.high))


def test_prompts_that_differ_are_resampled():
    found = intervals(records(*map(str, range(100))), {"draw": [float(i < 40) for i in range(100)]})["draw"]
    assert found.estimate == pytest.approx(0.4)
    assert found.low == pytest.approx(0.4 - 1.96 * 0.049, abs=0.02)
    assert found.high == pytest.approx(0.4 + 1.96 * 0.049, abs=0.02)
