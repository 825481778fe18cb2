"""Asks an HRNet on NVIDIA Triton Inference Server for the classes of a picture; see README.md beside this file."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(path: Path, size: tuple[int, int] | None, mean: list[float], std: list[float]) -> np.ndarray:
    """A picture as the network takes it: [1, 3, H, W], float32, normalised."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    if size is not None:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    normalised = (np.asarray(picture, np.float32) / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])


def classes(logits: np.ndarray) -> np.ndarray:
    """Logits [1, classes, H, W] as the index of the most likely class, [H, W] uint8 (uint16 above 256 classes)."""
    return logits[0].argmax(0).astype(np.uint8 if logits.shape[1] <= 256 else np.uint16)


def ask(client, grpc, model: str, picture: Path, size: tuple[int, int] | None) -> np.ndarray:
    """The server's last output for a picture: the logits (an auxiliary head's come before them)."""
    config = client.get_model_config(model).config
    normalisation = [json.loads(config.parameters[key].string_value) for key in ("mean", "std")]
    image = pixels(picture, size, *normalisation)
    tensor = grpc.InferInput(config.input[0].name, list(image.shape), "FP32")
    tensor.set_data_from_numpy(image)
    name = config.output[-1].name
    return client.infer(model, [tensor], outputs=[grpc.InferRequestedOutput(name)]).as_numpy(name)


def main(argv: list[str] | None = None) -> int:
    """Writes the classes of one picture; 2 where the server or the picture is not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--model", default="hrnet_w48-segmentation", help="default: hrnet_w48-segmentation")
    parser.add_argument("--server", default="localhost:8001", help="address of its gRPC port (default: localhost:8001)")
    parser.add_argument("--size", default=None, metavar="HxW", help="resize the picture (default: its own size)")
    parser.add_argument("--out", type=Path, default=Path("classes.png"), help="default: classes.png")
    arguments = parser.parse_args(argv)
    try:
        import tritonclient.grpc as grpc

        size = None if arguments.size is None else tuple(int(side) for side in arguments.size.split("x"))
        client = grpc.InferenceServerClient(arguments.server)
        found = classes(ask(client, grpc, arguments.model, arguments.picture, size))
        Image.fromarray(found).save(arguments.out)
    except ImportError as error:
        print(f"client.py: {error}: pip install 'tritonclient[grpc]'", file=sys.stderr)
        return 2
    except Exception as error:  # of the server, the network, the picture: one line is what a user can use
        print(f"client.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.out}: {found.shape[0]}x{found.shape[1]}, classes {sorted(set(found.flat))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
