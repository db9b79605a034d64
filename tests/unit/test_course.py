"""The course of a batch job: for all facts, and over whole made-up lives."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpistream.launch.cluster.course import (
    HANDOVER_SECONDS,
    LOST_SECONDS,
    MOST_BRIEF_LIVES,
    STARTING_SECONDS,
    STOP_SECONDS,
    Action,
    Decision,
    Facts,
    Outcome,
    Rules,
    StepState,
    decide,
    time_is_short,
)

RULES = Rules(least_nodes=2, finish_seconds=100.0)
SERVING = Facts(step=StepState.RUNNING, was_registered=True, starts=1, nodes=4)
SECONDS = st.floats(0, 2000)
FACTS = st.builds(
    Facts,
    program_ended=st.booleans(),
    told=st.booleans(),
    warned_seconds=st.none() | SECONDS,
    seconds_left=st.none() | st.floats(-100, 4000),
    may_requeue=st.booleans(),
    has_in_hand=st.booleans(),
    is_writing=st.booleans(),
    step=st.sampled_from(StepState),
    step_seconds=SECONDS,
    absent_seconds=SECONDS,
    was_registered=st.booleans(),
    starts=st.integers(0, 9),
    brief_lives=st.integers(0, 9),
    nodes=st.integers(0, 5),
    was_of_use=st.booleans(),
)
ALL_RULES = st.builds(Rules, st.integers(1, 4), st.floats(0, 600), st.booleans(), st.floats(1, 900))


@given(FACTS, ALL_RULES)
def test_what_holds_for_all_facts(facts: Facts, rules: Rules) -> None:
    decision = decide(facts, rules)
    runs = facts.step is not StepState.NONE
    assert decision.action is not Action.START or not runs, "a second MPI job"
    assert decision.action is not Action.START or facts.nodes >= rules.least_nodes
    assert decision.action is not Action.LEAVE or not runs, "an MPI job is left behind"
    assert decision.action is not Action.STOP or facts.step is StepState.RUNNING
    assert decision.action is not Action.KILL or runs
    assert decision.outcome is not Outcome.REQUEUE or facts.may_requeue
    assert (decision.outcome is Outcome.DONE) == facts.program_ended
    assert (decision.action is Action.LEAVE) == (decision.outcome is not None and not runs)
    assert decision.outcome in (None, Outcome.DONE) or decision.reason


@given(FACTS, ALL_RULES)
def test_who_is_told_ends(facts: Facts, rules: Rules) -> None:
    decision = decide(replace(facts, told=True, program_ended=False), rules)
    assert decision.outcome is Outcome.TOLD
    assert decision.action is not Action.START


@given(FACTS, ALL_RULES)
def test_the_last_moment_of_the_time_limit_is_not_waited_for(facts: Facts, rules: Rules) -> None:
    left = replace(facts, warned_seconds=0.0, seconds_left=HANDOVER_SECONDS)
    assert decide(left, rules).outcome is not None


def test_a_scan_in_hand_is_finished() -> None:
    warned = replace(SERVING, warned_seconds=0.0, seconds_left=150.0, has_in_hand=True)
    assert decide(warned, RULES) == Decision(Action.WAIT)
    assert decide(replace(warned, has_in_hand=False), RULES).action is Action.STOP
    assert decide(replace(warned, warned_seconds=RULES.finish_seconds), RULES).action is Action.WAIT
    late = replace(warned, seconds_left=HANDOVER_SECONDS)
    assert decide(late, RULES).outcome is Outcome.HANDED_OVER
    assert decide(replace(late, may_requeue=True), RULES).outcome is Outcome.REQUEUE
    unlimited = replace(warned, seconds_left=None, warned_seconds=RULES.finish_seconds)
    assert decide(unlimited, RULES).action is Action.STOP


def test_who_leaves_does_not_come_back() -> None:
    """An operator gives it more time while its MPI job ends: its program is over."""
    ending = replace(SERVING, step=StepState.ENDING, seconds_left=7200.0)
    assert decide(ending, RULES).outcome is None
    leaving = replace(ending, leaving=(Outcome.REQUEUE, "its time is up"))
    assert decide(leaving, RULES) == Decision(Action.WAIT, Outcome.REQUEUE, "its time is up")
    assert decide(replace(leaving, step=StepState.NONE), RULES).action is Action.LEAVE
    assert decide(replace(leaving, told=True), RULES).outcome is Outcome.TOLD


def test_a_job_that_nobody_had_a_use_for_does_not_go_back_into_the_queue() -> None:
    """A session that is forgotten and never stopped would requeue it for ever."""
    idle = replace(SERVING, warned_seconds=0.0, seconds_left=150.0, may_requeue=True, was_of_use=False)
    decision = decide(idle, RULES)
    assert (decision.action, decision.outcome) == (Action.STOP, Outcome.UNUSED)
    assert "no scan" in decision.reason
    ended = decide(replace(idle, step=StepState.NONE), RULES)
    assert (ended.action, ended.outcome) == (Action.LEAVE, Outcome.UNUSED)
    assert decide(replace(idle, was_of_use=True), RULES).outcome is Outcome.REQUEUE
    # until the warning it waits for scans, and one that comes at the last moment is for the next run
    assert decide(replace(idle, warned_seconds=None), RULES) == Decision(Action.WAIT)
    assert decide(replace(idle, has_in_hand=True, was_of_use=True), RULES) == Decision(Action.WAIT)
    # its nodes have failed: nobody can say that it was of no use
    few = replace(idle, warned_seconds=None, step=StepState.NONE, nodes=1)
    assert decide(few, RULES).outcome is Outcome.REQUEUE


@given(FACTS, ALL_RULES)
def test_who_was_of_no_use_goes_back_only_for_lack_of_nodes(facts: Facts, rules: Rules) -> None:
    decision = decide(replace(facts, was_of_use=False), rules)
    if decision.outcome is Outcome.REQUEUE:
        assert facts.nodes < rules.least_nodes or facts.has_in_hand or rules.runs_once
    assert decision.outcome is not Outcome.UNUSED or facts.may_requeue


def test_a_job_without_a_signal_warns_itself() -> None:
    assert time_is_short(RULES.finish_seconds + HANDOVER_SECONDS, RULES)
    assert not time_is_short(RULES.finish_seconds + HANDOVER_SECONDS + 1, RULES)
    assert not time_is_short(None, RULES)


def test_a_dead_step_is_started_again_after_a_pause() -> None:
    dead = Facts(starts=1, nodes=3, brief_lives=3, step_seconds=3.9)
    assert decide(dead, RULES) == Decision(Action.WAIT)
    assert decide(replace(dead, step_seconds=4.1), RULES) == Decision(Action.START)
    assert decide(replace(dead, brief_lives=0, step_seconds=0.0), RULES) == Decision(Action.START)


def test_one_that_cannot_live_is_given_up() -> None:
    decision = decide(Facts(starts=5, nodes=3, brief_lives=MOST_BRIEF_LIVES, may_requeue=True), RULES)
    assert (decision.action, decision.outcome) == (Action.LEAVE, Outcome.FAILED)


@pytest.mark.parametrize(("may_requeue", "outcome"), [(True, Outcome.REQUEUE), (False, Outcome.FAILED)])
def test_too_few_nodes(may_requeue: bool, outcome: Outcome) -> None:
    few = Facts(starts=1, nodes=1, may_requeue=may_requeue)
    assert decide(few, RULES).outcome is outcome
    # as long as the MPI job lives nobody counts nodes
    assert decide(replace(few, step=StepState.RUNNING, was_registered=True), RULES) == Decision(Action.WAIT)


def test_a_launcher_without_ranks_is_killed() -> None:
    assert decide(replace(SERVING, absent_seconds=LOST_SECONDS), RULES).action is Action.WAIT
    assert decide(replace(SERVING, absent_seconds=LOST_SECONDS + 1), RULES).action is Action.KILL
    starting = replace(SERVING, was_registered=False, absent_seconds=LOST_SECONDS + 1)
    assert decide(starting, RULES).action is Action.WAIT
    assert decide(replace(starting, absent_seconds=STARTING_SECONDS + 1), RULES).action is Action.KILL


def test_a_command_that_runs_once() -> None:
    rules = Rules(runs_once=True)
    assert decide(Facts(), rules) == Decision(Action.START)
    running = Facts(step=StepState.RUNNING, starts=1, absent_seconds=9999.0)
    assert decide(running, rules) == Decision(Action.WAIT)
    assert decide(Facts(starts=1, step_seconds=99.0), rules) == Decision(Action.WAIT)
    assert decide(replace(running, warned_seconds=1.0), rules) == Decision(Action.WAIT)
    assert decide(replace(running, warned_seconds=rules.finish_seconds), rules).action is Action.STOP


def test_a_dataset_that_is_being_written_is_not_killed_unless_time_presses() -> None:
    ending = Facts(program_ended=True, step=StepState.ENDING, step_seconds=STOP_SECONDS + 1, is_writing=True)
    assert decide(ending, RULES).action is Action.WAIT
    assert decide(replace(ending, is_writing=False), RULES).action is Action.KILL
    assert decide(replace(ending, told=True), RULES).action is Action.KILL
    assert decide(replace(ending, step_seconds=RULES.writes_seconds + 1), RULES).action is Action.KILL


@dataclass
class Life:
    """A batch job's surroundings that do what they like, second by second."""

    rules: Rules
    facts: Facts

    def second(self, dies: bool, obeys: bool, program_ends: bool, scan_ends: bool) -> Decision:
        decision, facts = decide(self.facts, self.rules), self.facts
        changes: dict[str, object] = {"step_seconds": facts.step_seconds + 1}
        if facts.warned_seconds is not None:
            changes["warned_seconds"] = facts.warned_seconds + 1
        if facts.seconds_left is not None:
            changes["seconds_left"] = facts.seconds_left - 1
            if facts.warned_seconds is None and time_is_short(facts.seconds_left, self.rules):
                changes["warned_seconds"] = 0.0
        if decision.action is Action.START:
            changes |= {"step": StepState.RUNNING, "step_seconds": 0.0, "starts": facts.starts + 1}
        elif decision.action is Action.STOP:
            changes |= {"step": StepState.ENDING, "step_seconds": 0.0}
        ends = dies or decision.action is Action.KILL or (obeys and facts.step is StepState.ENDING)
        if facts.step is not StepState.NONE and ends:
            brief = facts.brief_lives + 1 if facts.step is StepState.RUNNING and facts.step_seconds < 30 else 0
            changes |= {"step": StepState.NONE, "step_seconds": 0.0, "brief_lives": brief}
        changes["program_ended"] = facts.program_ended or program_ends
        changes["has_in_hand"] = facts.has_in_hand and not scan_ends
        self.facts = replace(facts, **changes)  # type: ignore[arg-type]
        return decision


