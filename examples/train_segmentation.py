"""Train HRNetV2 for semantic segmentation: ``python examples/train_segmentation.py --synthetic --out run``.

On real data: ``--data FOLDER --num-classes 19`` (Cityscapes' layout, Pascal VOC's, or images/ and masks/). On several
processes: ``torchrun --nproc-per-node 4 examples/train_segmentation.py ...`` (NCCL on GPUs, gloo on CPUs). The recipe
is HRNet-Semantic-Segmentation's for Cityscapes: SGD with poly decay, cross-entropy or OHEM, scales, crops and flips. A
run that was killed goes on with ``--resume``, at the same loss.
"""

import argparse
import contextlib
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress
from segmentation_training import checkpointing, data, evaluation, loss, state
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import hrnet_fast as hf

AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# What a resumed run may have changed; everything else must be what it was.
FREE = {"out", "resume", "workers", "save_every", "eval_every", "scales", "flip", "data", "plain", "checkpoint"}


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder with the splits train and val")
    source.add_argument("--synthetic", action="store_true", help="generated shapes of 4 classes")
    parser.add_argument("--model", default="hrnet_w18_small_v1", help=", ".join(hf.list_models()))
    parser.add_argument("--num-classes", type=int, default=19)
    parser.add_argument("--pretrained", help="weights to start from, in any layout that load_checkpoint reads")
    parser.add_argument("--crop", type=size, default=(512, 1024), metavar="HxW")
    parser.add_argument("--batch", type=int, default=4, help="images of one process")
    parser.add_argument("--steps", type=int, default=120_000)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--loss", choices=("cross_entropy", "ohem"), default="cross_entropy")
    parser.add_argument("--amp", choices=AMP, default="none")
    parser.add_argument("--checkpoint", action="store_true", help="gradient checkpointing: less memory, more time")
    parser.add_argument("--plain", action="store_true", help="the plain PyTorch form of the network, to compare with")
    parser.add_argument("--sync-bn", choices=("auto", "on", "off"), default="auto", help="auto: on GPUs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("run"), help="folder of last.pt and log.csv")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/last.pt")
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--eval-every", type=int, default=0, help="steps; 0: at the end only")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="of the evaluation")
    parser.add_argument("--flip", action="store_true", help="evaluate mirrored images too")
    args = parser.parse_args(argv)
    if args.synthetic:
        args.num_classes = data.Shapes.CLASSES
    return args


def size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected HxW, such as 512x1024, got {text!r}") from None
    if height < 64 or width < 64:
        raise argparse.ArgumentTypeError(f"a crop needs 64 pixels a side, got {text!r}")
    return height, width


