"""The same training, plain and fast: ``python -m benchmarks.training_curves``.

Trains HRNet-W18-Small-v1 on the generated shapes of examples/train_segmentation.py with several seeds in both forms,
and writes the losses and the final mIoUs as curves.json and curves.png.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from hrnet_fast.bench import machine

ROOT = Path(__file__).parent.parent
FORMS = {"plain": ["--plain"], "hrnet_fast": []}
OPTIONS = ("--synthetic --model hrnet_w18_small_v1 --crop 128x128 --batch 4 --lr 0.02 --workers 0 "
           "--sync-bn off --save-every 1000000").split()  # fmt: skip


def train(form: str, seed: int, steps: int) -> dict:
    """Losses of every step, the median seconds of a step, and the mIoU at the end."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, ROOT / "examples" / "train_segmentation.py", *OPTIONS, *FORMS[form]]
        command += ["--seed", str(seed), "--steps", str(steps), "--out", out]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with open(Path(out, "log.csv"), newline="") as file:
            rows = list(csv.DictReader(file))
    return {
        "form": form,
        "seed": seed,
        "losses": [float(row["loss"]) for row in rows],
        "seconds_per_step": statistics.median(float(row["seconds"]) for row in rows),
        "miou": float(rows[-1]["miou"]),
    }


def smooth(values: list[float], window: int = 20) -> list[float]:
    return [statistics.fmean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]


def plot(runs: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for run in runs:
        fast = run["form"] == "hrnet_fast"
        style = {"color": f"C{run['seed']}", "linestyle": "--" if fast else "-", "linewidth": 2.2 if fast else 1.0}
        axis.plot(smooth(run["losses"]), label=f"{run['form']}, seed {run['seed']}: mIoU {run['miou']:.3f}", **style)
    axis.set(xlabel="step", ylabel="cross-entropy, mean of 20 steps", title="HRNet-W18-Small-v1 on generated shapes")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "training")
    args = parser.parse_args(argv)
    runs = [train(form, seed, args.steps) for seed in range(args.seeds) for form in FORMS]
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine.describe(), "options": OPTIONS, "runs": runs}
    (args.out / "curves.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(runs, args.out / "curves.png")
    for run in runs:
        last = statistics.fmean(run["losses"][-20:])
        print(f"{run['form']:>10}, seed {run['seed']}: loss {last:.4f} (mean of the last 20), mIoU {run['miou']:.4f}, "
              f"{run['seconds_per_step'] * 1e3:.1f} ms a step")  # fmt: skip


if __name__ == "__main__":
    main()
