"""A picture of a dataset: what a microscopist wants to see first."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpistream.model.errors import StorageError
from mpistream.model.virtual_images import Image
from mpistream.storage.reader import Dataset, open_dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "magma"
#: One colour per detector, seen well on the dark and on the bright parts of the pattern.
BRIGHT_FIELD_COLOUR = "#39d0ff"
DARK_FIELD_COLOUR = "#7dff6b"
INK = "#222222"


def save_overview(dataset_path: str | Path, png_path: str | Path) -> Path:
    """1920 x 1080 pixels: bright field, annular dark field, summed diffraction pattern with the detectors' rings.

    Returns the absolute path. Raises StorageError where the dataset, matplotlib or the folder fails.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise StorageError(f"matplotlib cannot be imported: {error}", "install it: pip install matplotlib") from error
    target = Path(png_path).absolute()
    with open_dataset(dataset_path) as dataset:
        figure = Figure(figsize=(19.2, 10.8), dpi=100, facecolor="white")
        FigureCanvasAgg(figure)
        _draw(figure, dataset)
    try:
        figure.savefig(target, format="png")
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}", "check the folder") from error
    return target


def _draw(figure: "Figure", dataset: Dataset) -> None:
    rows, columns = dataset.scan_shape
    images = dataset.images
    figure.text(0.03, 0.945, dataset.path.name, fontsize=26, weight="bold", color=INK, va="center")
    figure.text(0.03, 0.895, _summary(dataset), fontsize=17, color="#555555", va="center")
    panels = figure.subplots(
        1, 3, gridspec_kw={"left": 0.03, "right": 0.985, "bottom": 0.06, "top": 0.81, "wspace": 0.12}
    )
    for panel, name, title in (
        (panels[0], "bright_field", "Virtual bright field"),
        (panels[1], "annular_dark_field", "Virtual annular dark field"),
    ):
        inner, outer = dataset.image_radii(name)
        shown = panel.imshow(images[name], cmap=COLOURS, interpolation="nearest", **_limits(images[name]))
        _finish(panel, shown, f"{title}\n{inner:g} to {outer:g} pixels", "electrons per position")
        panel.set_xlabel(f"scan column (of {columns})", fontsize=14)
        panel.set_ylabel(f"scan row (of {rows})", fontsize=14)
    _draw_pattern(panels[2], dataset, images["diffraction_sum"])


def _summary(dataset: Dataset) -> str:
    rows, columns = dataset.scan_shape
    per_frame = dataset.n_electrons / dataset.n_frames if dataset.n_frames else 0
    parts = [
        f"{rows} x {columns} positions",
        f"{dataset.n_frames:,} frames",
        f"{dataset.n_electrons:,} electrons",
        f"{per_frame:,.1f} electrons per frame",
    ]
    incomplete = int(np.count_nonzero(dataset.missing_sectors))
    if incomplete:
        parts.append(f"{incomplete:,} frames with missing sectors")
    return "   ·   ".join(parts)


def _limits(image: Image) -> dict[str, float]:
    """A range of grey values that a few odd positions do not spoil."""
    low, high = np.percentile(image, (0.5, 99.5))
    return {"vmin": float(low), "vmax": float(max(high, low + 1))}


def _draw_pattern(panel: "Axes", dataset: Dataset, pattern: Image) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Circle

    norm = LogNorm(vmin=1, vmax=max(10, int(pattern.max())))
    # pixels without electrons have no logarithm: they get the lowest colour
    shown = panel.imshow(np.maximum(pattern, 1), cmap=COLOURS, norm=norm, interpolation="antialiased")
    row, column = dataset.center
    for name, colour in (("bright_field", BRIGHT_FIELD_COLOUR), ("annular_dark_field", DARK_FIELD_COLOUR)):
        for radius in dataset.image_radii(name):
            if radius > 0:
                ring = Circle((column, row), radius, fill=False, edgecolor=colour, linewidth=1.8, clip_on=True)
                panel.add_patch(ring)
    handles = [
        Circle((0, 0), 1, fill=False, edgecolor=colour, linewidth=1.8, label=label)
        for colour, label in ((BRIGHT_FIELD_COLOUR, "bright field"), (DARK_FIELD_COLOUR, "annular dark field"))
    ]
    panel.legend(handles=handles, loc="lower right", fontsize=12, facecolor="black", labelcolor="white", framealpha=0.6)
    _finish(panel, shown, "Summed diffraction pattern\nlogarithmic", "electrons per pixel")
    panel.set_xlabel("detector column", fontsize=14)
    panel.set_ylabel("detector row", fontsize=14)


def _finish(panel: "Axes", shown: Any, title: str, label: str) -> None:
    panel.set_title(title, fontsize=17, color=INK, pad=12)
    panel.tick_params(labelsize=12)
    bar = panel.figure.colorbar(shown, ax=panel, orientation="horizontal", pad=0.11, fraction=0.04, aspect=40)
    bar.set_label(label, fontsize=14)
    bar.ax.tick_params(labelsize=12)
