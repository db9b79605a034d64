"""The figures of ``mpistream bench quality`` as tables and as a picture."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpistream.benchmarks.known_frames import DEFAULT_SIGMAS
from mpistream.benchmarks.quality import DENSITIES, PROGRAMS, REFERENCES
from mpistream.benchmarks.tables import table
from mpistream.model.errors import StorageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Names in the figures -> short titles, colours that colour-blind people tell apart (Okabe and Ito), marks.
_SHARES = {
    "precision": ("precision", "#0072B2", "o"),
    "recall": ("recall", "#D55E00", "s"),
    "double_counting": ("double counts", "#009E73", "^"),
}
_FORMATS = (".png", ".svg", ".pdf")
_TITLES = {"none": "no reference", "dark": "dark reference"}
_IN_HEAD = {"none": "", "dark": ", dark"}
_FAINT_INK = "#5a5a5a"


def report(result: dict[str, Any]) -> str:
    """What ``quality.measure`` returned, as Markdown."""
    return "\n\n".join([*(_sweep(result, density) for density in DENSITIES), _centroids(result)])


def check_plot_path(path: Path) -> None:
    """Before anything is measured. Raises StorageError for a picture that could not be written."""
    if path.suffix not in _FORMATS:
        raise StorageError(f"a picture cannot be written as {path.name}", f"give a name with {', '.join(_FORMATS)}")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise StorageError(f"cannot write to {path.absolute().parent}", "choose a folder that is there and yours")


def save_plot(result: dict[str, Any], path: Path) -> None:
    """Precision, recall and double counts over the threshold, a panel for each density and reference.

    ``path`` is as ``check_plot_path`` wants it. Raises StorageError.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.2), dpi=90, layout="constrained", facecolor="white")
    panels = figure.subplots(len(REFERENCES), len(DENSITIES), sharex=True, sharey=True)
    for row, references in zip(panels, REFERENCES, strict=True):
        for panel, density in zip(row, DENSITIES, strict=True):
            _draw(panel, list(_points(result, density, references)))
            panel.set_title(f"{density:,} electrons per frame, {_TITLES[references]}", fontsize=10)
        row[0].set_ylabel("per cent")
    for panel in panels[-1]:
        panel.set_xlabel("background threshold (sigmas)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(_SHARES) + 1, frameon=False, fontsize=10)
    try:
        figure.savefig(path)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}", "free some space or choose another folder"
        ) from error


def _draw(panel: "Axes", points: list[dict[str, Any]]) -> None:
    sigmas = [point["sigmas"] for point in points]
    for name, (title, colour, mark) in _SHARES.items():
        ours, theirs = ([100 * point[program][name] for point in points] for program in PROGRAMS)
        panel.plot(sigmas, ours, color=colour, linewidth=2, label=f"{title}, mpistream")
        panel.plot(sigmas, theirs, mark, color=colour, markerfacecolor="white", markersize=5, label=f"{title}, stempy")
    panel.axvline(
        DEFAULT_SIGMAS, color=_FAINT_INK, linewidth=1, linestyle=":", label=f"default, {DEFAULT_SIGMAS:g} sigmas"
    )
    panel.grid(alpha=0.25)
    panel.set_ylim(-3, 103)


def _points(result: dict[str, Any], density: int, references: str) -> Iterator[dict[str, Any]]:
    return (p for p in result["sweep"] if p["electrons"] == density and p["references"] == references)


def _sweep(result: dict[str, Any], density: int) -> str:
    """A table of one density: a row for each threshold, and for each reference the three shares."""
    head = ["sigmas"]
    for references in REFERENCES:
        head += [f"{title}{_IN_HEAD[references]}" for title, *_ in _SHARES.values()]
    rows = []
    for together in zip(*(_points(result, density, references) for references in REFERENCES), strict=True):
        cells = [
            " / ".join(f"{100 * point[program][name]:.2f}" for program in PROGRAMS)
            for point in together
            for name in _SHARES
        ]
        rows.append([f"{together[0]['sigmas']:g}", *cells])
    return (
        f"{density:,} electrons per frame, {result['frames']} frames; per cent, {' / '.join(PROGRAMS)}\n\n"
        f"{table(head, rows)}"
    )


def _centroids(result: dict[str, Any]) -> str:
    errors = result["centroid_rms_pixels"]
    head = [
        "root mean square distance from the electron, pixels",
        *(f"{int(density):,} per frame" for density in errors),
    ]
    rows = [
        [name, *(f"{of_density[name]:.3f}" for of_density in errors.values())] for name in next(iter(errors.values()))
    ]
    return table(head, rows)
