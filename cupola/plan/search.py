"""The best layouts of a stage on given devices, and why every other one is not among them.

Shapes and their groups come from `candidates`. A group whose most frugal layout does not fit is left out by
memory. The others are taken in the order of a **floor**, a step time that no layout of the group can beat:
that without checkpointing, at the least sharding, with the smallest bubble of any schedule. As soon as a
floor lies above what has been found, the group is left out as slower. In the groups that remain

- less checkpointing is never slower, so that what more of it would save is not asked for where it fits;
- nor is stage 1 of sharding slower than 2, nor 2 than 3, by more than a thousandth; stage 0 is tried for
  itself, and so is 3 with a pipeline, where parameters are gathered once a step.

Nothing else is cut short: `tests/plan/test_search.py` finds the same best by trying everything.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cupola.plan.candidates import Question, Rejected, groups, modes, schedules, shapes, shards
from cupola.plan.hardware import GIB
from cupola.plan.layout import Layout
from cupola.plan.memory import Memory
from cupola.plan.steptime import StepTime

NEAR = 0.1
"""A group that is over by a larger share of the memory is not tried with other schedules than its first."""
SLACK = 1.1
"""The share of a step that waiting for the slowest device adds to a bubble, at most."""


@dataclass(frozen=True)
class Candidate:
    """A layout that fits, and how fast it is."""

    layout: Layout
    memory: Memory
    step: StepTime

    @property
    def per_token(self) -> float:
        """Seconds."""
        return self.step.seconds.value / self.step.tokens

    @property
    def rate(self) -> float:
        """Tokens a second of each device."""
        return 1 / self.per_token / self.layout.devices


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        best: of each shape the fastest layout, fastest first.
        rejected: all others; each stands for one layout or, with its `count`, for several.
    """

    question: Question
    best: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]

    @property
    def looked(self) -> int:
        """How many layouts there are in all."""
        return len(self.best) + sum(one.count for one in self.rejected)


@dataclass(frozen=True)
class Group:
    """A shape with its rows that fits somehow.

    Attributes:
        able: stages of sharding with which it does.
        floor: seconds a token that no layout of it can beat.
        bare: these without any bubble; `bubble`: that of 1f1b.
        parts: of that step, seconds a token.
    """

    layout: Layout
    able: tuple[int, ...]
    floor: float = 0.0
    bare: float = 0.0
    bubble: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Slower:
    """A layout that fits, or would be no faster if it did."""

    layout: Layout
    per_token: float
    parts: Mapping[str, float]
    count: int = 1
    least: bool = False


def search(question: Question, most: int = 10) -> Found:
    """The `most` fastest shapes with their best layouts.

    Devices are all used. Where the request has no batch, layouts have as many microbatches as fill their
    pipeline twice, and their seconds a token are compared.
    """
    run = _Search(question, most)
    run.go()
    best = sorted(run.best.values(), key=_order)[:most]
    chosen = {one.layout for one in best}
    slower = [one for one in run.slower if one.layout not in chosen]
    told = _told(slower, best[0]) if best else []
    return Found(question, tuple(best), (*run.rejected, *told))


def _order(candidate: Candidate) -> tuple[object, ...]:
    return (candidate.per_token, _plainness(candidate.layout))


def _plainness(layout: Layout) -> tuple[object, ...]:
    """Of layouts as fast, the one with the fewest kinds of workers goes first; the rest makes it definite."""
    sizes = layout.context, layout.pipeline, layout.tensor, layout.expert
    return (sum(one > 1 for one in sizes), *sizes, layout.shard, layout.rows, layout.schedule, layout.chunks)


def _shape(layout: Layout) -> tuple[int, ...]:
    return layout.tensor, layout.pipeline, layout.context, layout.expert


