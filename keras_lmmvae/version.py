"""The version of the package, and which saved files it reads."""

from keras_lmmvae.errors import received

__all__ = ["__version__", "check_saved_version"]

__version__ = "0.2.0"


def check_saved_version(saved: str | None) -> None:
    """Raises a ValueError unless a file was saved by a version whose files this one reads.

    These are the versions with the same two first numbers.

    Args:
        saved: The version that stands in the file; `None` for files of 0.1, which has none.

    Example:
        >>> check_saved_version("0.1.3")
        Traceback (most recent call last):
        ValueError: The model was saved by keras_lmmvae 0.1.3, and this is keras_lmmvae 0.2.0, ...
    """
    found = "0.1" if saved is None else str(saved)
    if found.split(".")[:2] != __version__.split(".")[:2]:
        raise ValueError(
            f"The model was saved by keras_lmmvae {found}, and this is keras_lmmvae {__version__}, "
            "whose files are different: load it with the version that saved it, or fit it again. "
            + received(version=saved)
        )
