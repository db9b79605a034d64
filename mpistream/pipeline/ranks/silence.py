"""When a rank to which nothing comes should ask for what may have been lost on its way. Pure."""

_SHORTEST_SECONDS = 1.0
_LONGEST_SECONDS = 16.0
#: So many times the longest pause so far is no pause any more.
_PATIENCE = 4.0


class Silence:
    """Asks after a silence much longer than any before it, then ever more rarely, until something comes.

    A rank that asks has nothing left to do. So those who are slow are never sent more than they can take.
    """

    def __init__(self, now: float) -> None:
        self._heard = now
        self._asked = now
        self._longest = 0.0
        self._interval = _SHORTEST_SECONDS

    def heard(self, now: float) -> None:
        if self._asked <= self._heard:  # a pause that ended by asking was a loss
            self._longest = max(self._longest, now - self._heard)
        self._heard = self._asked = now
        self._interval = min(max(_SHORTEST_SECONDS, _PATIENCE * self._longest), _LONGEST_SECONDS)

    def heard_again(self, now: float) -> None:
        """What came was here before: an answer to a question, and no sign that the loss is made good."""
        self._asked = max(self._asked, now)

    def busy(self, now: float) -> None:
        """Something that came waits for this rank: no pause has begun yet."""
        self._heard = self._asked = now

    def should_ask(self, now: float) -> bool:
        """True once for each question that is due."""
        if now - self._asked < self._interval:
            return False
        self._asked = now
        self._interval = min(2 * self._interval, _LONGEST_SECONDS)
        return True
