"""The parts of sampling solutions: settings, runs of the one sampler, what is put out, the record of it."""
