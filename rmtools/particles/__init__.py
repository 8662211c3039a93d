"""The sampler: particles, SMC, resampling, Metropolis-Hastings and particle Gibbs. numpy only."""
