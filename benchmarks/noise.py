"""Losses against wrong training labels, on stored features: the `noise` sweep of configs/cnn_lstm_rmlc.py in minutes.

    jaxmlic features --config=cnn_lstm_rmlc:dataset=voc2007_subset,row=rml_cnn --config.pretrained=WEIGHTS
    python benchmarks/noise.py voc2007_subset --pretrained=WEIGHTS --out=runs/noise
    jaxmlic noise-curves runs/noise

Each run is a linear layer by the config's own recipe (loss, learning rate, weight decay, epochs, dropout, views), with
the library's noise, losses and metrics, but in one compiled loop over all steps, so that hundreds of runs take minutes;
their order of images and their start are not those of `jaxmlic sweep` with the same seed. OUT/runs.csv has the form
of a sweep's.

--argument has more of the config's argument (batches=5,size=64: seed i then trains on batch i alone), --mode the kind
of noise. Scores are those of the test split under the config's protocol.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import linear_training
import numpy as np

from jaxmlic import config as config_lib
from jaxmlic import losses, metrics
from jaxmlic.cli import main as cli
from jaxmlic.config import Entry
from jaxmlic.data import datasets, label_noise, loader
from jaxmlic.experiments import sweep
from jaxmlic.inputs import cache as cache_lib

ROWS = ("rml_cnn", "warp", "softmax", "binary_relevance", "asymmetric")


def make_trainer(config, steps: int):
    """Compiled: (features [N, views, D], labels int8 [N, C], seed) -> (kernel [D, C], bias [C])."""
    loss_fn, options = getattr(losses, config.loss.name), dict(config.loss.options)
    batch, keep = config.train.batch_size, 1 - config.model.dropout

    @jax.jit
    def train(x, labels, seed):
        count, views, width = x.shape
        key = jax.random.key(seed)
        epochs = jax.random.split(jax.random.fold_in(key, 0), -(-steps * batch // count))
        order = jax.vmap(lambda k: jax.random.permutation(k, count))(epochs).reshape(-1)
        kernel = jax.nn.initializers.lecun_normal()(jax.random.fold_in(key, 1), (width, labels.shape[1]))

        def loss(params, step):
            rows = jax.lax.dynamic_slice(order, (step * batch,), (batch,))
            view_key, drop_key = jax.random.split(jax.random.fold_in(key, step + 2))
            inputs = x[rows, jax.random.randint(view_key, (batch,), 0, views)]  # [B, D]
            inputs = jnp.where(jax.random.bernoulli(drop_key, keep, inputs.shape), inputs / keep, 0.0)
            return loss_fn(linear_training.logits(params, inputs), labels[rows], **options).mean()

        params = {"kernel": kernel, "bias": jnp.zeros(labels.shape[1])}
        return linear_training.fit(config, params, loss, steps=steps, examples=count)

    return train


def read(config, dataset, split: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Stored features float32 [N, views, D] and labels [N, C]; one view where not for training."""
    view = loader.select(config.data, dataset, split)
    reader = cache_lib.CachedReader(view, config, train=train)
    parts = [reader(np.arange(i, min(i + 500, len(view))))["features"] for i in range(0, len(view), 500)]
    x = np.concatenate(parts)[:, :, 0, 0].astype(np.float32)
    return x if train else x[:, :1], view.labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--argument", default="")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--rates", default="0,10,20,30,40,50")
    parser.add_argument("--mode", default="random")
    parser.add_argument("--seeds", type=int, default=3)
    options, overrides = parser.parse_known_args()
    cli.keep_freed_memory()
    overrides += [f"--config.pretrained={options.pretrained}", "--config.data.source=features"]
    dataset = datasets.load(options.dataset)
    stored, rows = {}, []
    for row in options.rows.split(","):
        argument = f"dataset={options.dataset},row={row}" + (f",{options.argument}" if options.argument else "")
        config = config_lib.load(f"cnn_lstm_rmlc:{argument}", overrides)
        batches = config.data.train_split.startswith("batches")
        trainer = None
        for rate in map(int, options.rates.split(",")):
            for seed in range(options.seeds):
                began = time.perf_counter()
                split = f"batches_seed0/batch{seed}" if batches else config.data.train_split
                for name in (split, config.data.test_split):
                    if name not in stored:
                        stored[name] = read(config, dataset, name, name == split)
                (x, labels), (test, truth) = stored[split], stored[config.data.test_split]
                steps = round(int(config.train.duration.split()[0]) * len(x) / config.train.batch_size)
                trainer = trainer or make_trainer(config, steps)
                wrong = label_noise.corrupt(labels, options.mode, rate / 100, seed) if rate else labels
                kernel, bias = map(np.asarray, trainer(x, jnp.asarray(wrong), seed))
                classes = (labels == 1).any(axis=0) if config.eval.trained_classes_only else None
                found = metrics.evaluate(
                    test[:, 0] @ kernel + bias,
                    truth,
                    config.eval.protocol,
                    classes=classes,
                    min_positives=config.eval.min_positives,
                )
                report = {key: value for key, value in found.items() if key != "AP"}
                part = f"batch{seed}" if batches else None
                name = f"{row}_noise{rate}" + (f"_{part}" if part else "")
                entry = Entry(name, series=row, noise_rate=rate / 100, part=part)
                rows.append(sweep.row(entry, seed, {"split": config.data.test_split, **report}))
                value = 100 * found[config.eval.metric.removeprefix("val/")]
                print(f"{name}, seed {seed}: {config.eval.metric} {value:.2f} ({time.perf_counter() - began:.1f} s)")
    sweep.write(options.out, rows)
    print(f"written: {Path(options.out) / 'runs.csv'}; `jaxmlic noise-curves {options.out}` draws it")


if __name__ == "__main__":
    main()
