"""One file per head; each exports `Model`, `loss_fn` and `predict_fn`, found by the name in `config.head`."""
