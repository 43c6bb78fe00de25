"""What can be wrong: one file for each defect, named after it. A rule imports no rule and does no I/O."""