class Run:
    """One process of a training run."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.rank, self.ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if gpu else torch.device("cpu")
        if gpu:
            torch.cuda.set_device(self.device)
        if self.ranks > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if gpu else "gloo")
        self.train_set, self.val_set = sources(args)
        self.configuration = {k: _plain(v) for k, v in vars(args).items() if k not in FREE} | {"ranks": self.ranks}
        self.model = self._model(gpu)
        parameters = self.model.parameters()
        self.optimizer = torch.optim.SGD(parameters, args.lr, momentum=0.9, weight_decay=args.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.amp == "fp16")
        self.step = self._resume() if args.resume else 0
        self.network: nn.Module = self.model
        if self.ranks > 1:
            self.network = DistributedDataParallel(self.model, device_ids=[self.device] if gpu else None)

    def _model(self, gpu: bool) -> nn.Module:
        args = self.args
        torch.manual_seed(args.seed)  # the same initial weights on every rank
        model = hf.create_model(
            args.model,
            task="segmentation",
            num_classes=args.num_classes,
            fast=not args.plain,
            checkpoint=args.pretrained,
        )
        if self.ranks > 1 and (args.sync_bn == "on" or (args.sync_bn == "auto" and gpu)):
            if not gpu:
                raise ValueError("--sync-bn on: torch's SyncBatchNorm runs on GPUs only")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model = model.to(self.device, memory_format=torch.channels_last).train()
        return checkpointing.enable(model) if args.checkpoint else model

    def _resume(self) -> int:
        found = state.load(self.args.out / "last.pt", self.configuration)
        self.model.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.scaler.load_state_dict(found["scaler"])
        return found["step"]

    def save(self) -> None:
        if self.rank == 0:
            state.save(
                self.args.out / "last.pt",
                {
                    "configuration": self.configuration,
                    "step": self.step,
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                },
            )

    def train(self, console: Console) -> float:
        """All steps that are left; the mIoU at the end."""
        args, miou = self.args, math.nan
        args.out.mkdir(parents=True, exist_ok=True)
        log = state.Log(args.out / "log.csv", self.step) if self.rank == 0 else None
        positions = data.Positions(self.train_set, args.crop, args.seed)
        plan = list(data.batches(self.step, args.steps, args.batch, self.rank, self.ranks))
        loader = DataLoader(
            positions, batch_sampler=plan, num_workers=args.workers, pin_memory=self.device.type == "cuda"
        )
        with Progress(console=console, disable=self.rank > 0) as progress:
            task = progress.add_task("training", total=args.steps, completed=self.step)
            for images, masks, where in loader:
                began = time.perf_counter()
                rate = loss.poly(args.lr, self.step, args.steps)
                value = self._one_step(images, masks, rate)
                if not math.isfinite(value):
                    raise FloatingPointError(self._not_finite(value, where, positions))
                seconds, self.step = time.perf_counter() - began, self.step + 1
                evaluated = self.step == args.steps or (args.eval_every and self.step % args.eval_every == 0)
                miou = self.evaluate() if evaluated else math.nan
                if log is not None:
                    log.write(
                        step=self.step - 1,
                        loss=repr(value),
                        learning_rate=repr(rate),
                        seconds=f"{seconds:.4f}",
                        miou=repr(miou) if evaluated else "",
                    )
                if self.step % args.save_every == 0 or self.step == args.steps:
                    self.save()
                progress.update(task, completed=self.step, description=f"loss {value:.4f}")
        return miou if plan else self.evaluate()

    def _one_step(self, images, masks, rate: float) -> float:
        """The loss, the mean over the ranks; where it is not finite, no weight has been changed."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        masks = masks.to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            logits = self.network(images)
        value = getattr(loss, self.args.loss)(logits, masks)
        mean = value.detach().clone()
        if self.ranks > 1:
            dist.all_reduce(mean)
            mean /= self.ranks
        if math.isfinite(float(mean)):
            self.scaler.scale(value).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return float(mean)

    def _autocast(self):
        dtype = AMP[self.args.amp]
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def _not_finite(self, value: float, where, positions: data.Positions) -> str:
        names = [positions.source.name(positions.index(int(p))) for p in where]
        if self.ranks > 1:
            every = [None] * self.ranks
            dist.all_gather_object(every, names)
            names = [name for part in every for name in part]
        return (
            f"step {self.step}: the loss is {value}; the batch: {', '.join(names)}. {self.args.out / 'last.pt'} is kept"
        )

    def evaluate(self) -> float:
        args = self.args
        with self._autocast():
            matrix = evaluation.evaluate(
                self.model,
                self.val_set,
                self.device,
                args.crop,
                args.num_classes,
                args.scales,
                args.flip,
                self.rank,
                self.ranks,
            )
        if self.ranks > 1:
            dist.all_reduce(matrix)
        return evaluation.mean_iou(matrix)[0]


def sources(args):
    if args.synthetic:
        return data.Shapes(512, args.crop, args.seed), data.Shapes(32, args.crop, args.seed + 1_000)
    return tuple(data.Folder(args.data, split, args.num_classes) for split in ("train", "val"))


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def main(argv=None) -> int:
    args, console = arguments(argv), Console()
    try:
        run = Run(args)
        miou = run.train(console)
    except (ValueError, OSError, FloatingPointError) as error:  # OSError: a full disk, too
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if run.rank == 0:
        console.print(f"mIoU {miou:.4f} after {run.step} steps; {args.out / 'last.pt'}, {args.out / 'log.csv'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
