"""What is fitted on the training set once and stored with a run: the mean image and the RGB principal components."""

from dataclasses import dataclass
from pathlib import Path

import mpmath
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..system import durable_files
from ..system.errors import UserError, need

STATISTICS = "statistics.safetensors"
MOST_BYTES = 1 << 30  # a mean image of 6,000 x 6,000 pixels
DIGITS = 50  # of the arithmetic that finds the components


@dataclass(frozen=True)
class Statistics:
    """What the training pictures give: the mean image (paper 2), and the components of colour (4.1)."""

    mean: np.ndarray  # (stored_size, stored_size, 3) float64, grey levels 0..255
    eigenvalues: np.ndarray  # (3,) float64, ascending: variances of RGB along the components, in 0..1 pixel units
    eigenvectors: np.ndarray  # (3, 3) float64, one component a column, length 1, its largest entry positive

    def check(self, side: int) -> None:
        """Raise ValueError, with the field, unless this can be the statistics of pictures of side x side."""
        for field, shape in (("mean", (side, side, 3)), ("eigenvalues", (3,)), ("eigenvectors", (3, 3))):
            values = getattr(self, field)
            need(values.shape == shape, f"its {field} is {values.shape}, and {shape} is needed")
            need(
                values.dtype == np.float64 and np.isfinite(values).all(), f"its {field} has values that are no numbers"
            )
        need((self.eigenvalues >= 0).all(), "a variance is negative")

    def save(self, directory: str | Path) -> None:
        content = save(
            {field: np.ascontiguousarray(getattr(self, field)) for field in ("mean", "eigenvalues", "eigenvectors")}
        )
        durable_files.replace(Path(directory) / STATISTICS, content)

    @staticmethod
    def load(directory: str | Path) -> "Statistics":
        return Statistics.of_file(Path(directory) / STATISTICS)

    @staticmethod
    def of_file(path: str | Path) -> "Statistics":
        """Raises UserError where it can't be read or holds other tensors; their shapes are for `check`."""
        try:
            return Statistics(**load(durable_files.read(path, MOST_BYTES)))
        except (OSError, SafetensorError, TypeError, KeyError) as error:
            raise UserError(f"cannot read {path}: {error}") from None


class Sums:
    """Exact sums over uint8 pictures, to be added up in any order: the mean image and the covariance of all pixels
    follow."""

    def __init__(self, size: int):
        self.count = 0
        self.pixels = np.zeros((size, size, 3), np.int64)
        self.products = np.zeros((3, 3), np.int64)

    def add(self, picture: np.ndarray) -> None:
        """Take in one (size, size, 3) uint8 picture."""
        rgb = picture.reshape(-1, 3).astype(np.float64)  # whole numbers below 2^53, so BLAS adds them without rounding
        self.count += 1
        self.pixels += picture
        self.products += (rgb.T @ rgb).astype(np.int64)

    def merge(self, other: "Sums") -> None:
        self.count += other.count
        self.pixels += other.pixels
        self.products += other.products

    def statistics(self) -> Statistics:
        """Mean image and principal components of all that was added (paper 4.1: the covariance of RGB over the training
        set).

        Bit for bit the same on every machine (with one mpmath): LAPACK's last bits are the processor's, and a prepared
        set's fingerprint holds the components.
        """
        context = mpmath.MPContext()
        context.dps = DIGITS
        pixels = self.count * self.pixels.shape[0] * self.pixels.shape[1]
        sums, products = self.pixels.sum((0, 1)).tolist(), self.products.tolist()
        covariance = context.matrix(3)
        for i, j in np.ndindex(3, 3):
            covariance[i, j] = context.mpf(pixels * products[i][j] - sums[i] * sums[j]) / (255 * pixels) ** 2
        variances, columns = context.eigsy(covariance)  # ascending
        eigenvalues = np.array(variances.tolist(), np.float64).ravel()
        eigenvectors = np.array(columns.tolist(), np.float64)
        largest = np.abs(eigenvectors).argmax(0)
        eigenvectors = eigenvectors * np.sign(eigenvectors[largest, range(3)])
        return Statistics(self.pixels / self.count, eigenvalues.clip(min=0), eigenvectors)