EVENTS = st.tuples(st.booleans(), st.booleans(), st.just(False), st.booleans())


@given(ALL_RULES, st.floats(1, 400), st.lists(EVENTS, min_size=1, max_size=60), st.booleans(), st.booleans())
def test_every_life_with_a_time_limit_ends_before_it(
    rules: Rules, seconds_left: float, events: list[tuple[bool, bool, bool, bool]], may_requeue: bool, has_scan: bool
) -> None:
    """Whatever dies, and whether anything obeys: nothing is left when the limit comes."""
    rules = replace(rules, least_nodes=1, runs_once=False)
    begin = HANDOVER_SECONDS + seconds_left
    life = Life(rules, Facts(seconds_left=begin, may_requeue=may_requeue, has_in_hand=has_scan))
    for second in range(int(begin)):
        if life.second(*events[second % len(events)]).action is Action.LEAVE:
            return
    raise AssertionError(f"it goes on: {life.facts}")


@given(ALL_RULES, st.lists(EVENTS, min_size=1, max_size=60), st.sampled_from(StepState))
def test_who_is_told_is_gone_in_time(
    rules: Rules, events: list[tuple[bool, bool, bool, bool]], step: StepState
) -> None:
    life = Life(rules, Facts(told=True, step=step, is_writing=True))
    decisions = [life.second(*events[second % len(events)]).action for second in range(int(STOP_SECONDS) + 5)]
    assert Action.LEAVE in decisions
    assert Action.START not in decisions
