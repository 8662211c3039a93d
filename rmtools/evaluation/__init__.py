"""Evaluate a reward model as people report it: best-of-n, ProcessBench, PRMBench, calibration (docs/evaluate.md)."""
