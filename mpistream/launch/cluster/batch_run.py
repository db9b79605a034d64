"""A batch job from its start to its end: what `mpistream job run` does, whatever the mode."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from mpistream.control.registry import Registry
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.allocation import Allocation
from mpistream.launch.cluster.course import Action, Decision, Facts, Outcome, Rules, StepState, decide
from mpistream.launch.cluster.mpi_job import SupervisedMpiJob
from mpistream.launch.cluster.notices import Notices, Signals
from mpistream.launch.cluster.record import JobRecord, say
from mpistream.launch.cluster.scan_book import ScanBook
from mpistream.launch.cluster.services import Services
from mpistream.launch.expectation import Expecting
from mpistream.model.config import Config
from mpistream.model.errors import EtcdUnreachable, MpistreamError
from mpistream.model.session import BatchJobState, JobStep, Mode

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_TURN_SECONDS = 0.1
_REQUEUED_SECONDS = 30.0

#: Exit statuses.
DONE, FAILED, NOT_WHOLE = 0, 1, 3


class Leaving(Exception):
    """The batch job is to end: raised by ``turn``, through whatever a program does at that moment."""


@dataclass(frozen=True)
class ProgramEnd:
    """What a mode's program has done, in words, and the exit status."""

    text: str
    exit_status: int = DONE


Program = Callable[["BatchRun"], ProgramEnd]


@dataclass(frozen=True)
class JobOrder:
    """What a batch job is asked to do."""

    mode: Mode
    session: str
    command: tuple[str, ...]
    rules: Rules
    requeue: bool


