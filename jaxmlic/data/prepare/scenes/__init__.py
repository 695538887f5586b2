"""`scenes`: the data set that comes with the package: small pictures composed from emoji, labelled like VOC 2007.

Each picture takes the label set of one real VOC 2007 picture, so that label counts and co-occurrence are VOC's, and
shows one or two glyphs of every label on a generated background: varied in size, place, angle, direction and colour,
and allowed to cover each other in part. Nothing is downloaded. A picture depends on (seed, split, index) only, never
on how many others are made, in which order, or by how many processes.

The glyphs are Noto Emoji (Apache-2.0) and Twemoji (CC BY 4.0): see `assets/ATTRIBUTION.md`.
"""