class _Search:
    """The state of one search."""

    def __init__(self, question: Question, most: int) -> None:
        self.question, self.most = question, most
        self.rejected: list[Rejected] = []
        self.slower: list[Slower] = []
        self.best: dict[tuple[int, ...], Candidate] = {}
        self.waiting: list[tuple[float, tuple[object, ...], bool, Group]] = []
        self.modes = modes(question)
        self.known: dict[Layout, Memory] = {}

    def go(self) -> None:
        """Groups by their floors; what a shape bounds is looked at more closely when its turn comes."""
        for shape in shapes(self.question, self.rejected):
            layouts = groups(self.question, shape, self.rejected)
            self._bound([layout for layout in layouts if not self._impossible(layout)])
        while self.waiting:
            floor, _, closely, group = heapq.heappop(self.waiting)
            if floor >= self._bar(group.layout):
                self._too_slow(group)
            elif closely:
                self._expand(group)
            elif able := self._able(group.layout):
                self._wait(self._floored(replace(group, able=able)), closely=True)

    def _wait(self, group: Group, closely: bool) -> None:
        heapq.heappush(self.waiting, (group.floor, _plainness(group.layout), closely, group))

    def _bound(self, layouts: list[Layout]) -> None:
        """Floors of the groups of a shape by that of the most rows: fewer rows are no faster but for the
        bubble, which is as many times shorter."""
        if not layouts:
            return
        most = layouts[-1]
        bound = self._floored(Group(most, shards(self.question, most)))
        for layout in layouts:
            least = min(map(_bubble, schedules(self.question, layout)))
            floor = bound.bare + least * bound.bubble * layout.rows / most.rows
            self._wait(replace(bound, layout=layout, floor=floor), closely=False)

    def _impossible(self, group: Layout) -> bool:
        plain = schedules(self.question, group)[0]
        if found := self.question.faults(plain):
            title = found[0].partition(":")[0]
            self.rejected.append(Rejected(plain, "impossible", title, found[0]))
        return bool(found)

    def _memory(self, layout: Layout) -> Memory:
        if layout not in self.known:
            self.known[layout] = self.question.memory(layout)
        return self.known[layout]

    def _fits(self, memory: Memory) -> bool:
        return memory.fits(self.question.hardware.memory, self.question.margin)

    def _variants(self, group: Layout) -> int:
        question = self.question
        return len(schedules(question, group)) * len(shards(question, group)) * len(self.modes)

    def _able(self, group: Layout) -> tuple[int, ...]:
        """Stages of sharding with which a group fits, at the most checkpointing; none are told."""
        question, able = self.question, []
        nearest: Rejected | None = None
        for schedule in schedules(question, group):
            for shard in reversed(shards(question, schedule)):
                layout = replace(schedule, shard=shard, checkpointing=self.modes[-1])
                if self._fits(memory := self._memory(layout)):
                    able.append(shard)
                elif able:
                    break
                elif nearest is None or question.excess(memory) < nearest.amount:
                    nearest = _unfit(question, layout, memory)
            if able or (nearest and nearest.amount > NEAR * question.hardware.memory):
                break
        if not able and nearest is not None:
            words = f"{nearest.words}, with the most that sharding and checkpointing save"
            self.rejected.append(replace(nearest, words=words, count=self._variants(group)))
        return tuple(reversed(able))

    def _floored(self, group: Group) -> Group:
        """With its floor."""
        question, layout = self.question, replace(group.layout, checkpointing=self.modes[0])
        menu = schedules(question, layout)
        first = {_family(layout, shard): shard for shard in reversed(group.able)}
        steps = [question.time(replace(menu[0], shard=shard)) for shard in first.values()]
        step = min(steps, key=lambda one: one.seconds.value)
        share = _bubble(menu[0])
        bubble = SLACK * step.parts.get("pipeline bubble", 0.0) / share / step.tokens if share else 0.0
        full = step.seconds.value / step.tokens
        bare = full - share * bubble
        floor = bare + min(map(_bubble, menu)) * bubble
        parts = {name: seconds / step.tokens for name, seconds in step.parts.items()}
        return replace(group, floor=floor, bare=bare, bubble=bubble, parts=parts)

    def _bar(self, layout: Layout) -> float:
        """Seconds a token that a layout has to stay below, to be shown."""
        own = self.best.get(_shape(layout))
        if own is not None:
            return own.per_token
        if len(self.best) < self.most:
            return float("inf")
        return sorted(one.per_token for one in self.best.values())[self.most - 1]

    def _too_slow(self, group: Group) -> None:
        count = self._variants(group.layout)
        layout = replace(group.layout, shard=max(group.able[:1]))
        self.slower.append(Slower(layout, group.floor, group.parts, count, least=True))

    def _expand(self, group: Group) -> None:
        """Every layout of a group that may be its best."""
        question, menu = self.question, schedules(self.question, group.layout)
        least = min(map(_bubble, menu))
        for schedule in menu:
            floor = group.floor + (_bubble(schedule) - least) * group.bubble
            if floor >= self._bar(schedule):
                count = len(shards(question, schedule)) * len(self.modes)
                layout = replace(schedule, shard=group.able[0])
                self.slower.append(Slower(layout, floor, group.parts, count, least=True))
                continue
            for layout, memory in self._worthwhile(schedule):
                self._time(layout, memory)

    def _worthwhile(self, schedule: Layout) -> Iterator[tuple[Layout, Memory]]:
        """The layouts of a group and a schedule that fit, less those which could only be slower."""
        question = self.question
        taken: set[tuple[int, str]] = set()  # families and modes that fit with less sharding already
        for shard in shards(question, schedule):
            family = _family(schedule, shard)
            last = replace(schedule, shard=shard, checkpointing=self.modes[-1])
            if not self._fits(memory := self._memory(last)):
                # No checkpointing takes less than the most of it.
                told = _unfit(question, last, memory)
                self.rejected.append(replace(told, count=len(self.modes)))
                continue
            light = bare = False
            for mode in self.modes:
                layout = replace(schedule, shard=shard, checkpointing=mode)
                if (family, mode) in taken or (family, "none") in taken:
                    self._needless(layout, "more sharding than it takes to fit")
                    light = True
                elif light and (bare or mode == "full"):
                    self._needless(layout, "more checkpointing than it takes to fit")
                elif self._fits(memory := self._memory(layout)):
                    yield layout, memory
                    light, bare = True, mode == "none"
                    taken.add((family, mode))
                else:
                    self.rejected.append(_unfit(question, layout, memory))

    def _needless(self, layout: Layout, title: str) -> None:
        self.rejected.append(Rejected(layout, "rule", title, title))

    def _time(self, layout: Layout, memory: Memory) -> None:
        candidate = Candidate(layout, memory, self.question.time(layout))
        shape, tokens = _shape(layout), candidate.step.tokens
        parts = {name: seconds / tokens for name, seconds in candidate.step.parts.items()}
        self.slower.append(Slower(layout, candidate.per_token, parts))
        if shape not in self.best or _order(candidate) < _order(self.best[shape]):
            self.best[shape] = candidate


