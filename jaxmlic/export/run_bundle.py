"""Labels photographs with an exported run: `python run_bundle.py IMAGE...`, with jax, flatbuffers, numpy and Pillow."""

import hashlib
import json
import sys

import jax
import jax.export
import numpy as np

FORMAT, BATCH = 1, 32


class Bundle:
    """An exported run; `facts` is its bundle.json. ValueError for a damaged file and for a newer format."""

    def __init__(self, folder):
        self.folder = folder
        self.facts = json.loads(self._read("bundle.json"))
        if self.facts["format"] > FORMAT:
            raise ValueError(f"{folder} has format {self.facts['format']}, and this file reads {FORMAT}: use its own")
        for name, fact in self.facts["files"].items():
            if hashlib.sha256(self._read(name)).hexdigest() != fact["sha256"]:
                raise ValueError(f"{folder}/{name} is damaged: its SHA-256 is not the one in bundle.json")
        self._program = jax.jit(jax.export.deserialize(bytearray(self._read("program.jax"))).call)
        with np.load(f"{folder}/weights.npz", allow_pickle=False) as stored:
            self._weights = jax.device_put(dict(stored))
        file = self.facts["thresholds"]
        rule = json.loads(self._read(file)) if file else {"values": 0.0, "scale": 1.0, "offset": 0.0}
        self._bound, self._scale, self._offset = (np.array(rule[name]) for name in ("values", "scale", "offset"))

    def _read(self, name):
        with open(f"{self.folder}/{name}", "rb") as file:
            return file.read()

    def predict(self, pixels):
        """Of uint8 [B, S, S, 3]: scores (logits), probabilities and chosen [B, C], and path where there is one."""
        found = jax.device_get(self._program(self._weights, pixels))
        found.setdefault("chosen", found["scores"] >= self._bound.astype(np.float32))
        logits = found.pop("logits", found["scores"] * self._scale + self._offset)
        return found | {"probabilities": 0.5 * (1 + np.tanh(0.5 * logits))}


if __name__ == "__main__":
    import photographs

    bundle = Bundle(sys.path[0])  # the folder of this file
    for start in range(1, len(sys.argv), BATCH):
        files, side = sys.argv[start : start + BATCH], bundle.facts["image_size"]
        found = bundle.predict(np.stack([photographs.read(file, side) for file in files]))
        for file, chosen, chances in zip(files, found["chosen"], found["probabilities"], strict=True):
            labels = sorted(zip(-chances[chosen], np.array(bundle.facts["class_names"])[chosen], strict=True))
            shown = ", ".join(f"{name} {-chance:.2f}" for chance, name in labels)
            sys.stdout.write(f"{file}\t{shown or '-'}\n")