class BatchRun:
    """What the programs of the modes work with.

    ``config`` and ``registry`` are of the deployment whose scans the job streams; None where it needs none. ``folder``
    is for files of the job itself, on this machine. ``is_working``: the program makes something of a scan that has
    ended, which is in hand for so long, too.
    """

    def __init__(
        self,
        order: JobOrder,
        config: Config,
        registry: Registry | None,
        sessions: SessionRegistry | None,
        allocation: Allocation,
        record: JobRecord,
        services: Services,
        signals: Signals,
        folder: Path,
    ) -> None:
        self.order = order
        self.config = config
        self.allocation = allocation
        self._registry = registry
        self._sessions = sessions
        self._record = record
        self._services = services
        self._opened = ExitStack()
        self._book: ScanBook | None = None
        self._expecting = Expecting(registry, allocation.number, order.mode) if registry is not None else None
        self._job = SupervisedMpiJob(order.command, registry, allocation, record, folder)
        self._job.is_interrupted = lambda: signals.told
        self._signals = signals
        self._notices = Notices(signals, sessions, order.session, order.rules, allocation, record)
        self.is_working = False
        self._program_ended = False
        self._leaving: tuple[Outcome, str] | None = None
        self._over_before: set[UUID] = set()

    # what programs use

    @property
    def registry(self) -> Registry:
        assert self._registry is not None, f"mode {self.order.mode} has no scans"
        return self._registry

    @property
    def sessions(self) -> SessionRegistry:
        assert self._sessions is not None, f"mode {self.order.mode} has no session"
        return self._sessions

    @property
    def book(self) -> ScanBook:
        assert self._book is not None, f"mode {self.order.mode} has no scans"
        return self._book

    @property
    def expecting(self) -> Expecting:
        """What the program expects of the camera, as long as it goes on."""
        assert self._expecting is not None, f"mode {self.order.mode} has no scans"
        return self._expecting

    @property
    def session_stopped(self) -> bool:
        return self._notices.session_stopped

    @property
    def first_begun_unix_seconds(self) -> float:
        """When the job's first run began."""
        return self._record.first_begun_unix_seconds

    @property
    def is_warned(self) -> bool:
        """Nothing is to be begun any more."""
        return self._notices.warned_seconds is not None

    def turn(self) -> None:
        """Looks after everything, and takes a moment. Raises Leaving once the batch job is to end."""
        time.sleep(_TURN_SECONDS)
        if self._look_after().outcome is not None:
            raise Leaving

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self.turn()

    def wait_until_command_ended(self) -> JobStep:
        """Of a command that is the program itself: how it ended."""
        self.wait_until(lambda: self._job.last is not None)
        assert self._job.last is not None
        return self._job.last

    def persist(self, action: Callable[[], _T]) -> _T:
        """Does ``action`` as soon as etcd answers. Raises EtcdUnreachable when it stays away."""
        deadline = time.monotonic() + self.config.stream.patience_seconds
        while True:
            try:
                return action()
            except EtcdUnreachable:
                if time.monotonic() > deadline:
                    raise
            self.turn()

    # the course of the job

    def perform(self, program: Program) -> int:
        """The exit status. Nothing that was started is left."""
        with self._opened:
            self._open()
            return self._perform(program)

    def _open(self) -> None:
        self._opened.callback(self._services.close)
        self._opened.callback(self._job.close)
        if self._registry is not None:
            self._book = ScanBook(self._registry)
            self._opened.callback(self._book.close)
            self._over_before = {uid for uid, scan in self._book.scans.items() if not scan.facts.is_unfinished}

    def _perform(self, program: Program) -> int:
        end: ProgramEnd | None = None
        failure: MpistreamError | None = None
        try:
            end = program(self)
        except Leaving:
            pass
        except (MpistreamError, OSError) as error:
            failure = error if isinstance(error, MpistreamError) else MpistreamError(str(error), "see the job's log")
        except Exception as error:
            _log.exception("the program of mode %s failed", self.order.mode)
            failure = MpistreamError(f"the program failed: {error!r}", "the traceback stands in the job's log")
        if self._expecting is not None:
            self._expecting.close()
        self._program_ended = end is not None or failure is not None
        if self._program_ended:
            self._record.update(state=BatchJobState.FINISHING)
        while (decision := self._look_after()).action is not Action.LEAVE:
            time.sleep(_TURN_SECONDS)
        if failure is not None:
            return self._end(BatchJobState.FAILED, failure.message, failure.remedy, FAILED)
        if end is not None:
            state = BatchJobState.FAILED if end.exit_status == FAILED else BatchJobState.ENDED
            return self._end(state, end.text, "", end.exit_status)
        return self._leave(decision)

    def _leave(self, decision: Decision) -> int:
        """Without the program having ended."""
        left = self._what_is_left()
        reason = f"{decision.reason}{': ' + left if left else ''}"
        remedy = self._who_goes_on(decision.outcome) if left else ""
        if decision.outcome is Outcome.UNUSED:
            remedy = f"submit it again when there are scans: {self._submit_live()}"
        is_live = self.order.mode is Mode.LIVE
        match decision.outcome:
            case Outcome.REQUEUE:
                return self._requeue(reason, remedy)
            case Outcome.TOLD:
                return self._end(BatchJobState.ENDED, reason, remedy, DONE if is_live else FAILED)
            case Outcome.HANDED_OVER | Outcome.UNUSED if is_live:
                return self._end(BatchJobState.ENDED, reason, remedy, DONE)
            case _:
                return self._end(BatchJobState.FAILED, reason, remedy or "submit it again", FAILED)

    def _who_goes_on(self, outcome: Outcome | None) -> str:
        if outcome is Outcome.REQUEUE:
            return "this job goes on with it when it begins again"
        return f"another job of the deployment goes on with it: {self._submit_live()}"

    def _submit_live(self) -> str:
        return f"mpistream job submit live --session {self.order.session or 'NAME'} --site SITE"

    def _what_is_left(self) -> str:
        if self._book is None:
            return ""
        self._book.news()
        scans = [f"scan {scan.facts.uid} is left {scan.facts.state}" for scan in self._book.unfinished()]
        return "; ".join(scans)

    def _requeue(self, reason: str, remedy: str) -> int:
        self._end(BatchJobState.REQUEUED, reason, remedy, DONE)
        self._record.flush()
        try:
            self.allocation.requeue()
        except MpistreamError as error:
            text = f"{reason}; it could not be requeued: {error.message}"
            return self._end(BatchJobState.FAILED, text, "submit it again", FAILED)
        deadline = time.monotonic() + _REQUEUED_SECONDS
        while time.monotonic() < deadline and not self._signals.told:
            time.sleep(_TURN_SECONDS)
        return DONE

    def _end(self, state: BatchJobState, reason: str, remedy: str, exit_status: int) -> int:
        say(f"the job is {state}{': ' + reason if reason else ''}{'; ' + remedy if remedy else ''}")
        self._record.ends(state, reason, remedy)
        return exit_status

    def _look_after(self) -> Decision:
        """One turn of everything that runs."""
        for news in self._services.turn():
            say(news)
        self._job.turn()
        if self._book is not None:
            for sentence in self._book.news():
                say(sentence)
        self._notices.look(self._book.begun_now if self._book else set)
        decision = decide(self._facts(), self.order.rules)
        if decision.outcome is not None and self._leaving is None:
            self._leaving = decision.outcome, decision.reason
        match decision.action:
            case Action.START:
                self._job.start()
            case Action.STOP:
                if decision.reason:
                    say(f"the job ends: {decision.reason}")
                self._record.update(state=BatchJobState.FINISHING, reason=decision.reason)
                self._job.ask_to_end()
            case Action.KILL:
                asked = self._job.state is StepState.ENDING
                self._job.kill("it did not end when asked" if asked else decision.reason)
            case Action.WAIT | Action.LEAVE:
                pass
        return decision

    def _facts(self) -> Facts:
        job, book, notices = self._job, self._book, self._notices
        return Facts(
            program_ended=self._program_ended,
            told=self._signals.told,
            leaving=self._leaving,
            warned_seconds=notices.warned_seconds,
            seconds_left=notices.seconds_left,
            may_requeue=self._may_requeue(),
            has_in_hand=notices.has_in_hand(book.begun() if book else set(), self.is_working),
            is_writing=book is not None and book.is_writing(),
            step=job.state,
            step_seconds=job.state_seconds,
            absent_seconds=job.absent_seconds,
            was_registered=job.was_registered,
            starts=job.starts,
            brief_lives=job.brief_lives,
            nodes=len(job.good),
            was_of_use=self._was_of_use(),
        )

    def _was_of_use(self) -> bool:
        """A live job that was not, and is requeued, would come back for ever where its session is forgotten."""
        return self.order.mode is not Mode.LIVE or bool(self.book.scans.keys() - self._over_before)

    def _may_requeue(self) -> bool:
        has_use = not (self.order.mode is Mode.LIVE and self.session_stopped)
        return self.order.requeue and self.allocation.can_requeue and not self._signals.drained and has_use
