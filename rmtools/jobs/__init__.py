"""Sharded work that resumes after an interruption."""
