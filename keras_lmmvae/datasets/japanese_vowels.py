"""Two Japanese vowels spoken by nine men: short time series with the speaker as label."""

from pathlib import Path

import numpy as np
import pandas as pd

from keras_lmmvae.datasets.sources import package_file
from keras_lmmvae.validation import received

__all__ = ["JAPANESE_VOWELS_FEATURES", "load_japanese_vowels"]

JAPANESE_VOWELS_FEATURES = tuple(f"cepstrum_{order:02d}" for order in range(1, 13))
PARTS = ("train", "test")


def load_japanese_vowels() -> pd.DataFrame:
    """Loads 9,961 frames of 640 utterances of /ae/ by nine male speakers.

    There is one row per frame, in the order of time. The columns are

    | column | meaning |
    |---|---|
    | cepstrum_01 ... cepstrum_12 | 12 cepstral coefficients of linear prediction |
    | utterance | int, 640 levels of median size 15, from 7 to 29 frames |
    | t | int, number of the frame in its utterance: 0, 1, ... |
    | speaker | int, 1 to 9, the label; an utterance has one speaker |
    | part | "train" (270 utterances, 30 of each speaker) or "test" (370), as published |

    A frame is 25.6 ms long, and the next one starts 6.4 ms later. No value is missing and nothing
    is standardised. The data are read from the package aeon, which is not imported. Install it
    without its dependencies: they are not needed and may replace installed versions.

    Returns:
        frames: DataFrame with 9,961 rows. Features are float64.

    Raises:
        ImportError: If the package aeon is not installed.

    Example:
        >>> frames = load_japanese_vowels()
        >>> frames[[*JAPANESE_VOWELS_FEATURES]].shape
        (9961, 12)

    References:
        - M. Kudo, J. Toyama & M. Shimbo (1999), Multidimensional curve classification using
          passing-through regions, Pattern Recognition Letters 20, 1103-1111; UCI Machine Learning
          Repository, licence CC BY 4.0, in the package aeon (licence BSD-3).
    """
    install = "pip install --no-deps aeon"
    files = [
        package_file("aeon", f"datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts", install)
        for part in ("TRAIN", "TEST")
    ]
    return _read_japanese_vowels(*files)


def _read_japanese_vowels(train_path: Path, test_path: Path) -> pd.DataFrame:
    """Makes a row of every frame. The numbers of the utterances continue from train to test."""
    frames, first = [], 0
    for part, path in zip(PARTS, (train_path, test_path), strict=True):
        lines = _utterances(path)
        frames += [_frames(line, first + i, part) for i, line in enumerate(lines)]
        first += len(lines)
    return pd.concat(frames, ignore_index=True)


def _utterances(path: Path) -> list[str]:
    """The lines after "@data": twelve series "1.2,0.7,..." and the speaker, joined by colons."""
    _, mark, body = path.read_text(encoding="utf-8").partition("@data")
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    if not mark or not lines:
        raise ValueError(f"{path.name} has no utterances after '@data'. " + received(lines=0))
    return lines


def _frames(line: str, utterance: int, part: str) -> pd.DataFrame:
    *series, speaker = line.split(":")
    lengths = [one.count(",") + 1 for one in series]
    if len(series) != len(JAPANESE_VOWELS_FEATURES) or len(set(lengths)) > 1:
        raise ValueError(
            f"Utterance {utterance} must have {len(JAPANESE_VOWELS_FEATURES)} series of the same "
            "length. " + received(lengths=lengths)
        )
    values = np.array([one.split(",") for one in series], dtype=np.float64)
    frames = pd.DataFrame(values.T, columns=list(JAPANESE_VOWELS_FEATURES))
    return frames.assign(
        utterance=utterance, t=np.arange(len(frames)), speaker=int(speaker), part=part
    )
