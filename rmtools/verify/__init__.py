"""Verification: what the theory predicts beside what the sampler does."""
