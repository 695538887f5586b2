"""Commands that score, predict and draw."""
