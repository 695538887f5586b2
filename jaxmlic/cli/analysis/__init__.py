"""Commands that compare what runs scored, and choose thresholds."""
