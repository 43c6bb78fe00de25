"""Probes: each runs the model and returns plain numbers. Verdicts are the rules' affair."""
