"""Estimators from samples: Bellman error, calibration, variance and influence, with bootstrap intervals."""
