"""Estimates population statistics: each layer's stored moments become those of its own input."""
