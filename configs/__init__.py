"""The shipped experiments, one file each; `common.py` holds every field."""
