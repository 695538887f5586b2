"""Beam search and the training step of the CNN-RNN decoder on this CPU, beside PyTorch's where it is installed.

    python benchmarks/decode.py [--rounds 5] [--batch 256] [--only search,growth,training]

search    C 80, beam 5, at most 10 labels, LSTM 512, embedding 64, on random images and a random model: ours,
          a batched PyTorch implementation (all images and paths in one product a step, stopping as soon as no image can
          find better paths) and one that takes the images one by one. All must find the same paths.
growth    ours alone, with C = 80, 1,000, 10,000, beam 1, 5, 20 and batches of 64, 256, 1,024.
training  loss, gradients and an RMSProp update on stored features [B, 1280], C 80, paths of at most 10 labels, on
          average 2.9 (as in MS-COCO) and 4.9; nn.LSTM there.

Medians of interleaved runs, and the median of the rounds' ratios. Run it on an idle machine.
"""

import argparse
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from trunks import measure

from jaxmlic.cli import main as cli
from jaxmlic.models import trunks
from jaxmlic.models.heads import cnn_rnn
from jaxmlic.models.layers import cells

EMBEDDING, RECURRENT, FEATURES = 64, 512, 1280
ALONE = 32  # images for the implementation that takes one at a time


def random_arrays(num_labels: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A decoder that predicts END after some labels: peaked enough that images differ in when their search ends."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    arrays = {
        "labels": normal(num_labels + 1, EMBEDDING) * 0.4,  # the last is END
        "start": normal(1, EMBEDDING) * 0.4,
        "input": normal(EMBEDDING, 4 * RECURRENT) * EMBEDDING**-0.5,
        "recurrent": normal(RECURRENT, 4 * RECURRENT) * RECURRENT**-0.5,
        "bias": normal(4 * RECURRENT) * 0.1,
        "output": normal(RECURRENT, EMBEDDING) * 3 * RECURRENT**-0.5,
    }
    arrays["labels"][-1] += 0.15  # x_t of eq. 4 is not negative
    return arrays


