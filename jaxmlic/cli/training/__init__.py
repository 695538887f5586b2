"""Commands that train, and those that prepare what is trained from."""
