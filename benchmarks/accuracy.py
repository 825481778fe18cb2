"""What a dtype costs in accuracy, on trained networks: ``python -m benchmarks.accuracy``.

Trains HRNets on the generated shapes of examples/train_segmentation.py, several seeds each, and runs each network in
every dtype of ``hf.optimize``, and in int8 by other engines, on images that it was not trained on. A row has the mIoU
against the labels, and the share of pixels that get the same class as in float32. All engines take their scales for
int8 from the same training images. Results go to benchmarks/results/accuracy/NETWORK.json, after each seed.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hrnet_fast as hf
from benchmarks import accuracy_table
from benchmarks.contenders import ONNX_RUNTIME, OPENVINO, TABLE
from hrnet_fast.apps.evaluation.miou import confusion, mean_iou
from hrnet_fast.apps.pictures.reading import normalize
from hrnet_fast.bench import machine
from hrnet_fast.bench.contenders import Problem
from hrnet_fast.bench.networks import same_weights
from hrnet_fast.runtime import ways

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))
from segmentation_training import data  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "accuracy"
NETWORKS = ("w18_small_v1", "w18")
SIZE = (128, 128)  # of all images: the shapes grow with it, and the network knows those of this size
BATCH = 4
LEARNING_RATE = 3e-3
HELD_OUT_SEED = 9_999
CALIBRATION_IMAGES = 16
SETTLING_IMAGES = 64

Run = Callable[[Tensor], Tensor]  # [1, 3, H, W] float32 -> logits [1, classes, H, W]


def train(network: str, seed: int, steps: int) -> tuple[nn.Module, float]:
    """A network in evaluation, in the plain form, and the mean loss of its last steps.

    AdamW with one cycle, and no change of scale: it gets in 600 steps where the example's recipe, which is that of the
    official code, would be after thousands.
    """
    torch.manual_seed(seed)
    model = hf.create_model(f"hrnet_{network}", task="segmentation", num_classes=data.Shapes.CLASSES)
    model = model.to(memory_format=torch.channels_last).train()
    images = data.Positions(data.Shapes(steps * BATCH, SIZE, seed), SIZE, seed, scale=False)  # each is seen once
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps + 1, pct_start=0.15)
    losses = []
    for step in range(steps):
        batch = [images[position] for position in range(step * BATCH, (step + 1) * BATCH)]
        pixels, labels = (torch.stack([item[k] for item in batch]) for k in (0, 1))
        optimizer.zero_grad(set_to_none=True)
        logits = model(pixels.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels, ignore_index=data.IGNORE)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    plain = hf.create_model(f"hrnet_{network}", task="segmentation", num_classes=data.Shapes.CLASSES, fast=False)
    plain.load_state_dict(model.state_dict())
    settle(plain, pictures(SETTLING_IMAGES, seed)[0])
    last = losses[-50:]
    return plain.eval().requires_grad_(False), sum(last) / len(last)


def settle(model: nn.Module, images: Tensor) -> None:
    """Takes the moments of every BatchNorm anew, from images [N, 3, H, W].

    HRNet's BatchNorms have a momentum of 0.01, so that after a few hundred steps their moments are those of weights
    from long before: w18 after 400 steps has an mIoU of 0.21 with them, and 0.35 with new ones.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    model.train()
    with torch.no_grad():
        for batch in images.split(BATCH):
            model(batch)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Generated images [count, 3, H, W], normalized, and their labels [count, H, W]."""
    source = data.Shapes(count, SIZE, seed)
    pairs = [source.load(index) for index in range(count)]
    return torch.stack([normalize(image) for image, _ in pairs]), torch.stack([mask for _, mask in pairs])


def miou(predicted: Tensor, labels: Tensor, classes: int = data.Shapes.CLASSES) -> float:
    """Mean intersection over union of all images together; both [N, H, W] uint8."""
    return mean_iou(confusion(predicted, labels, classes))[0]


def classes_of(run: Run, images: Tensor) -> Tensor:
    """The class of each pixel, [N, H, W] uint8, one image at a time."""
    with torch.inference_mode():
        return torch.cat([run(image[None]).argmax(1).to(torch.uint8) for image in images])


class AnotherDtype(Exception):
    """What ran was not in int8."""


def optimized(plain: nn.Module, calibration: Tensor, dtype: torch.dtype, **options: Any) -> tuple[Run, str]:
    """``hf.optimize`` of the network, and its engine; ``options``: of int8.

    Raises:
        AnotherDtype: int8 was asked for, and something else would run.
    """
    network, example = same_weights(plain), _channels_last(calibration[:1])
    if dtype != torch.int8:
        engine = hf.optimize(network, example.to(dtype), dtype=dtype)
        return lambda image: engine(_channels_last(image).to(dtype)), engine.engine
    # Accuracy is asked for, not speed: where int8 is not faster, as on small networks or a busy machine, optimize would
    # keep another dtype, and this row would be that one's. So int8 is told to be faster.
    pays = mock.patch.object(ways, "milliseconds", lambda run, tensors: 1.0 if run.products == torch.int8 else 2.0)
    with pays:
        engine = hf.optimize(network, example, dtype=dtype, calibration=calibration, **options)
    if engine.reason is not None:
        raise AnotherDtype(engine.reason)
    return lambda image: engine(_channels_last(image)), engine.engine


def by_peer(plain: nn.Module, calibration: Tensor, peer: str) -> tuple[Run, str]:
    """Another engine in int8. What it prepares reads the memory of its problem's image."""
    form = TABLE[peer]
    why = form.unsupported_reason(torch.int8)
    if why is not None:
        raise AnotherDtype(why)
    problem = Problem(plain, (calibration[:1].clone(),), torch.int8, same_weights, calibration=calibration)
    call = form.prepare(problem)

    def run(image: Tensor) -> Tensor:
        problem.image.copy_(image)
        return call()

    return run, peer


