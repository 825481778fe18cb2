"""Measuring: correctness first, then contenders that take turns; what they were measured on; tables and plots.

``hrnet-fast bench`` and the suite in ``benchmarks/`` are both made of these parts.
"""


class BadInput(ValueError):
    """What a user asked for cannot be done. The message is one line that says what was wrong and what would do."""
