"""Labels photographs with an exported run: `python run_bundle.py IMAGE...`, with jax, flatbuffers, numpy and Pillow."""

import hashlib
import json
import sys

import decisions
import jax
import jax.export
import numpy as np
import photographs

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
        file = self.facts["decided_by"]
        self._decide = decisions.make(json.loads(self._read(file)) if file else None)

    def _read(self, name):
        with open(f"{self.folder}/{name}", "rb") as file:
            return file.read()

    def predict(self, pixels):
        """Of uint8 [B, S, S, 3]: scores (logits), probabilities and chosen [B, C], and path where there is one."""
        found = jax.device_get(self._program(self._weights, pixels))
        logits, chosen = self._decide(found["scores"])
        return {
            "chosen": chosen,
            "probabilities": 0.5 * (1 + np.tanh(0.5 * logits)),
            **found,
        }  # a decoder chooses itself

    def label(self, files):
        """(file, its labels with probabilities, the most probable first), one after the other."""
        names, side = np.array(self.facts["class_names"]), self.facts["image_size"]
        for start in range(0, len(files), BATCH):
            part = files[start : start + BATCH]
            found = self.predict(np.stack([photographs.read(file, side) for file in part]))
            for file, chosen, chances in zip(part, found["chosen"], found["probabilities"], strict=True):
                yield file, sorted(zip(names[chosen], chances[chosen], strict=True), key=lambda pair: -pair[1])


if __name__ == "__main__":
    try:
        for file, labels in Bundle(sys.path[0]).label(sys.argv[1:]):  # of the folder of this file
            sys.stdout.write(f"{file}\t{', '.join(f'{name} {chance:.2f}' for name, chance in labels) or '-'}\n")
    except (OSError, ValueError) as error:  # no such file, no photograph, a damaged bundle
        sys.exit(f"error: {error}")