def _channels_last(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)


# By the name of a row: what makes it of a network and the images for calibration. The first one is what all others are
# compared with; names in accuracy_table.
CONTENDERS: dict[str, Callable[[nn.Module, Tensor], tuple[Run, str]]] = {
    accuracy_table.REFERENCE: lambda plain, calibration: (plain, "PyTorch"),
    "float32": lambda *given: optimized(*given, torch.float32),
    "bfloat16": lambda *given: optimized(*given, torch.bfloat16),
    "float16": lambda *given: optimized(*given, torch.float16),
    accuracy_table.INT8: lambda *given: optimized(*given, torch.int8),
    'int8, ranges="max"': lambda *given: optimized(*given, torch.int8, ranges="max"),
    'int8, ranges="99.99%"': lambda *given: optimized(*given, torch.int8, ranges="99.99%"),
    accuracy_table.PEERS[0]: lambda *given: by_peer(*given, OPENVINO),
    accuracy_table.PEERS[1]: lambda *given: by_peer(*given, ONNX_RUNTIME),
}


def rows(plain: nn.Module, calibration: Tensor, images: Tensor, labels: Tensor, names: Sequence[str]) -> list[dict]:
    """A row for each contender: its mIoU, and its agreement with the first one, from 0 to 1; or why it did not run."""
    found, reference = [], None
    for name in names:
        row = {"name": name, "engine": None, "miou": None, "agreement": None, "failure": None}
        try:
            run, row["engine"] = CONTENDERS[name](plain, calibration)
            predicted = classes_of(run, images)
        except Exception as error:  # whatever an engine raises: the table says so, and the others go on
            row["failure"] = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            reference = predicted if reference is None else reference
            row["miou"] = miou(predicted, labels)
            row["agreement"] = (predicted == reference).double().mean().item()
        found.append(row)
    return found


def trained(network: str, seed: int, steps: int, folder: Path | None) -> tuple[nn.Module, float]:
    """What ``train`` returns; kept in a folder, where there is one, and taken from there if it is there already."""
    path = None if folder is None else folder / f"{network}-{seed}-{steps}.pt"
    if path is None or not path.exists():
        plain, loss = train(network, seed, steps)
        if path is not None:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save({"loss": loss, "state": plain.state_dict()}, path)
        return plain, loss
    kept = torch.load(path, weights_only=True)
    plain = hf.create_model(f"hrnet_{network}", task="segmentation", num_classes=data.Shapes.CLASSES, fast=False)
    plain.load_state_dict(kept["state"])
    return plain.eval().requires_grad_(False), kept["loss"]


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, measures, writes and prints; 1 if a contender of hrnet_fast did not run, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", nargs="+", default=NETWORKS, metavar="NAME", help=f"default: {' '.join(NETWORKS)}"
    )
    parser.add_argument("--steps", type=int, default=600, help=f"of training, of {BATCH} images each (default: 600)")
    parser.add_argument("--seeds", type=int, default=3, help="networks that are trained of each kind (default: 3)")
    parser.add_argument("--images", type=int, default=256, help="that are not trained on (default: 256)")
    parser.add_argument("--no-peers", action="store_true", help="leave the other engines out")
    parser.add_argument("--weights", type=Path, help="folder for the trained networks; those that are there are taken")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for NETWORK.json")
    given = parser.parse_args(argv)
    for name in ("steps", "seeds", "images"):
        if getattr(given, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(given, name)}")
    names = [name for name in CONTENDERS if not (given.no_peers and name in accuracy_table.PEERS)]
    images, labels = pictures(given.images, HELD_OUT_SEED)
    options = {
        "steps": given.steps,
        "seeds": given.seeds,
        "batch": BATCH,
        "size": SIZE,
        "images": given.images,
        "calibration_images": CALIBRATION_IMAGES,
    }
    measured = []
    given.results.mkdir(parents=True, exist_ok=True)
    for network in given.networks:
        one = {"machine": machine.describe(), "network": network, "options": options, "runs": []}
        measured.append(one)
        for seed in range(given.seeds):
            plain, loss = trained(network, seed, given.steps, given.weights)
            print(f"{network}, seed {seed}: trained, loss {loss:.3f}", file=sys.stderr)
            found = rows(plain, pictures(CALIBRATION_IMAGES, seed)[0], images, labels, names)
            one["runs"].append({"seed": seed, "loss": loss, "rows": found})
            (given.results / f"{network}.json").write_text(json.dumps(one, indent=1) + "\n")
    print(
        accuracy_table.table(measured).text(),
        *(note for one in measured for note in accuracy_table.notes(one)),
        sep="\n",
    )
    every = [row for one in measured for run in one["runs"] for row in run["rows"]]
    return int(any(row["failure"] for row in every if row["name"] not in accuracy_table.PEERS))


if __name__ == "__main__":
    sys.exit(main())