def _family(layout: Layout, shard: int) -> int:
    """Stages of sharding of which the least that fits is the fastest, by the least of them."""
    return shard if shard == 0 or (shard == 3 and layout.pipeline > 1) else 1


def _bubble(layout: Layout) -> float:
    """Of 1f1b's bubble, what a schedule leaves."""
    return {"zb-h1": 1 / 3, "zb-h2": 0.0, "zb-v": 0.0}.get(layout.schedule, 1 / layout.chunks)


def _unfit(question: Question, layout: Layout, memory: Memory) -> Rejected:
    """A layout that does not fit: by how much, and what takes most."""
    excess, components = question.excess(memory), memory.components()
    part = max(components, key=lambda name: components[name])
    words = f"{excess / GIB:,.1f} GiB too much, mostly {part}"
    return Rejected(layout, "memory", f"does not fit: {part}", words, excess, part=part)


def _told(slower: list[Slower], best: Candidate) -> list[Rejected]:
    """Why each is slower than the best."""
    own = {name: seconds / best.step.tokens for name, seconds in best.step.parts.items()}
    found = []
    for one in slower:
        more = {name: seconds - own.get(name, 0.0) for name, seconds in one.parts.items()}
        part = max(more, key=lambda name: more[name])
        lost = one.per_token / best.per_token - 1
        at_least = "at least " if one.least else ""
        words = f"{at_least}{lost:.1%} slower, {part}" if lost > 1e-9 else "as fast, and less plain"
        words += "; whether it fits was not looked at" if one.least else ""
        title = f"slower: {part}" if lost > 1e-9 else "as fast"
        found.append(
            Rejected(one.layout, "slower", title, words, one.per_token, one.count, part, least=one.least)
        )
    return found


