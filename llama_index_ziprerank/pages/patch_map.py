"""A number and a mark for every patch of a page: what a model looked at, ready to be drawn by `overlay.py`."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class PatchMap:
    """One value for every patch of a page, row by row from the top left. Letters: R rows, C columns of patches."""

    values: npt.NDArray[np.float32]
    """(R, C): how much each patch looks like the query; higher is more."""
    chosen: npt.NDArray[np.bool_]
    """(R, C): the patches that counted, such as those that were not dropped."""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or 0 in self.values.shape or self.values.shape != self.chosen.shape:
            raise ValueError(
                "A patch map needs values and marks of one shape (rows, columns), both at least 1, "
                f"got {self.values.shape} and {self.chosen.shape}."
            )


@dataclass(frozen=True)
class Scale:
    """Which value is drawn cold and which is drawn hot. Pages that are compared share one scale."""

    cold: float
    hot: float

    @classmethod
    def over(cls, maps: Iterable[PatchMap]) -> "Scale":
        """Cold is the third quartile of all patches (most of a page is background), hot the 99.5th percentile.

        Raises:
            ValueError: when there is no map.
        """
        values = [patch_map.values.ravel() for patch_map in maps]
        if not values:
            raise ValueError("A scale needs at least one patch map, got none.")
        cold, hot = np.percentile(np.concatenate(values), [75, 99.5])
        return cls(float(cold), float(hot))

    def heat(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Map values to 0 (cold) … 1 (hot), in any shape; all 0 where cold and hot are one."""
        spread = self.hot - self.cold
        if spread <= 0:
            return np.zeros_like(values, dtype=np.float32)
        return ((values - self.cold) / spread).clip(0, 1).astype(np.float32)
