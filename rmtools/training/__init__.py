"""Training: targets and divergences whose minimiser is the true value, and the trainer that uses them."""
