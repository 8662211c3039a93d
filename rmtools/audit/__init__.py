"""The audit: how inconsistent a reward model is, and how many particles that costs."""
