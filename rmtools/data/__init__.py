"""Data: tasks (prompts and a verifier), branching rollouts on disk, and what scoring them gives."""
