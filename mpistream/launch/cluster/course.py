"""The course of a batch job: whether its MPI job is to be started, ended or left alone, and how the batch job ends.

Pure: a function of the facts, without clock, processes or etcd. docs/batch-jobs.md tells it in words.
"""

from dataclasses import dataclass
from enum import StrEnum

#: An MPI job that has ended so often in a row, each time within so many seconds of its start, cannot live.
MOST_BRIEF_LIVES, BRIEF_SECONDS = 5, 30.0
#: A launcher whose ranks have left etcd is ended after so many seconds, one whose ranks never came after the second.
LOST_SECONDS, STARTING_SECONDS = 10.0, 300.0
#: An MPI job that was asked to end is killed after so many seconds.
STOP_SECONDS = 20.0
#: What the end of an MPI job and of the batch job need of the time limit.
HANDOVER_SECONDS = 45.0
_LONGEST_PAUSE_SECONDS = 8.0


class StepState(StrEnum):
    NONE = "none"  # no MPI job, or the last one has ended
    RUNNING = "running"
    ENDING = "ending"  # it was asked to end


class Action(StrEnum):
    WAIT = "wait"
    START = "start"  # the MPI job
    STOP = "stop"  # ask it to end
    KILL = "kill"  # end it by force
    LEAVE = "leave"  # nothing of the MPI job is left: the batch job ends


class Outcome(StrEnum):
    DONE = "done"  # the mode's program has ended, well or not
    TOLD = "told"  # somebody ended the job
    REQUEUE = "requeue"  # what is left is for the same job's next run
    HANDED_OVER = "handed over"  # what is left is for another job
    UNUSED = "unused"  # nobody had a use for it, and it does not wait for one in the queue
    FAILED = "failed"


@dataclass(frozen=True)
class Rules:
    """What holds for the whole batch job.

    finish_seconds  how long a scan in hand may still take once the job was warned, where no time limit is known;
                    where one is, so long before it, and what a handover needs, the job warns itself
    runs_once       the command is the program itself: it is not started again
    writes_seconds  how long an MPI job that was asked to end may still write a dataset
    """

    least_nodes: int = 1
    finish_seconds: float = 240.0
    runs_once: bool = False
    writes_seconds: float = 900.0


@dataclass(frozen=True)
class Facts:
    """What is so at one moment.

    warned_seconds  since the job was warned of its time limit; None: it was not
    seconds_left    of the time limit; None: it is not known, or there is none
    may_requeue     the job may go back into the queue, and somebody has a use for that
    leaving         how the batch job was to end, and why, when that was decided: whatever it finds out while its MPI
                    job ends, an hour more of time say, it does not come back
    has_in_hand     a scan that had begun when the job was warned has not ended, or its program has not heard of that
    is_writing      a dataset is being written
    step_seconds    since the MPI job was started, was asked to end, or has ended
    absent_seconds  for how long the running MPI job has not been registered in etcd; 0 where it is, or nobody knows
    was_registered  it was, since its start
    starts          of the MPI job so far
    brief_lives     the number of its last lives in a row that were brief
    nodes           that can be used
    was_of_use      a scan was under way during this run, or the mode brings its own
    """

    program_ended: bool = False
    told: bool = False
    leaving: tuple[Outcome, str] | None = None
    warned_seconds: float | None = None
    seconds_left: float | None = None
    may_requeue: bool = False
    has_in_hand: bool = False
    is_writing: bool = False
    step: StepState = StepState.NONE
    step_seconds: float = 0.0
    absent_seconds: float = 0.0
    was_registered: bool = False
    starts: int = 0
    brief_lives: int = 0
    nodes: int = 1
    was_of_use: bool = True


@dataclass(frozen=True)
class Decision:
    """What to do. ``outcome`` is there once the batch job is to end; ``reason`` says why, in words."""

    action: Action
    outcome: Outcome | None = None
    reason: str = ""


def time_is_short(seconds_left: float | None, rules: Rules) -> bool:
    """The scan in hand is the last one that is waited for. A job that has no signal sent ahead warns itself."""
    return seconds_left is not None and seconds_left <= rules.finish_seconds + HANDOVER_SECONDS


def decide(facts: Facts, rules: Rules) -> Decision:
    outcome, reason = _leaves(facts, rules)
    if outcome is None:
        return _goes_on(facts, rules)
    if facts.step is StepState.NONE:
        action = Action.LEAVE
    elif facts.step is StepState.RUNNING:
        action = Action.STOP
    else:
        action = Action.KILL if facts.step_seconds > _stop_seconds(facts, rules) else Action.WAIT
    return Decision(action, outcome, reason)


def _leaves(facts: Facts, rules: Rules) -> tuple[Outcome | None, str]:
    """How the batch job ends; None while it is to go on."""
    none_runs = facts.step is StepState.NONE
    if facts.program_ended:
        return Outcome.DONE, ""
    if facts.told:
        return Outcome.TOLD, "it was told to end"
    if facts.leaving is not None:
        return facts.leaving
    later = Outcome.REQUEUE if facts.may_requeue else Outcome.HANDED_OVER
    if facts.warned_seconds is not None:
        if not facts.has_in_hand and not rules.runs_once:
            if facts.may_requeue and not facts.was_of_use:
                return Outcome.UNUSED, "there was no scan to serve in the whole run"
            return later, "nothing is in hand any more"
        if _is_last_moment(facts) or (facts.seconds_left is None and facts.warned_seconds >= rules.finish_seconds):
            return later, "its time is up, and what it has in hand takes longer"
    if none_runs and facts.nodes < rules.least_nodes:
        few = f"{facts.nodes} of its nodes can be used, and it needs {rules.least_nodes}"
        return (Outcome.REQUEUE if facts.may_requeue else Outcome.FAILED), few
    if none_runs and facts.brief_lives >= MOST_BRIEF_LIVES:
        return (
            Outcome.FAILED,
            f"the MPI job has ended {facts.brief_lives} times in a row within {BRIEF_SECONDS:g} s of its start",
        )
    return None, ""


def _is_last_moment(facts: Facts) -> bool:
    return facts.seconds_left is not None and facts.seconds_left <= HANDOVER_SECONDS


def _stop_seconds(facts: Facts, rules: Rules) -> float:
    """Nobody hurries a job that is done and still writes: the dataset may be another session's."""
    is_pressed = facts.told or facts.warned_seconds is not None or _is_last_moment(facts)
    return rules.writes_seconds if facts.is_writing and not is_pressed else STOP_SECONDS


def _goes_on(facts: Facts, rules: Rules) -> Decision:
    if rules.runs_once and facts.starts:
        return Decision(Action.WAIT)  # its program ends with it; it need not be in etcd
    if facts.step is StepState.NONE:
        pause_seconds = min(2.0 ** (facts.brief_lives - 1), _LONGEST_PAUSE_SECONDS) if facts.brief_lives else 0.0
        return Decision(Action.WAIT if facts.starts and facts.step_seconds < pause_seconds else Action.START)
    if facts.step is StepState.ENDING:
        return Decision(Action.KILL if facts.step_seconds > STOP_SECONDS else Action.WAIT)
    if facts.was_registered and facts.absent_seconds > LOST_SECONDS:
        return Decision(Action.KILL, reason=f"its ranks have been gone for {LOST_SECONDS:g} s, its launcher is not")
    if not facts.was_registered and facts.absent_seconds > STARTING_SECONDS:
        return Decision(Action.KILL, reason=f"its ranks have not registered within {STARTING_SECONDS:g} s")
    return Decision(Action.WAIT)
