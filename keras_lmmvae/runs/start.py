"""TensorFlow starts without its log lines in the terminal."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_descriptor", "start_tensorflow"]

_STANDARD_ERROR = 2


def start_tensorflow() -> None:
    """Imports TensorFlow and the model, and finds the devices; nothing is logged meanwhile.

    TensorFlow's libraries write lines about processors and drivers before they read any setting,
    and a line about the graphics card with the first operation. Later they log errors only, unless
    the environment variable TF_CPP_MIN_LOG_LEVEL says otherwise. Python's warnings and errors are
    shown as ever.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with quiet_descriptor():
        import tensorflow as tf

        from keras_lmmvae import LMMVAE  # noqa: F401

        tf.config.list_logical_devices()


@contextmanager
def quiet_descriptor() -> Iterator[None]:
    """Keeps what libraries write to standard error to itself, and shows it if the block fails.

    The libraries do not know of `sys.stderr`, so the descriptor below it is redirected to a file.
    """
    try:
        kept = os.dup(_STANDARD_ERROR)
    except OSError:  # The process has no standard error.
        yield
        return
    with tempfile.TemporaryFile() as lines:
        os.dup2(lines.fileno(), _STANDARD_ERROR)
        try:
            yield
        except Exception:
            lines.seek(0)
            os.write(kept, lines.read())
            raise
        finally:
            os.dup2(kept, _STANDARD_ERROR)
            os.close(kept)
