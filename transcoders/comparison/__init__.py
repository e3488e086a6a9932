"""What the runs say together: contrasts, hypotheses, sanity checks, baselines, pruning."""
