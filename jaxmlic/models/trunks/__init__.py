"""One file per trunk; each exports `Trunk` and `preprocess`, found by the name in `config.model.trunk`."""
