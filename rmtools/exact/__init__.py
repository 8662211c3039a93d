"""Exact finite models: where the truth is known by dynamic programming."""
