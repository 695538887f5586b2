"""`jaxmlic serve` under load: requests a second, waiting times, and what bad requests among them do.

    python benchmarks/serve.py RUN [--requests 400] [--at-a-time 50] [--batch-size 8]

The server is a process of its own. Each request has one photograph of the test split. Then the same with bad requests
between: text, an image of 100 megapixels, a body that is too large, and connections that are cut within the body.
"""

import argparse
import asyncio
import io
import subprocess
import sys
import time

import httpx
import numpy as np
from PIL import Image

import jaxmlic
from jaxmlic.data import loader

SHOWN = (50, 99)  # percentiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--at-a-time", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    run = jaxmlic.load(options.run)
    view = loader.find_view(run.config.data, run.dataset, run.config.seed, run.config.data.test_split)
    source = view.dataset.source(view.split)
    images = [source[int(row)]["image"] for row in view.indices[:32]]
    command = [sys.executable, "-m", "jaxmlic", "serve", options.run, "--port=0", f"--batch-size={options.batch_size}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = next(line for line in server.stdout if "http://" in line)
            address = line.split("http://")[1].split("/")[0]
            print(f"{run.config.head}, {run.config.data.image_size} px, batches of {options.batch_size}")
            for name, bad in (("photographs alone", 0.0), ("one request in four is bad", 0.25)):
                asyncio.run(load(address, images, options.requests, options.at_a_time, bad, name))
        finally:
            server.terminate()


async def load(address: str, images: list[bytes], count: int, at_a_time: int, bad: float, name: str) -> None:
    """Sends the requests and prints what came of them."""
    turn, seconds, statuses = asyncio.Semaphore(at_a_time), [], {}
    rng, wrong = np.random.default_rng(0), bad_bodies()
    is_bad = rng.random(count) < bad

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        async with turn:
            if is_bad[number] and number % 4 == 0:
                await cut(address)
                return
            data = wrong[number % len(wrong)] if is_bad[number] else images[number % len(images)]
            start = time.perf_counter()
            kind = "bad" if is_bad[number] else "good"
            try:
                status = str((await client.post("/predict", files={"images": ("photo", data)})).status_code)
            except httpx.TransportError:  # the answer came, and the end, before a large body was sent
                if not is_bad[number]:
                    raise
                status = "closed"
            statuses.setdefault(kind, []).append(status)
            if not is_bad[number]:
                seconds.append(time.perf_counter() - start)

    limits = httpx.Limits(max_connections=at_a_time)
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=300, limits=limits) as client:
        start = time.perf_counter()
        await asyncio.gather(*(ask(client, number) for number in range(count)))
        whole = time.perf_counter() - start
    shown = ", ".join(f"p{p} {1e3 * np.percentile(seconds, p):.0f} ms" for p in SHOWN)
    good = statuses["good"].count("200")
    print(f"{name}: {len(seconds) / whole:.1f} photographs a second, {at_a_time} at a time, {shown}")
    print(f"  labelled: {good} of {(~is_bad).sum()}; statuses of bad requests: {sorted(set(statuses.get('bad', [])))}")


def bad_bodies() -> list[bytes]:
    """Text, an image of 100 megapixels that is 100 kB, 21 MB of zeros."""
    file = io.BytesIO()
    Image.new("L", (10_000, 10_000)).save(file, "PNG")
    return [b"no image", file.getvalue(), bytes(21_000_000)]


async def cut(address: str) -> None:
    """A connection that ends within the body that it announced."""
    host, port = address.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port))
    lines = ("POST /predict HTTP/1.1", f"Host: {address}", "Content-Length: 100000")
    lines += ("Content-Type: multipart/form-data; boundary=x", "", "--x")
    writer.write("\r\n".join(lines).encode())
    await writer.drain()
    writer.close()


if __name__ == "__main__":
    main()
