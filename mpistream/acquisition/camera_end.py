"""When a sector of a scan of the camera has ended: as its threads announce it, or by silence. Pure."""

from dataclasses import dataclass, field

#: Of the silence after which a scan has ended: so long is waited for a thread of which nothing was heard yet.
_SETTLING = 0.1


@dataclass
class _Thread:
    came: int = 0  # frames, each counted once
    announced: int | None = None
    has_left: bool = False

    @property
    def is_done(self) -> bool:
        return self.has_left or (self.announced is not None and self.came >= self.announced)


@dataclass
class SectorEndDetector:
    """Times are in seconds, of any clock that does not go back. ``began``: when the scan was first heard of.

    silence_seconds  after so long without a message a sector has ended
    absent_seconds   after so long a sector has ended of which no message ever came, whatever the others do
    """

    silence_seconds: float
    absent_seconds: float
    began: float
    last_message: float | None = None
    _threads: dict[int, _Thread] = field(default_factory=dict)

    def heard(self, thread_id: int, now: float) -> None:
        """A message has come."""
        self._threads.setdefault(thread_id, _Thread())
        self.last_message = now

    def frame_came(self, thread_id: int, announced: int | None, is_first: bool) -> None:
        """What was heard is a frame of the scan. ``is_first``: it is no duplicate. ``announced``: how many frames its
        thread sends in all, if it says so.
        """
        thread = self._threads[thread_id]
        thread.came += is_first
        thread.announced = announced

    def thread_left(self, thread_id: int) -> None:
        """The thread has gone on to a later scan."""
        if thread_id in self._threads:
            self._threads[thread_id].has_left = True

    def how_ended(self, now: float, is_complete: bool, others_have_ended: bool) -> str:
        """Why nothing more is waited for; empty while something is.

        is_complete        every frame of the scan has come
        others_have_ended  another sector of the same scan has
        """
        if is_complete:
            return "every frame has come"
        if self.last_message is None:
            return self._without_a_message(now - self.began, others_have_ended)
        quiet_seconds = now - self.last_message
        all_are_done = bool(self._threads) and all(thread.is_done for thread in self._threads.values())
        if all_are_done and quiet_seconds >= self.settling_seconds:
            return "every thread has sent what it announced, or has gone on to another scan"
        if quiet_seconds >= self.silence_seconds:
            return f"nothing has come for {self.silence_seconds:g} s"
        return ""

    def _without_a_message(self, seconds: float, others_have_ended: bool) -> str:
        bound = self.silence_seconds if others_have_ended else max(self.silence_seconds, self.absent_seconds)
        return "no message has come" if seconds >= bound else ""

    def may_be_late(self, now: float, is_complete: bool) -> bool:
        """Whether a message that comes after the end may still be of this scan: where all frames have come only a
        duplicate can.
        """
        last = self.began if self.last_message is None else self.last_message
        return now - last < (self.settling_seconds if is_complete else self.silence_seconds)

    @property
    def settling_seconds(self) -> float:
        return self.silence_seconds * _SETTLING
