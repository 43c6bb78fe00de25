"""What bncheck costs, measured as ratios within one run."""
