"""A picture of a dataset: what a microscopist wants to see first."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpistream.model.errors import StorageError
from mpistream.model.virtual_images import Image
from mpistream.storage.reader import Dataset
from mpistream.storage.series_reader import whole_scan
from mpistream.storage.small_files import check_targets, save_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "magma"
#: One colour per detector, seen well on the dark and on the bright parts of the pattern.
BRIGHT_FIELD_COLOUR = "#39d0ff"
DARK_FIELD_COLOUR = "#7dff6b"
INK = "#222222"
FAINT_INK = "#5a5a5a"

#: Place of the three square panels, in fractions of the 16:9 figure.
LEFT, BOTTOM, WIDTH, STEP = 0.045, 0.205, 0.285, 0.3275
HEIGHT = WIDTH * 16 / 9


def save_overview(dataset_path: str | Path, png_path: str | Path, time_index: int | None = None) -> Path:
    """1920 x 1080 pixels: bright field, annular dark field, summed diffraction pattern with the detectors' rings.

    Of a series, those of the scan ``time_index``.
    A picture that is there is replaced. Returns the absolute path. Raises StorageError where the dataset, matplotlib or
    the folder fails, and for an output that does not end in .png.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise StorageError(f"matplotlib cannot be imported: {error}", "install it: pip install matplotlib") from error
    target = Path(png_path).absolute()
    if target.suffix.lower() != ".png":
        raise StorageError(f"{target} is no name of a PNG file", "give an output that ends in .png")
    check_targets([target], overwrite=True, inputs=[Path(dataset_path)])
    with whole_scan(dataset_path, time_index) as dataset:
        figure = Figure(figsize=(19.2, 10.8), dpi=100, facecolor="white")
        FigureCanvasAgg(figure)
        _draw(figure, dataset)
    save_files({target: lambda file: figure.savefig(file, format="png")}, overwrite=True)
    return target


def _draw(figure: "Figure", dataset: Dataset) -> None:
    rows, columns = dataset.scan_shape
    images = dataset.images
    figure.text(LEFT, 0.935, dataset.path.name, fontsize=26, weight="bold", color=INK, va="center")
    figure.text(LEFT, 0.888, _summary(dataset), fontsize=17, color=FAINT_INK, va="center")
    for place, name, title in (
        (0, "bright_field", "Virtual bright field"),
        (1, "annular_dark_field", "Virtual annular dark field"),
    ):
        inner, outer = dataset.image_radii(name)
        panel = _panel(figure, place, title, f"{inner:g} to {outer:g} detector pixels from the beam")
        low, high = _limits(images[name])
        shown = panel.imshow(images[name], cmap=COLOURS, interpolation="nearest", vmin=low, vmax=high)
        _label(panel, f"scan column (of {columns})", f"scan row (of {rows})")
        _bar(figure, place, shown, "electrons per position")
    _draw_pattern(figure, 2, dataset, images["diffraction_sum"])


def _panel(figure: "Figure", place: int, title: str, subtitle: str) -> "Axes":
    panel = figure.add_axes((LEFT + place * STEP, BOTTOM, WIDTH, HEIGHT))
    middle = LEFT + place * STEP + WIDTH / 2
    figure.text(middle, BOTTOM + HEIGHT + 0.055, title, fontsize=19, color=INK, ha="center", va="center")
    figure.text(middle, BOTTOM + HEIGHT + 0.022, subtitle, fontsize=14, color=FAINT_INK, ha="center", va="center")
    return panel


def _label(panel: "Axes", horizontal: str, vertical: str) -> None:
    panel.set_xlabel(horizontal, fontsize=14)
    panel.set_ylabel(vertical, fontsize=14)
    panel.tick_params(labelsize=12)


def _bar(figure: "Figure", place: int, shown: Any, label: str) -> None:
    bar = figure.colorbar(
        shown, cax=figure.add_axes((LEFT + place * STEP, BOTTOM - 0.105, WIDTH, 0.016)), orientation="horizontal"
    )
    bar.set_label(label, fontsize=14)
    bar.ax.tick_params(labelsize=12)


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


def _limits(image: Image) -> tuple[float, float]:
    """A range of grey values that a few odd positions do not spoil."""
    low, high = np.percentile(image, (0.5, 99.5))
    return float(low), float(max(high, low + 1))


def _draw_pattern(figure: "Figure", place: int, dataset: Dataset, pattern: Image) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Circle

    panel = _panel(figure, place, "Summed diffraction pattern", "all frames, logarithmic, with the virtual detectors")
    norm = LogNorm(vmin=1, vmax=max(10, int(pattern.max())))
    # pixels without electrons have no logarithm: they get the lowest colour
    shown = panel.imshow(np.maximum(pattern, 1), cmap=COLOURS, norm=norm, interpolation="antialiased")
    # rings may reach beyond the frame and must not widen the view
    panel.autoscale(False)
    row, column = dataset.center
    for name, label, colour in (
        ("bright_field", "bright field", BRIGHT_FIELD_COLOUR),
        ("annular_dark_field", "annular dark field", DARK_FIELD_COLOUR),
    ):
        panel.plot([], [], color=colour, linewidth=2, label=label)
        for radius in dataset.image_radii(name):
            if radius > 0:
                panel.add_patch(Circle((column, row), radius, fill=False, edgecolor=colour, linewidth=1.8))
    panel.legend(loc="lower right", fontsize=12, facecolor="black", labelcolor="white", framealpha=0.6)
    _label(panel, "detector column", "detector row")
    _bar(figure, place, shown, "electrons per pixel")
