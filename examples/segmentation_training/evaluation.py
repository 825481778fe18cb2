"""Mean intersection over union: whole images or sliding windows, one scale or several, with or without flips."""

import torch

from hrnet_fast.apps.evaluation.miou import confusion, mean_iou
from hrnet_fast.apps.inference import probabilities
from hrnet_fast.apps.pictures.reading import normalize

__all__ = ["confusion", "evaluate", "mean_iou", "probabilities"]


def evaluate(model, source, device, window, classes, scales=(1.0,), flip=False, rank=0, ranks=1, tick=lambda: None):
    """The confusion matrix of every ``ranks``-th image from ``rank`` on; the model is left in the mode it was in."""
    training, matrix = model.training, torch.zeros(classes, classes, dtype=torch.int64, device=device)
    model.eval()
    for index in range(rank, len(source), ranks):
        image, mask = source.load(index)
        image = normalize(image)[None].to(device, memory_format=torch.channels_last)
        prediction = probabilities(model, image, window, scales, flip).argmax(1)[0]
        matrix += confusion(prediction, mask.to(device), classes)
        tick()
    model.train(training)
    return matrix
