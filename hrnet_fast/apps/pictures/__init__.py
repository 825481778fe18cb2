"""People's own pictures: finding, reading and writing them, drawing on them.

What ``hrnet-fast segment`` and ``hrnet-fast pose`` are made of. Pillow is needed, the extra ``pictures``.
"""


class BadPicture(ValueError):
    """A picture that cannot be used. The message says why in one line, without the picture's name."""


def need_pillow() -> None:
    """Raises an ImportError that says what to do where Pillow is missing."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise ImportError(
            "pictures are read with Pillow, which is not installed: pip install 'hrnet_fast[pictures]'"
        ) from None
