"""The parts of ``examples/train_segmentation.py``: data, loss, evaluation and what is kept on disk."""
