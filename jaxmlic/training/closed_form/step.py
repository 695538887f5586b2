"""The step of heads that are fitted at once."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import distributed, progress, sharding
from jaxmlic.data import loader
from jaxmlic.errors import UserError
from jaxmlic.evaluation import score_file, scoring
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.inputs import Source, eval_inputs
from jaxmlic.training import run_folder
from jaxmlic.training import state as state_lib
from jaxmlic.training.step import Step

OUT_OF_FOLD = "out_of_fold"  # scores/train.out_of_fold.npz


def make_step(
    head: ModuleType,
    model: nn.Module,
    config: ConfigDict,
    source: Source,
    view: loader.View,
    mesh: jax.sharding.Mesh,
    workdir: str | Path,
    report: Callable[[str], None],
) -> Step:
    """(state, batch) -> (state, scalars) for a head with `fit_fn`. The batch is not read: all of the view is.

    report: gets lines for the user.
    The scores of held-out training images go to scores/train.out_of_fold.npz of the run folder.
    Raises UserError for weighted examples, for parameters that are not finite.
    """
    if view.targets is not None and view.targets.weights is not None:
        raise UserError(f"config.head = {config.head!r} takes no weights of examples (config.data.pseudo_labels)")
    describe = jax.jit(
        lambda variables, inputs: head.describe_fn(model, variables, inputs),
        in_shardings=(sharding.replicated(mesh), sharding.split(mesh)),
        out_shardings=sharding.split(mesh),
    )

    def read(state: state_lib.TrainState) -> dict:
        """What `describe_fn` gives of every image, as evaluation sees it, numpy [N, ...]."""
        reader, parts = source.validation_reader(view), []
        batches = loader.eval_batches(
            reader,
            scoring.batch_size_for(config, mesh),
            threads=config.data.threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        with progress.Progress("describing", len(view), transient=True) as bar:
            for batch in batches:
                arrays = sharding.put(batch, mesh)
                found = describe(state_lib.eval_variables(state), eval_inputs(arrays))
                keep = sharding.gather(arrays["mask"])
                parts.append(jax.tree.map(lambda x, keep=keep: sharding.gather(x)[keep], found))
                bar.advance(int(keep.sum()))
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

    def step(state: state_lib.TrainState, batch: dict) -> tuple[state_lib.TrainState, dict]:
        del batch
        labels = loader.replace_unknown(view.labels, config.data.difficult)
        fitted = head.fit_fn(model, read(state), labels, config.seed, report)
        for note in fitted.notes:
            report(note)
        bad = [name for name, value in fitted.params.items() if not np.isfinite(np.asarray(value)).all()]
        if bad:
            raise UserError(
                f"the fit gave values that are not finite ({bad[0]}): use larger ridges or float32 features"
            )
        if distributed.is_main():
            held_out = ScoreFile(
                fitted.scores,
                view.labels,
                view.ids,
                list(view.dataset.class_names),
                config.to_dict(),
                config.eval.protocol,
                view.split,
                extra={"step": 1, "held_out": True},
            )
            score_file.save(held_out_file(workdir, view.split), held_out)
        known = labels >= 0
        # Of the held-out images: binary cross-entropy over the known labels.
        loss = np.logaddexp(0, np.where(labels == 1, -fitted.scores, fitted.scores))[known].mean()
        scalars = {"loss": loss, **fitted.numbers}
        return state_lib.with_fitted(state, fitted.params), {k: np.float32(v) for k, v in scalars.items()}

    return step


def held_out_file(workdir: str | Path, train_split: str) -> Path:
    """Where a head that is fitted at once keeps the held-out scores of its training images."""
    return run_folder.scores_file(workdir, train_split.replace("/", "__"), OUT_OF_FOLD)