def our_search(arrays: dict, images: np.ndarray, beam_size: int, max_length: int) -> Callable[[], tuple]:
    """Compiled search over image embeddings [B, E]: () -> (paths [B, N, T], log-probabilities [B, N])."""
    num_labels = len(arrays["labels"]) - 1

    @jax.jit
    def run(arrays: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        cell = cells.Weights("lstm", arrays["input"], arrays["recurrent"], arrays["bias"])
        read = jnp.concatenate([arrays["labels"][:-1], arrays["start"]])
        decoder = cnn_rnn.Decoder(read, arrays["labels"], arrays["output"], cell)
        options = {"num_labels": num_labels, "beam_size": beam_size, "max_length": max_length}
        return cnn_rnn.find_paths(decoder, cell.project(read), images, **options)

    arrays, images = jax.device_put((arrays, images))
    return lambda: jax.block_until_ready(run(arrays, images))


def torch_search(arrays: dict, images: np.ndarray, beam_size: int, max_length: int, together: int) -> Callable:
    """The same in PyTorch, `together` images at a time."""
    import torch

    end = len(arrays["labels"]) - 1
    labels, projection = torch.tensor(arrays["labels"]), torch.tensor(arrays["output"])
    read = torch.cat([labels[:-1], torch.tensor(arrays["start"])])
    cell = torch.nn.LSTMCell(EMBEDDING, RECURRENT)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.tensor(arrays["input"]).T)
        cell.weight_hh.copy_(torch.tensor(arrays["recurrent"]).T)
        cell.bias_ih.copy_(torch.tensor(arrays["bias"]))
        cell.bias_hh.zero_()
    minus = -float("inf")

    def search(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch, live = len(image), 1  # one path to begin with
        state = (torch.zeros(batch, RECURRENT), torch.zeros(batch, RECURRENT))
        last = torch.full((batch,), end)  # START's row
        live_paths, live_log_probs = torch.full((batch, 1, max_length), end), torch.zeros(batch, 1)
        used = torch.zeros(batch, 1, end + 1, dtype=torch.bool)
        done_paths = torch.full((batch, beam_size, max_length), end)
        done_log_probs = torch.full((batch, beam_size), minus)
        for length in range(max_length + 1):
            state = cell(read[last], state)
            x = torch.relu(state[0] @ projection + image.repeat_interleave(live, 0))
            log_probs = torch.log_softmax(x @ labels.T, 1).view(batch, live, -1)
            log_probs = log_probs.masked_fill_(used, minus)
            if length == max_length:
                log_probs[:, :, :end] = minus
            best, tokens = log_probs.topk(min(beam_size, end + 1), 2)  # each path's own N best, as in the paper
            totals, is_end = best + live_log_probs[:, :, None], tokens == end
            ended = totals.masked_fill(~is_end, minus).amax(2)
            done_log_probs, i = torch.cat([done_log_probs, ended], 1).topk(beam_size)
            done_paths = torch.cat([done_paths, live_paths], 1).gather(1, i[:, :, None].expand(-1, -1, max_length))
            if length == max_length:
                break
            live_log_probs, i = totals.masked_fill(is_end, minus).view(batch, -1).topk(beam_size)
            if bool((live_log_probs[:, 0] <= done_log_probs[:, -1]).all()):
                break
            parent, label = i // tokens.shape[2], tokens.view(batch, -1).gather(1, i)
            rows = (parent + torch.arange(batch)[:, None] * live).view(-1)
            state, last, live = (state[0][rows], state[1][rows]), label.view(-1), beam_size
            live_paths = live_paths.view(-1, max_length)[rows].view(batch, live, -1)
            live_paths[:, :, length] = label
            used = used.view(-1, end + 1)[rows].view(batch, live, -1).scatter(2, label[:, :, None], True)
        return done_paths, done_log_probs

    parts = torch.tensor(images).split(together)

    def run() -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            paths, log_probs = zip(*map(search, parts), strict=True)
        return torch.cat(paths).numpy(), torch.cat(log_probs).numpy()

    return run


def our_training(arrays: dict, features: np.ndarray, labels: np.ndarray, max_length: int) -> Callable[[], float]:
    """Loss, gradients and update of the head as it is: () -> the loss before the update."""
    model = cnn_rnn.Model(labels.shape[1], embedding_size=EMBEDDING, recurrent_size=RECURRENT, max_length=max_length)
    params = {
        "image_projection": {"kernel": arrays["image"]},
        "decoder": {
            "label_embedding": arrays["labels"],
            "start_embedding": arrays["start"],
            "output_kernel": arrays["output"],
            "cell": {
                "input_kernel": arrays["input"],
                "recurrent_kernel": arrays["recurrent"],
                "bias": arrays["bias"],
            },
        },
    }
    constants = {"order": np.arange(labels.shape[1], dtype=np.int32)}
    tx = optax.chain(optax.scale_by_rms(decay=0.9), optax.trace(0.9), optax.scale(-1e-4))

    @partial(jax.jit, donate_argnums=0)
    def step(state: tuple, features: jax.Array, labels: jax.Array) -> tuple[tuple, jax.Array]:
        params, opt_state, key = state
        key, dropout = jax.random.split(key)

        def loss(params: dict) -> jax.Array:
            variables = {"params": params, "constants": constants}
            inputs = trunks.StoredMaps(features[:, None, None])
            outputs = model.apply(variables, inputs, train=True, labels=labels, rngs={"dropout": dropout})
            return cnn_rnn.loss_fn(outputs, labels)[0].mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state, key), value

    params = jax.tree.map(jnp.array, params)
    state = (params, tx.init(params), jax.random.key(0))
    features, labels = jax.device_put((features, labels))

    def run() -> float:
        nonlocal state
        state, value = step(state, features, labels)
        return float(jax.block_until_ready((state, value))[1])

    return run


def torch_training(arrays: dict, features: np.ndarray, labels: np.ndarray, max_length: int) -> Callable[[], float]:
    """The same with nn.LSTM, teacher forcing on paths prepared beforehand."""
    import torch

    end = labels.shape[1]
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in arrays.items()}
    lstm = torch.nn.LSTM(EMBEDDING, RECURRENT)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(tensors["input"].T)
        lstm.weight_hh_l0.copy_(tensors["recurrent"].T)
        lstm.bias_ih_l0.copy_(tensors["bias"])
        lstm.bias_hh_l0.zero_()
    trained = [*(tensors[name] for name in ("labels", "start", "output", "image")), *lstm.parameters()]
    optimizer = torch.optim.RMSprop(trained, lr=1e-4, alpha=0.9, momentum=0.9)
    paths = [list(np.flatnonzero(row))[:max_length] for row in labels]
    tokens = torch.tensor([path + [end] * (max_length + 1 - len(path)) for path in paths]).T  # [T + 1, B]
    counted = torch.tensor([[t <= len(path) for path in paths] for t in range(max_length + 1)])
    read = torch.cat([torch.full((1, len(paths)), end), tokens[:-1]])
    features = torch.tensor(features)

    def run() -> float:
        optimizer.zero_grad()
        rows = torch.cat([tensors["labels"][:-1], tensors["start"]])
        outputs, _ = lstm(torch.nn.functional.embedding(read, rows))
        x = torch.relu(outputs @ tensors["output"] + features @ tensors["image"])
        x = torch.nn.functional.dropout(x, 0.5)
        log_probs = torch.log_softmax(x @ tensors["labels"].T, -1)
        chosen = log_probs.gather(2, tokens[:, :, None])[:, :, 0]
        loss = -(chosen * counted).sum(0).mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


