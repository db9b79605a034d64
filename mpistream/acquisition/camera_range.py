"""Which frame numbers a scan of the camera has, found from its first messages. Pure."""

from dataclasses import dataclass, field

from mpistream.acquisition.camera_messages import CameraHeader


@dataclass
class FirstFrame:
    """The camera goes through the positions in order, ``frames_per_position`` frames at each.

    So frame n at position p is frame p * frames_per_position + j of the scan, with j from 0 to frames_per_position - 1:
    every message leaves so many numbers for the first frame. Those left by several have few in common, one at last.
    """

    frames_per_position: int
    messages: int = 0
    _least: int = 0
    _most: int | None = field(default=None)

    def narrow(self, header: CameraHeader) -> None:
        most = header.frame_number - header.position * self.frames_per_position
        self.messages += 1
        self._most = most if self._most is None else min(self._most, most)
        self._least = max(self._least, most - self.frames_per_position + 1)

    @property
    def is_exact(self) -> bool:
        return self._most is not None and self._least >= self._most

    @property
    def is_settled(self) -> bool:
        """More messages would hardly tell more."""
        return self.is_exact or self.messages >= 4 * self.frames_per_position

    @property
    def number(self) -> int:
        """The first frame; the highest number that is possible where there are several. Not below 0."""
        return max(0, self._most or 0)
