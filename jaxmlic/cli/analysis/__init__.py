"""Commands that look into what runs scored: comparisons, thresholds, reports, maps."""
