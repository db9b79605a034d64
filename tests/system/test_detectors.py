"""Virtual detectors of the configuration, [detectors], in scans of real ranks."""

from pathlib import Path

import numpy as np
import pytest

from mpistream.storage.reader import open_dataset
from tests.system.command_line import CommandLine

BRIGHT_FIELD, ANNULAR_DARK_FIELD = (2.5, 90.0), (120.0, 250.0)
CENTER = (281.25, 296.5)
RADII = f"[detectors]\nbright_field = {list(BRIGHT_FIELD)}\nannular_dark_field = {list(ANNULAR_DARK_FIELD)}\n"
THRESHOLDS = ("--background", 44, "--xray", 1500)
#: One block for four ranks, so that three of them count nothing; and several blocks for each of them.
SCANS = {"one block": "sim:2x4?electrons=800", "larger": "sim:13x11?electrons=400&loss=0.02"}


@pytest.mark.parametrize("source", SCANS.values(), ids=SCANS.keys())
@pytest.mark.parametrize("center", [CENTER, None], ids=["radii and center", "radii only"])
def test_the_images_are_those_of_the_detectors_in_the_configuration(
    cli: CommandLine, output: Path, source: str, center: tuple[float, float] | None
) -> None:
    """Counted by the kernel around a given center, from the events around that of the pattern."""
    config = output.with_name("detectors.toml")
    config.write_text(RADII + (f"center = {list(center)}\n" if center else ""))
    cli.run("testbed", "run", "--source", source, "--output", output, *THRESHOLDS, "--config", config).succeeded()
    with open_dataset(output) as dataset:
        images, pattern = dataset.images, dataset.diffraction_sum()
        assert dataset.provenance["mpi_ranks"] == 4
        for name, radii in (("bright_field", BRIGHT_FIELD), ("annular_dark_field", ANNULAR_DARK_FIELD)):
            assert dataset.image_radii(name) == radii
            np.testing.assert_array_equal(images[name], dataset.virtual_image(*radii), name)
            assert images[name].any()
        np.testing.assert_array_equal(images["electron_count"], dataset.virtual_image(0, 1000))
        mean_place = [np.average(np.arange(576), weights=pattern.sum(axis=1 - axis)) for axis in (0, 1)]
        assert dataset.center == (center or pytest.approx(mean_place))
        there = ~np.isnan(images["center_of_mass"])
        weights = np.broadcast_to(images["electron_count"][..., np.newaxis], there.shape)
        for axis, place in enumerate(mean_place):
            seen = there[..., axis]
            mean = np.average(images["center_of_mass"][seen, axis], weights=weights[seen, axis])
            assert mean == pytest.approx(place)
