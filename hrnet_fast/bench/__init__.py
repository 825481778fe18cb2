"""Measuring: correctness first, then contenders that take turns; what they were measured on; tables and plots.

``hrnet-fast bench`` ships these parts; the suite in ``benchmarks/`` adds cases, contenders and pages to them.
"""


class BadInput(ValueError):
    """What a user asked for cannot be done. The message is one line that says what was wrong and what would do."""
