"""How a checkpoint's network interpolates and what its images are like: said by OpenMMLab's files, else by habit."""

import re
from collections.abc import Mapping

from hrnet_fast.models import official_interpolation


def usual(task: str, source: str) -> dict[str, object]:
    """``upsample`` and ``align_corners`` in the code that files of a family come from."""
    upsample, align_corners = official_interpolation(task)
    # mmseg's backbone has bilinear units with align_corners=False, whatever its head
    if source == "OpenMMLab mmseg":
        upsample, align_corners = "bilinear", False
    return {"upsample": upsample, "align_corners": align_corners}


def read(meta: Mapping, source: str, channels: int) -> tuple[dict[str, object], list[str]]:
    """What the ``meta`` of an OpenMMLab checkpoint says of the training, and what to look at.

    Its configuration is kept as text ("cfg" in mmengine, "config" in mmcv), which is searched, never run.
    """
    text = meta.get("cfg", meta.get("config"))
    text = text if isinstance(text, str) else ""
    dataset = meta.get("dataset_meta")
    names = meta.get("CLASSES", dataset.get("classes") if isinstance(dataset, Mapping) else None)
    settings: dict[str, object] = {}
    notes = []
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        settings["class_names"] = tuple(names)
    if source == "OpenMMLab mmpose" and re.search(r"upsample\s*=\s*dict\([^()]*mode\s*=\s*['\"]bilinear", text):
        settings["upsample"] = "bilinear"
    aligned = set(re.findall(r"\balign_corners\s*=\s*(True|False)", text))
    if source == "OpenMMLab mmseg" and aligned == {"False"}:
        settings["align_corners"] = False
    elif source == "OpenMMLab mmseg" and "True" in aligned:
        notes.append("its configuration says align_corners=True somewhere, while mmseg's HRNet has False inside: such a "
                     "network cannot be built here, and the results will differ")  # fmt: skip
    if re.search(r"\b(bgr_)?to_rgb\s*=\s*False", text):
        notes.append("its configuration leaves images in the order blue, green, red: give the network such images")
    for field in ("mean", "std"):
        listed = re.search(rf"\b{field}\s*=\s*[\[(]([-\d.,\s]+)[\])]", text)
        values = [float(v) for v in listed[1].replace(",", " ").split()] if listed else []
        if len(values) == channels:
            settings[field] = tuple(round(v / 255, 6) for v in values)  # of pixels from 0 to 255
    return settings, notes
