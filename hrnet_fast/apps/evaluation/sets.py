"""Images and masks to measure networks on: Cityscapes' layout, Pascal VOC's, two plain folders, or generated shapes."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hrnet_fast.apps.pictures import need_pillow
from hrnet_fast.apps.pictures.reading import to_tensor

IGNORE = 255
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
# Cityscapes' label ids of the 19 classes that count, in the order of their train ids (cityscapesScripts, labels.py)
CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


class Folder:
    """Pairs of image and mask files of one split, found by the layout of the folder.

    - Cityscapes: ``leftImg8bit/<split>/<city>/*_leftImg8bit.png`` and ``gtFine/...``, labelTrainIds or labelIds
    - VOC: ``ImageSets/Segmentation/<split>.txt``, ``JPEGImages/*.jpg`` and ``SegmentationClass/*.png``
    - plain: ``images/<split>/*`` and ``masks/<split>/<the same stem>.png``

    Raises:
        ValueError: the folder has none of the layouts, no image of the split, or an image without a mask.
        ImportError: Pillow is missing.
    """

    def __init__(self, root: str | Path, split: str, num_classes: int):
        need_pillow()
        self.root, self.num_classes = Path(root), num_classes
        self.pairs = self._find(split)
        if not self.pairs:
            raise ValueError(
                f"{root}: no images of the split {split!r}: expected leftImg8bit/{split}/*/*, "
                f"ImageSets/Segmentation/{split}.txt or images/{split}/*"
            )
        missing = [str(mask) for _, mask in self.pairs if not mask.is_file()]
        if missing:
            raise ValueError(f"{root}: {len(missing)} of {len(self.pairs)} masks are missing, the first: {missing[0]}")

    def _find(self, split: str) -> list[tuple[Path, Path]]:
        if (self.root / "leftImg8bit").is_dir():
            found = sorted((self.root / "leftImg8bit" / split).glob("*/*_leftImg8bit.*"))
            return [(path, self._cityscapes_mask(path, split)) for path in found]
        names = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if names.is_file():
            stems = names.read_text().split()
            images, masks = self.root / "JPEGImages", self.root / "SegmentationClass"
            return [(images / f"{stem}.jpg", masks / f"{stem}.png") for stem in stems]
        images, masks = self.root / "images" / split, self.root / "masks" / split
        found = sorted(p for p in images.glob("*") if p.suffix.lower() in PICTURES)
        return [(path, masks / f"{path.stem}.png") for path in found]

    def _cityscapes_mask(self, path: Path, split: str) -> Path:
        stem = path.name.split("_leftImg8bit")[0]
        folder = self.root / "gtFine" / split / path.parent.name
        converted = folder / f"{stem}_gtFine_labelTrainIds.png"
        return converted if converted.is_file() else folder / f"{stem}_gtFine_labelIds.png"

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return str(self.pairs[index][0])

    def check(self) -> None:
        """Looks at the head of every file, which costs little, before much time is spent.

        Raises:
            ValueError: an image and its mask have different sizes, or one cannot be read.
        """
        from PIL import Image

        for paths in self.pairs:
            sizes = []
            for path in paths:
                try:
                    with Image.open(path) as picture:
                        sizes.append(picture.size)
                except OSError as error:
                    raise ValueError(f"{path}: cannot be read ({error})") from None
            if sizes[0] != sizes[1]:
                (width, height), (mask_width, mask_height) = sizes
                raise ValueError(f"{paths[1]}: {mask_height}x{mask_width} pixels, but its image has {height}x{width}")

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Image [3, H, W] and mask [H, W], both uint8; a mask's label that is no class raises a ValueError."""
        from PIL import Image

        path, mask_path = self.pairs[index]
        with Image.open(path) as picture:
            image = to_tensor(picture.convert("RGB")).contiguous()
        with Image.open(mask_path) as picture:
            if picture.mode not in ("L", "P", "1"):
                raise ValueError(f"{mask_path}: expected a mask of class indices (grey or palette), got {picture.mode}")
            grey = picture if picture.mode != "1" else picture.convert("L")
            mask = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(grey.height, grey.width)
        if image.shape[1:] != mask.shape:
            raise ValueError(f"{mask_path}: {list(mask.shape)} pixels, but its image has {list(image.shape[1:])}")
        if mask_path.name.endswith("_labelIds.png"):
            table = torch.full((256,), IGNORE, dtype=torch.uint8)
            table[list(CITYSCAPES)] = torch.arange(len(CITYSCAPES), dtype=torch.uint8)
            mask = table[mask.long()]
        labels = mask.unique()
        wrong = labels[(labels >= self.num_classes) & (labels != IGNORE)].tolist()
        if wrong:
            raise ValueError(
                f"{mask_path}: labels {wrong}: expected 0 to {self.num_classes - 1}, or {IGNORE} to ignore"
            )
        return image, mask


class Shapes:
    """A generated set: discs, rectangles and triangles on a textured ground, each pair made from seed and index."""

    CLASSES = 4

    def __init__(self, count: int, size: tuple[int, int], seed: int):
        self.count, self.size, self.seed = count, size, seed

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"shape {index} of seed {self.seed}"

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        height, width = self.size
        y = torch.arange(height).unsqueeze(1).float()
        x = torch.arange(width).unsqueeze(0).float()
        ground = F.interpolate(torch.rand(1, 3, 5, 5, generator=g), self.size, mode="bilinear")[0]
        image, mask = ground * 0.6, torch.zeros(height, width, dtype=torch.uint8)
        for _ in range(6):
            kind = int(torch.randint(1, self.CLASSES, (), generator=g))
            v, u, r = torch.rand(3, generator=g).tolist()
            radius = (0.08 + 0.14 * r) * min(height, width)
            dy, dx = y - v * height, x - u * width
            inside = {
                1: dy**2 + dx**2 < radius**2,
                2: (dy.abs() < radius) & (dx.abs() < 0.7 * radius),
                3: (dy < 0.6 * radius) & (dy > -radius) & (dx.abs() < (dy + radius) * 0.6),
            }[kind]
            colour = torch.rand(3, 1, 1, generator=g)
            image = torch.where(inside, 0.3 + 0.7 * colour, image)
            mask[inside] = kind
        image = image + 0.05 * torch.randn(image.shape, generator=g)
        return (image.clamp(0, 1) * 255).to(torch.uint8), mask
