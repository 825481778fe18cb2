"""Other inference engines in their best form, one module each.

A module has ``unsupported_reason(dtype)``, which says why it cannot run here (None: it can), and ``prepare(problem)``,
which returns a callable that computes the problem's network on its image, as a tensor [N, ...]. What a peer needs
beyond PyTorch is imported by these functions only. benchmarks/contenders.py lists them.
"""
