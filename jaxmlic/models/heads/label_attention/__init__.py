"""Heads in which each label attends to the positions of the feature map: CSRA, ML-Decoder, Query2Label."""
