"""Language models: what a step is, stepwise decoding, value models, and particles over both."""