def summary(rejected: tuple[Rejected, ...]) -> list[Rejected]:
    """One for each title, with how many there are of it: the nearest. Impossible ones first, then rules,
    memory and speed."""
    found: dict[tuple[str, str], Rejected] = {}
    for one in rejected:
        key = one.kind, one.title
        if (seen := found.get(key)) is None:
            found[key] = one
        else:
            nearest = min(seen, one, key=lambda each: (each.amount, each.least))
            found[key] = replace(nearest, count=seen.count + one.count)
    order = ("impossible", "rule", "memory", "slower")
    return sorted(found.values(), key=lambda one: (order.index(one.kind), -one.count, one.title))


def why(question: Question, given: Mapping[str, Any], best: Candidate | None) -> str:
    """Why the best layout is not one with these settings: its fault, or what it lacks in memory or speed."""
    narrowed = replace(question, given={**question.given, **given})
    found = search(narrowed, most=1)
    domain = question.hardware.domain
    crosses = f"crosses the fast domain of {domain}" if given.get("tensor", 1) > domain else ""
    if found.best:
        own = found.best[0]
        lost = own.per_token / best.per_token - 1 if best else 0.0
        if lost <= 1e-9:
            words = "the best there is"
        else:
            (told,) = _told([_as_slower(own)], best) if best else (None,)
            words = told.words if told else ""
    else:
        order = ("memory", "impossible", "rule", "slower")
        nearest = min(found.rejected, key=lambda one: (order.index(one.kind), one.amount), default=None)
        words = nearest.words if nearest else "no layout has these settings"
    return "; ".join(part for part in (crosses, words) if part)


def _as_slower(candidate: Candidate) -> Slower:
    parts = {name: seconds / candidate.step.tokens for name, seconds in candidate.step.parts.items()}
    return Slower(candidate.layout, candidate.per_token, parts)


def thought_of(question: Question) -> list[dict[str, Any]]:
    """Settings that one would think of: all sharded, within and beyond the fast domain, with a pipeline,
    with rows cut, as far as devices and model have them."""
    domain, devices = question.hardware.domain, question.devices
    model, found = question.request.model, [{"tensor": 1, "pipeline": 1, "context": 1}]
    alone = found[0]
    wide = min(domain, 8)
    asked = [alone | {"shard": 1}, alone | {"shard": 3}]
    asked += [alone | {"tensor": ways} for ways in (wide, 2 * wide) if ways > 1]
    for ways in (1, wide):
        asked += [alone | {"tensor": ways, "pipeline": ranks} for ranks in (2, 4, 8, 16)]
    asked += [alone | {"context": ways} for ways in (2, 8)]
    if model.experts is not None:
        asked += [{"expert": ways} for ways in {1, min(domain, model.experts.count)}]
    for one in asked:
        workers = one.get("tensor", 1) * one.get("pipeline", 1) * one.get("context", 1)
        within = one.get("pipeline", 1) <= model.layers
        if devices % workers == 0 and within and one not in found:
            found.append(one)
    return found[1:]
