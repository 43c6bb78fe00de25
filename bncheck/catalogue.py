"""Every rule, sorted by code. A new rule is one file in ``rules/`` and one line here."""

from __future__ import annotations

from bncheck.core.rule import Rule
from bncheck.rules import (
    batch_statistics_at_inference,
    cumulative_average,
    dead_channels,
    decay_convention,
    extreme_gain,
    half_precision_statistics,
    initial_value_residue,
    last_batch_only,
    momentum_inconsistent,
    momentum_out_of_range,
    negative_variance,
    non_finite_statistics,
    saved_in_training_mode,
    statistics_at_initialisation,
    statistics_missing,
    tracked_instance_norm,
    training_mode_baked_in,
    zero_momentum,
)

RULES: tuple[Rule, ...] = (
    saved_in_training_mode.RULE,
    training_mode_baked_in.RULE,
    batch_statistics_at_inference.RULE,
    tracked_instance_norm.RULE,
    statistics_at_initialisation.RULE,
    statistics_missing.RULE,
    non_finite_statistics.RULE,
    negative_variance.RULE,
    dead_channels.RULE,
    extreme_gain.RULE,
    initial_value_residue.RULE,
    half_precision_statistics.RULE,
    zero_momentum.RULE,
    last_batch_only.RULE,
    decay_convention.RULE,
    momentum_out_of_range.RULE,
    momentum_inconsistent.RULE,
    cumulative_average.RULE,
)
