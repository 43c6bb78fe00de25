"""What a team says once and for all: the config, and the baseline of known findings."""
