"""Commands that look into scores: reports, comparisons, thresholds."""
