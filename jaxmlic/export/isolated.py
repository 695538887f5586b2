"""A program, run by `verify`: predicts with a bundle where only jax, numpy, Pillow and what they need can be imported.

python -I isolated.py BUNDLE OUT BATCH reads images from stdin, each as the number of its bytes (8 bytes, big-endian)
and these, and writes the predictions, with the CRC-32 of each image's pixels, to OUT, an .npz.
"""

import io
import sys
import zlib

ALLOWED = {"jax", "jaxlib", "flatbuffers", "numpy", "PIL", "scipy", "ml_dtypes", "opt_einsum", "libtpu", "nvidia"}
OWN = {"run_bundle", "photographs", "decisions"}


class Gated:
    """A finder of modules for which those are missing that a machine without jaxmlic need not have."""

    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, path=None, target=None):
        """As the finder's own; None for what is refused."""
        top = name.partition(".")[0]
        if top in ALLOWED | OWN | sys.stdlib_module_names or top.startswith(("jax_", "_sysconfigdata")):
            return self._finder.find_spec(name, path, target)
        return None


def main(folder, out, batch):
    sys.meta_path[:] = map(Gated, sys.meta_path)
    sys.path.insert(0, folder)
    import numpy as np
    import photographs
    import run_bundle

    bundle = run_bundle.Bundle(folder)
    parts, images = [], []

    def predict():
        if images:
            pixels = np.stack(images)
            parts.append(bundle.predict(pixels) | {"crc": np.array([zlib.crc32(one) for one in images], np.uint32)})
            images.clear()

    while length := sys.stdin.buffer.read(8):
        data = io.BytesIO(sys.stdin.buffer.read(int.from_bytes(length)))
        images.append(photographs.read(data, bundle.facts["image_size"]))
        if len(images) == batch:
            predict()
    predict()
    np.savez(out, **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