def report(times: dict[str, list[float]], images: dict[str, int]) -> None:
    """`images`: how many each run takes."""
    each = {name: np.divide(seconds, images[name]) for name, seconds in times.items()}
    for name, seconds in each.items():
        line = f"  {name:28s} {1 / np.median(seconds):8.1f} img/s  ({1e3 * np.median(times[name]):8.1f} ms)"
        if name != "jaxmlic":
            ratio = np.median(seconds / each["jaxmlic"])
            line += f"  jaxmlic is {ratio:.2f} times as fast (median of {len(seconds)} rounds)"
        print(line)


def compare_search(rounds: int, batch: int, has_torch: bool) -> None:
    arrays, images = random_arrays(80), np.random.default_rng(1).normal(size=(batch, EMBEDDING)).astype(np.float32)
    runs = {"jaxmlic": our_search(arrays, images, 5, 10)}
    paths, log_probs = map(np.asarray, runs["jaxmlic"]())
    lengths = (paths[:, 0] < 80).sum(axis=1)
    print(f"search: batch {batch}, best paths of {lengths.min()} to {lengths.max()} labels, mean {lengths.mean():.1f}")
    if has_torch:
        runs["PyTorch, batched"] = torch_search(arrays, images, 5, 10, batch)
        runs["PyTorch, image by image"] = torch_search(arrays, images[:ALONE], 5, 10, 1)
        for name in list(runs)[1:]:
            theirs, their_log_probs = runs[name]()
            np.testing.assert_allclose(their_log_probs, log_probs[: len(theirs)], atol=1e-3)
            same = (theirs == paths[: len(theirs)]).all(axis=2).mean()
            print(f"  {name}: {100 * same:.2f} % of the paths are the same, log-probabilities within 0.001")
            assert same > 0.99, "more than rounding"
    report(measure(runs, rounds), {name: ALONE if "by image" in name else batch for name in runs})


def show_growth(rounds: int, batch: int) -> None:
    print("growth: images a second, at most 10 labels")
    sizes = [(c, 5, batch) for c in (80, 1000, 10000)]
    sizes += [(80, n, batch) for n in (1, 20)] + [(80, 5, b) for b in (64, 1024)]
    for num_labels, beam_size, count in sizes:
        images = np.random.default_rng(1).normal(size=(count, EMBEDDING)).astype(np.float32)
        run = our_search(random_arrays(num_labels), images, beam_size, 10)
        lengths = (np.asarray(run()[0])[:, 0] < num_labels).sum(axis=1)
        seconds = np.median(measure({"jaxmlic": run}, rounds)["jaxmlic"])
        print(
            f"  C {num_labels:6d}, beam {beam_size:2d}, batch {count:4d}: {count / seconds:8.1f} img/s, "
            f"best paths of {lengths.mean():.1f} labels"
        )


def compare_training(rounds: int, batch: int, has_torch: bool, mean_labels: float) -> None:
    rng = np.random.default_rng(1)
    arrays = random_arrays(80) | {"image": rng.normal(size=(FEATURES, EMBEDDING)).astype(np.float32) * FEATURES**-0.5}
    features = rng.normal(size=(batch, FEATURES)).astype(np.float32)
    labels = (rng.random((batch, 80)) < mean_labels / 80).astype(np.int8)
    print(f"training: batch {batch}, {labels.sum(axis=1).mean():.1f} labels an image")
    runs = {"jaxmlic": our_training(arrays, features, labels, 10)}
    if has_torch:
        runs["PyTorch, nn.LSTM"] = torch_training(arrays, features, labels, 10)
        losses = {name: run() for name, run in runs.items()}
        print("  loss of the first step (dropout differs): " + ", ".join(f"{k} {v:.3f}" for k, v in losses.items()))
    report(measure(runs, rounds), dict.fromkeys(runs, batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--only", default="search,growth,training")
    options = parser.parse_args()
    cli.keep_freed_memory()  # as every command does, for both libraries
    try:
        import torch

        has_torch = True
        print(f"jax {jax.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    except ImportError:
        has_torch = False
        print("PyTorch is not installed: jaxmlic alone")
    parts = options.only.split(",")
    if "search" in parts:
        compare_search(options.rounds, options.batch, has_torch)
    if "growth" in parts:
        show_growth(options.rounds, options.batch)
    if "training" in parts:
        for mean_labels in (2.9, 4.9):
            compare_training(options.rounds, options.batch, has_torch, mean_labels)


if __name__ == "__main__":
    main()
