"""Files of weights: named arrays on disk, read without running anything in them."""
