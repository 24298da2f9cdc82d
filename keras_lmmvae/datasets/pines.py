"""Indian Pines: a hyperspectral image of fields and forest."""

from pathlib import Path

import numpy as np
import pandas as pd

from keras_lmmvae.datasets.sources import package_file
from keras_lmmvae.validation import check_positive, received

__all__ = ["PINES_CROPS", "PINES_FEATURES", "load_pines"]

NUM_BANDS = 200
PINES_FEATURES = tuple(f"band_{band:03d}" for band in range(NUM_BANDS))
PINES_CROPS = (
    "unlabelled",
    "alfalfa",
    "corn, no till",
    "corn, minimum till",
    "corn",
    "grass-pasture",
    "grass-trees",
    "grass-pasture, mowed",
    "hay, windrowed",
    "oats",
    "soybean, no till",
    "soybean, minimum till",
    "soybean, clean till",
    "wheat",
    "woods",
    "buildings-grass-trees-drives",
    "stone-steel towers",
)
CELL_SIZE = 5  # pixels


def load_pines(every: int = 1) -> pd.DataFrame:
    """Loads 21,025 pixels of a hyperspectral image of Indiana farmland in June 1992.

    There is one row per pixel of the 145 x 145 image, in row-major order. The columns are

    | column | meaning |
    |---|---|
    | band_000 ... band_199 | radiance in 200 bands from 0.4 to 2.5 micrometres, scaled, 955-9,604 |
    | row, column | int, position of the pixel from the upper left; a pixel is 20 m wide |
    | cell | int, block of 5 x 5 pixels: 29 * (row // 5) + column // 5; 841 levels of size 25 |
    | crop | int, index in `PINES_CROPS`; 0 in the 10,776 unlabelled pixels |

    Neighbouring bands are nearly equal, so every 10th band has most of the information. Bands of
    water vapour are not among the 200. Neighbouring pixels are nearly equal, too, so hold out
    cells, not single pixels. No value is missing and nothing is standardised.

    The data are read from the package tensorly, which is not imported.

    Args:
        every: Positive int. Only the bands 0, every, 2 * every, ... are returned, with their names.
            Defaults to 1: all 200.

    Returns:
        pixels: DataFrame with 21,025 rows. Bands are float32.

    Raises:
        ImportError: If the package tensorly is not installed.
        ValueError: If `every` is not a positive int.

    Example:
        >>> pixels = load_pines(every=10)
        >>> pixels[[*PINES_FEATURES[::10]]].shape
        (21025, 20)

    References:
        - M. F. Baumgardner, L. L. Biehl & D. A. Landgrebe (2015), 220 Band AVIRIS Hyperspectral
          Image Data Set: June 12, 1992 Indian Pine Test Site 3, doi:10.4231/R7RX991C, licence
          CC BY 3.0; with corrected bands, in the package tensorly (licence BSD-3).
    """
    check_positive("every", every, integer=True, minimum=1)
    image, crops = (
        package_file("tensorly", f"datasets/data/Indian_pines_{name}.npy")
        for name in ("corrected", "gt")
    )
    return _read_pines(image, crops, every)


def _read_pines(image_path: Path, crops_path: Path, every: int) -> pd.DataFrame:
    """Makes a row of every pixel."""
    image, crops = np.load(image_path), np.load(crops_path)
    if image.ndim != 3 or image.shape[2] != NUM_BANDS or image.shape[:2] != crops.shape:
        raise ValueError(
            f"The image must be (height, width, {NUM_BANDS}) and the crops (height, width). "
            + received(image=image, crops=crops)
        )
    bands = image[:, :, ::every].reshape(crops.size, -1).astype(np.float32)
    pixels = pd.DataFrame(bands, columns=list(PINES_FEATURES[::every]))
    row, column = np.indices(crops.shape).reshape(2, -1)
    cells_per_row = -(-crops.shape[1] // CELL_SIZE)
    places = {
        "row": row,
        "column": column,
        "cell": cells_per_row * (row // CELL_SIZE) + column // CELL_SIZE,
        "crop": crops.ravel().astype(np.int64),
    }
    return pd.concat([pixels, pd.DataFrame(places)], axis=1)
