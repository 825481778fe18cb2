"""Segments a folder of pictures with Ray Data, on this machine or on a cluster.

    python examples/batch_ray.py PICTURES --out CLASSES --checkpoint weights.pth --workers 2

Ray reads, decodes and writes in parallel with the networks; each worker holds one. Pictures are put into batches with
others of the same size. Needs `pip install 'hrnet_fast[ray]'`. On a cluster run it with `--address auto`; PICTURES and
CLASSES must then be on a file system that all machines see.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import hrnet_fast as hf
from hrnet_fast.checkpoints.header import MEAN, STD

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def decode(row: dict) -> dict:
    """The bytes of a file as pixels [H, W, 3] uint8; "error" says what was wrong with a file that is no picture."""
    import io

    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(row["bytes"])) as file:
            picture = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    except Exception as error:  # the many ways in which a file is no picture
        return {"path": row["path"], "error": str(error).splitlines()[0], "pixels": b"", "height": 0, "width": 0}
    height, width = picture.shape[:2]
    return {"path": row["path"], "error": "", "pixels": picture.tobytes(), "height": height, "width": width}


class Segment:
    """A worker: a network, and what it makes of a batch of pictures."""

    def __init__(self, model: str, num_classes: int, checkpoint: str | None, out: str, root: str, threads: int):
        torch.set_num_threads(threads)
        torch.manual_seed(0)  # without a checkpoint all workers have the same random weights
        network = hf.create_model(model, num_classes=num_classes, checkpoint=checkpoint).eval()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.out, self.root = Path(out), Path(root)

    def __call__(self, batch: dict) -> dict:
        """Writes a PNG of class indices for every picture; returns where, and the error of those that have none."""
        rows = range(len(batch["path"]))
        written, errors = [""] * len(rows), [str(error) for error in batch["error"]]
        same_size: dict[tuple[int, int], list[int]] = {}
        for k in rows:
            if not errors[k]:
                same_size.setdefault((int(batch["height"][k]), int(batch["width"][k])), []).append(k)
        for size, members in same_size.items():
            pictures = [np.frombuffer(batch["pixels"][k], np.uint8).reshape(*size, 3) for k in members]
            for k, classes in zip(members, self.classes(np.stack(pictures)), strict=True):
                written[k] = self.write(classes, str(batch["path"][k]))
        return {"path": np.array(batch["path"]), "written": np.array(written), "error": np.array(errors)}

    def classes(self, pixels: np.ndarray) -> np.ndarray:  # [N, H, W, 3] uint8 -> [N, H, W] uint8
        """The most likely class of every pixel."""
        with torch.inference_mode():
            image = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float().div(255)
            mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (MEAN, STD))
            return self.network((image - mean) / std).argmax(1).to(torch.uint8).cpu().numpy()

    def write(self, classes: np.ndarray, path: str) -> str:
        """Under the picture's name with .png behind it; whole or not at all."""
        from PIL import Image

        target = self.out / Path(os.path.relpath(path, self.root)).with_name(Path(path).name + ".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(suffix=".part", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                Image.fromarray(classes).save(file, "PNG")
            os.replace(part, target)
        except BaseException:
            os.unlink(part)
            raise
        return str(target)


def main(argv: list[str] | None = None) -> int:
    """0: every picture has its classes; 1: some files were no pictures; 2: nothing could be done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="a folder, searched with its subfolders")
    parser.add_argument("--out", type=Path, required=True, help="folder for PNGs of class indices")
    parser.add_argument("--model", default="hrnet_w48")
    parser.add_argument("--num-classes", type=int, default=19, help="up to 256 (default: 19)")
    parser.add_argument("--checkpoint", default=None, help="default: random weights")
    parser.add_argument("--workers", type=int, default=1, help="networks that run at once (default: 1)")
    parser.add_argument("--batch", type=int, default=4, help="pictures that a worker gets at once (default: 4)")
    parser.add_argument("--address", default="local", help="of a Ray cluster (default: a new one on this machine)")
    arguments = parser.parse_args(argv)
    reason = why_not(arguments)
    if reason is not None:
        print(f"batch_ray.py: {reason}", file=sys.stderr)
        return 2
    if arguments.checkpoint is None:
        print("random weights: pass --checkpoint FILE for trained ones")
    failed = segment(arguments)
    for path, error in failed:
        print(f"skipped {path}: {error}", file=sys.stderr)
    return 1 if failed else 0


def why_not(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the arguments, or with this Python."""
    if not arguments.pictures.is_dir():
        return f"pictures: there is no folder {arguments.pictures}"
    if not find(arguments.pictures):
        return f"pictures: no file in {arguments.pictures} ends in one of {', '.join(sorted(SUFFIXES))}"
    if arguments.checkpoint is not None and not Path(arguments.checkpoint).is_file():
        return f"checkpoint: there is no file {arguments.checkpoint}"
    if arguments.workers < 1 or arguments.batch < 1:
        return "workers, batch: expected at least 1"
    if not 1 <= arguments.num_classes <= 256:
        return f"num-classes: a PNG of bytes holds 1 to 256 classes, got {arguments.num_classes}"
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        return f"Ray Data cannot be imported ({error}): pip install 'hrnet_fast[ray]'"
    return None


def find(folder: Path) -> list[str]:
    """The pictures of a folder and its subfolders."""
    return sorted(str(path.resolve()) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def segment(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Runs the workers; the files that have no result, and why."""
    import ray

    ray.init(address=arguments.address, log_to_driver=False)
    try:
        cores = int(ray.cluster_resources().get("CPU", 1))
        threads = max(1, cores // arguments.workers)
        gpus = ray.cluster_resources().get("GPU", 0)
        checkpoint = None if arguments.checkpoint is None else str(Path(arguments.checkpoint).resolve())
        root, out = arguments.pictures.resolve(), arguments.out.resolve()
        found = (
            ray.data.read_binary_files(find(root), include_paths=True)
            .map(decode, num_cpus=0.25)
            .map_batches(
                Segment,
                fn_constructor_args=(
                    arguments.model,
                    arguments.num_classes,
                    checkpoint,
                    str(out),
                    str(root),
                    threads,
                ),
                batch_size=arguments.batch,
                compute=ray.data.ActorPoolStrategy(size=arguments.workers),
                # the rest of the cores decodes
                num_cpus=0.5,
                num_gpus=min(1.0, gpus / arguments.workers) or None,
            )
            .take_all()
        )
    finally:
        ray.shutdown()
    done = sum(bool(row["written"]) for row in found)
    print(f"{done} of {len(found)} pictures written to {arguments.out}")
    return [(str(row["path"]), str(row["error"])) for row in found if row["error"]]


if __name__ == "__main__":
    sys.exit(main())
