"""The semantic specification: what a key holds, from the history of updates and what each had observed.

Nothing here knows of states, joins, deltas or logs. An update is an `Effect`: its dot, what it
does, and the dots of the effects on its key that were visible where and when it was issued.
`view` turns a set of effects into what the key holds; `plan` turns a request into the answer
and the effect it must issue, given the effects that it observes.

An effect removes what it has `observed`: that decides what a key holds in the end. A replica that
holds the effect but not yet all that it observed is a case of its own: a change names what it takes
away (`takes`, `ends`), which leaves out what was gone already where it was issued, so such a replica
may show that a little longer. `view(effects, so_far=True)` is exact for it; for a set of effects
that holds what each of them observed, both views are the same.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from tests.reference import rights
from tests.reference.positions import between
from tests.reference.rights import Grant
from tests.reference.sketch import estimate, groups_of, union
from tests.reference.vocabulary import (
    COLLECTIONS,
    INT64_MAX,
    INT64_MIN,
    KIND_OF,
    QUARTER,
    Dot,
    Kind,
    Reading,
    Refusal,
    Reply,
    Request,
    Shown,
    Verb,
    clamp,
    int64_bytes,
    int64_of,
    integer_of,
    score_of,
)

ALL_KINDS = frozenset(Kind)
UNSTAMPED = Dot(0, 0)

by_dot = attrgetter("dot")

# One thing that a change removes: the part of the update `Dot` that concerns an element (b"" for a string).
Taken = tuple[Kind, bytes, Dot]


class Action(enum.Enum):
    """What one update does; one operation is one update."""

    SET = enum.auto()  # write the register
    DELETE = enum.auto()  # write a tombstone to the register
    INCREMENT = enum.auto()
    EXPIRE = enum.auto()  # write the deadline; 0 takes it away
    REAP = enum.auto()  # remove what is past its deadline
    WRITE = enum.auto()  # write elements of a kind, each in the place of what it has observed of it
    REMOVE = enum.auto()  # remove elements of a kind
    COUNT = enum.auto()  # add to elements of a kind
    MOVE = enum.auto()  # make, use up or hand over rights of a bounded counter


WRITING = (Action.WRITE, Action.COUNT, Action.MOVE)


@dataclass(frozen=True, slots=True)
class Effect:
    """One update. `deadline_ms` None says nothing about the deadline; `clears`: removes what it observed of these."""

    key: bytes
    action: Action
    kind: Kind = Kind.STRING  # of the elements that `names` are
    names: tuple[bytes, ...] = ()
    values: tuple[bytes, ...] = ()
    amount: int = 0
    deadline_ms: int | None = None
    clears: frozenset[Kind] = frozenset()
    dot: Dot = UNSTAMPED
    observed: frozenset[Dot] = frozenset()
    takes: frozenset[Taken] = frozenset()
    ends: Dot = UNSTAMPED  # the register write that it removes without writing the register itself
    grants: tuple[Grant, ...] = ()  # of a bounded counter, whose creations are writes of an element b""
    gap: tuple[bytes | None, bytes | None] = (None, None)  # of a sequence's new items: what lies on both sides

    @property
    def writes_register(self) -> bool:
        return self.action in (Action.SET, Action.DELETE)

    def value_of(self, name: bytes) -> bytes:
        return self.values[self.names.index(name)] if self.values else b""


@dataclass(slots=True)
class Number:
    """A register with increments on top: a string, or a field of a map. Elements of other kinds are like fields."""

    text: bytes | None = None  # of the register that wins
    text_dot: Dot = UNSTAMPED
    values: list[Effect] = field(default_factory=list)  # of an element: the writes that nothing removed
    increments: list[Effect] = field(default_factory=list)  # those that nothing removed

    @property
    def alive(self) -> bool:
        return self.text is not None or bool(self.increments)

    @property
    def newest(self) -> Dot:
        """The newest dot among the live parts."""
        return max([self.text_dot, *(effect.dot for effect in self.increments)])

    @property
    def total(self) -> int | None:
        """The exact integer value; None when a text that is none is what shows."""
        live = sum(effect.amount for effect in self.increments)
        if self.text is None:
            return live
        base = integer_of(self.text)
        if base is not None:
            return base + live
        return live if self.newest != self.text_dot else None

    @property
    def shown(self) -> bytes:
        if self.text is not None and not self.increments:
            return self.text
        total = self.total
        if total is None:
            assert self.text is not None
            return self.text
        return b"%d" % clamp(total)

    def increment_refused(self, amount: int, origin: int) -> Refusal | None:
        """Why `amount` can't be added here: the result, or this origin's own live share, would leave int64."""
        if self.total is None:
            return Refusal.NOT_AN_INTEGER
        own = sum(effect.amount for effect in self.increments if effect.dot.origin == origin)
        fits = all(INT64_MIN <= result <= INT64_MAX for result in (self.total + amount, own + amount))
        return None if fits else Refusal.OVERFLOW


@dataclass(slots=True)
class View:
    """What a key holds, regardless of the time."""

    string: Number
    elements: dict[Kind, dict[bytes, Number]]  # the ones that are alive
    newest: dict[Kind, Dot]  # of the kinds that are alive
    deadline_ms: int  # the effective one; 0: none
    register: Dot  # of the register write that wins, even if it was removed

    def visible(self, now_ms: int) -> Kind | None:
        """The kind that shows; None when nothing is alive, or the deadline has come."""
        if not self.newest or 0 < self.deadline_ms <= now_ms:
            return None
        return max(self.newest, key=lambda kind: self.newest[kind])

    def reading(self, now_ms: int) -> Reading:
        """What every region must answer."""
        match self.visible(now_ms):
            case None:
                return None
            case Kind.STRING:
                return Kind.STRING, self.string.shown
            case kind:
                return kind, SHOWN[kind](self.elements[kind])

    def values_of(self, kind: Kind, name: bytes = b"") -> list[bytes]:
        """The values of the writes of an element that nothing removed, oldest first."""
        number = self.elements[kind].get(name)
        return [] if number is None else values_in(number, name)


def values_in(number: Number, name: bytes = b"") -> list[bytes]:
    return [effect.value_of(name) for effect in sorted(number.values, key=by_dot)]


def shown_score(number: Number) -> float:
    base = score_of(number.text) if number.text is not None else 0.0
    return base + QUARTER * sum(effect.amount for effect in number.increments)


def shown_scores(elements: dict[bytes, Number]) -> tuple[tuple[bytes, float], ...]:
    scores = [(name, shown_score(number)) for name, number in elements.items()]
    return tuple(sorted(scores, key=lambda pair: (pair[1], pair[0])))


def shown_items(elements: dict[bytes, Number]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name, elements[name].text or b"") for name in sorted(elements))


def minimums_in(elements: dict[bytes, Number]) -> dict[Dot, int]:
    """The creations of a bounded counter that nothing ended."""
    return {effect.dot: int(effect.values[0]) for effect in elements[b""].values} if elements else {}


def grants_in(elements: dict[bytes, Number]) -> list[Grant]:
    """All that was ever made, used up or handed over; what the update itself creates is named by its dot."""
    moves = elements[b""].increments if elements else []
    return [grant._replace(generation=grant.generation or move.dot) for move in moves for grant in move.grants]


Elements = dict[bytes, Number]

# What a kind shows, from its live elements.
SHOWN: dict[Kind, Callable[[Elements], Shown]] = {
    Kind.SET: frozenset,
    Kind.MAP: lambda fields: tuple(sorted((name, number.shown) for name, number in fields.items())),
    Kind.MULTI: lambda elements: tuple(values_in(elements[b""])),
    Kind.FLAG: bool,
    Kind.MAX: lambda elements: max(map(int64_of, values_in(elements[b""]))),
    Kind.MIN: lambda elements: min(map(int64_of, values_in(elements[b""]))),
    Kind.HYPERLOGLOG: lambda groups: estimate({g: union(*values_in(held, g)) for g, held in groups.items()}),
    Kind.SORTED_SET: shown_scores,
    Kind.BOUNDED: lambda elements: rights.shown(minimums_in(elements), grants_in(elements)),
    Kind.SEQUENCE: shown_items,
}


def view(effects: Sequence[Effect], *, so_far: bool = False) -> View:
    """What a key holds whose updates are `effects`, in any order."""

    def removed(kind: Kind, name: bytes, removers: Iterable[Effect]) -> frozenset[Dot]:
        removers = [effect for effect in effects if kind in effect.clears] + list(removers)
        if so_far:
            taken = frozenset[Taken]().union(*(effect.takes for effect in removers))
            return frozenset(dot for of_kind, of_name, dot in taken if (of_kind, of_name) == (kind, name))
        return frozenset[Dot]().union(*(effect.observed for effect in removers))

    newest: dict[Kind, Dot] = {}

    gone = removed(Kind.STRING, b"", [])
    string = Number(increments=[e for e in effects if e.action is Action.INCREMENT and e.dot not in gone])
    register = UNSTAMPED
    writes = [effect for effect in effects if effect.writes_register]
    ending = [effect for effect in effects if Kind.STRING in effect.clears and not effect.writes_register]
    ended = {effect.ends for effect in ending}
    if not so_far:
        ended = {write.dot for write in writes if any(write.dot in effect.observed for effect in ending)}
    register = max(ended | {write.dot for write in writes}, default=UNSTAMPED)
    for write in writes:
        if write.dot == register and write.action is Action.SET and write.dot not in ended:
            string.text, string.text_dot = write.values[0], write.dot
    if string.alive:
        newest[Kind.STRING] = string.newest

    elements: dict[Kind, Elements] = {kind: {} for kind in COLLECTIONS}
    for (kind, name), touches in by_element(effects).items():
        # A write replaces the ones that it observed, so it removes them too.
        # An increment removes none; but so far it may take older ones of its origin that were gone where it was issued.
        gone = removed(kind, name, [effect for effect in touches if so_far or effect.action is not Action.COUNT])
        left = [effect for effect in touches if effect.dot not in gone]
        number = Number(increments=[effect for effect in left if effect.action is Action.COUNT])
        number.values = [effect for effect in left if effect.action is Action.WRITE]
        if number.values:
            shown = max(number.values, key=by_dot)
            number.text, number.text_dot = shown.value_of(name), shown.dot
        if number.alive:
            elements[kind][name] = number
    if elements[Kind.BOUNDED]:
        elements[Kind.BOUNDED][b""].increments = [effect for effect in effects if effect.grants]
    for kind in COLLECTIONS:
        if elements[kind]:
            # The dot by which a collection competes with other kinds on its key.
            newest[kind] = max(e.dot for e in effects if e.kind is kind and e.action in WRITING)

    deadline = max((effect for effect in effects if effect.deadline_ms is not None), key=by_dot, default=None)
    effective = deadline is not None and deadline.dot >= register
    return View(string, elements, newest, (deadline.deadline_ms or 0) if deadline and effective else 0, register)


def by_element(effects: Iterable[Effect]) -> dict[tuple[Kind, bytes], list[Effect]]:
    """The effects on elements, by element."""
    found: dict[tuple[Kind, bytes], list[Effect]] = {}
    for effect in effects:
        if effect.action in (Action.WRITE, Action.REMOVE, Action.COUNT):
            for name in effect.names:
                found.setdefault((effect.kind, name), []).append(effect)
    return found


def taken_numbers(draft: Effect, seen: View) -> Iterable[tuple[Kind, Action, bytes, Number]]:
    """The string and the elements that a change resets."""
    if Kind.STRING in draft.clears:
        yield Kind.STRING, Action.INCREMENT, b"", seen.string
    for kind, elements in seen.elements.items():
        for name, number in elements.items():
            touched = draft.kind is kind and draft.action in (Action.WRITE, Action.REMOVE) and name in draft.names
            if kind in draft.clears or touched:
                yield kind, Action.COUNT, name, number


def taken(draft: Effect, seen: View, effects: Sequence[Effect]) -> frozenset[Taken]:
    """What a change issued on top of `effects` names as removed: what it finds alive.

    Of a counter it names, for every origin with a live increment, all of that origin's so far.
    """
    takes: set[Taken] = set()
    for kind, action, name, number in taken_numbers(draft, seen):
        takes.update((kind, name, value.dot) for value in number.values)
        origins = {increment.dot.origin for increment in number.increments}
        takes.update(
            (kind, name, effect.dot)
            for effect in effects
            if effect.action is action
            and effect.dot.origin in origins
            and (kind is Kind.STRING or (effect.kind is kind and name in effect.names))
        )
    return frozenset(takes)


def plan(request: Request, effects: Sequence[Effect], now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    """The answer to a request that observes `effects`, and the effect it issues, without a dot; None: none."""
    seen = view(effects, so_far=True)
    visible = seen.visible(now_ms)
    wanted = KIND_OF.get(request.verb)
    if wanted is not None and visible not in (None, wanted) and request.verb is not Verb.SET:
        return Refusal.WRONG_TYPE, None
    if visible is None and seen.deadline_ms:
        # Expired, or emptied while a deadline stood: the old life of the key ends when a new one begins.
        reply, draft = PLANNERS[request.verb](request, view([]), now_ms, origin)
        if draft is not None and not draft.writes_register:
            draft = replace(draft, clears=ALL_KINDS, deadline_ms=0)
        return reply, draft
    reply, draft = PLANNERS[request.verb](request, seen, now_ms, origin)
    if draft is not None and wanted is not None and not draft.writes_register:
        draft = replace(draft, clears=ALL_KINDS - {wanted})
    return reply, draft


def plan_reap(key: bytes, effects: Sequence[Effect], now_ms: int) -> Effect | None:
    """What removing an expired key issues; None: there is nothing to remove."""
    seen = view(effects, so_far=True)
    if not seen.newest or seen.visible(now_ms) is not None:
        return None
    return Effect(key, Action.REAP, clears=ALL_KINDS, deadline_ms=0)


def stamp(draft: Effect, dot: Dot, effects: Sequence[Effect]) -> Effect:
    """Name an effect that observes `effects`."""
    seen = view(effects, so_far=True)
    ends = UNSTAMPED
    if Kind.STRING in draft.clears and not draft.writes_register and seen.string.text is not None:
        ends = seen.string.text_dot
    if draft.kind is Kind.SEQUENCE and draft.action is Action.WRITE and not draft.names:
        draft = replace(draft, names=tuple(between(*draft.gap, dot.origin, dot.timestamp, len(draft.values))))
    observed = frozenset(effect.dot for effect in effects)
    takes = taken(draft, seen, effects) | restarted(draft, dot.origin, seen, effects)
    return replace(draft, dot=dot, observed=observed, takes=takes, ends=ends)


def restarted(draft: Effect, origin: int, seen: View, effects: Sequence[Effect]) -> frozenset[Taken]:
    """A score's increment, where none of its origin's is left, names all older ones as gone: its total begins anew."""
    if draft.kind is not Kind.SORTED_SET or draft.action is not Action.COUNT:
        return frozenset()
    name = draft.names[0]
    older = [effect for effect in by_element(effects).get((draft.kind, name), ()) if effect.dot.origin == origin]
    left = seen.elements[draft.kind].get(name, Number()).increments
    if any(effect.dot.origin == origin for effect in left):
        return frozenset()
    return frozenset((draft.kind, name, effect.dot) for effect in older if effect.action is Action.COUNT)


def plan_get(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    return (seen.string.shown if seen.visible(now_ms) is not None else None), None


def plan_set(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    deadline_ms: int | None = request.deadline_ms or None
    if request.keep_deadline:
        deadline_ms = seen.deadline_ms or None
    return None, Effect(request.key, Action.SET, values=request.values, deadline_ms=deadline_ms, clears=ALL_KINDS)


def plan_delete(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    if seen.visible(now_ms) is None:
        return 0, None
    return 1, Effect(request.key, Action.DELETE, clears=ALL_KINDS)


def plan_increment(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    refusal = seen.string.increment_refused(request.amount, origin)
    if refusal is not None:
        return refusal, None
    assert seen.string.total is not None
    return seen.string.total + request.amount, Effect(request.key, Action.INCREMENT, amount=request.amount)


def plan_expire(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    if seen.visible(now_ms) is None:
        return 0, None
    if request.deadline_ms <= now_ms:
        return 1, Effect(request.key, Action.DELETE, clears=ALL_KINDS)
    return 1, Effect(request.key, Action.EXPIRE, deadline_ms=request.deadline_ms)


def plan_persist(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    if seen.visible(now_ms) is None or not seen.deadline_ms:
        return 0, None
    return 1, Effect(request.key, Action.EXPIRE, deadline_ms=0)


def plan_write(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    kind = KIND_OF[request.verb]
    added = sum(name not in seen.elements[kind] for name in request.names)
    return added, Effect(request.key, Action.WRITE, kind, names=request.names, values=request.values)


def plan_remove(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    kind = KIND_OF[request.verb]
    present = tuple(name for name in request.names if name in seen.elements[kind])
    return len(present), Effect(request.key, Action.REMOVE, kind, names=present) if present else None


def plan_field_increment(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    name = request.names[0]
    number = seen.elements[Kind.MAP].get(name, Number())
    refusal = number.increment_refused(request.amount, origin)
    if refusal is not None:
        return refusal, None
    assert number.total is not None
    effect = Effect(request.key, Action.COUNT, Kind.MAP, names=request.names, amount=request.amount)
    return number.total + request.amount, effect


def plan_register(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    """A multi-value register or a flag is written."""
    values = request.values or (b"",)
    return None, Effect(request.key, Action.WRITE, KIND_OF[request.verb], names=(b"",), values=values)


def plan_disable(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    enabled = bool(seen.elements[Kind.FLAG])
    return int(enabled), Effect(request.key, Action.REMOVE, Kind.FLAG, names=(b"",)) if enabled else None


def plan_extreme(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    """Only what beats the value that shows here is an update at all."""
    kind = KIND_OF[request.verb]
    better = max if kind is Kind.MAX else min
    shown = [int64_of(value) for value in seen.values_of(kind)]
    best = better([*shown, request.amount])
    if best in shown:
        return best, None
    return best, Effect(request.key, Action.WRITE, kind, names=(b"",), values=(int64_bytes(best),))


def plan_sketch_add(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    """A write of a group of registers includes what it observed: so a delete may leave some of what it had seen."""
    raised = {}
    for name, group in groups_of(request.names).items():
        shown = union(*seen.values_of(Kind.HYPERLOGLOG, name))
        if union(shown, group) != shown:
            raised[name] = union(shown, group)
    if not raised:
        return 0, None
    effect = Effect(request.key, Action.WRITE, Kind.HYPERLOGLOG, names=tuple(raised), values=tuple(raised.values()))
    return 1, effect


def plan_score_increment(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    number = seen.elements[Kind.SORTED_SET].get(request.names[0], Number())
    effect = Effect(request.key, Action.COUNT, Kind.SORTED_SET, names=request.names, amount=request.amount)
    return shown_score(number) + QUARTER * request.amount, effect


def plan_score_pop(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    held = shown_scores(seen.elements[Kind.SORTED_SET])
    if not held:
        return None, None
    name = held[-1 if request.amount < 0 else 0][0]
    return name, Effect(request.key, Action.REMOVE, Kind.SORTED_SET, names=(name,))


def plan_bounded_increment(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    elements = seen.elements[Kind.BOUNDED]
    if not elements:
        grant = Grant(None, rights.NOBODY, origin, request.amount)
        effect = Effect(request.key, Action.WRITE, Kind.BOUNDED, (b"",), request.values, grants=(grant,))
        return int(request.values[0]) + request.amount, effect
    minimums, grants = minimums_in(elements), grants_in(elements)
    grant = Grant(max(minimums), rights.NOBODY, origin, request.amount)
    effect = Effect(request.key, Action.MOVE, Kind.BOUNDED, grants=(grant,))
    return rights.shown(minimums, grants)[0] + request.amount, effect


def plan_bounded_spend(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    elements = seen.elements[Kind.BOUNDED]
    minimums, grants = minimums_in(elements), grants_in(elements)
    taker = int(request.names[0]) if request.verb is Verb.BOUNDED_TRANSFER else rights.NOBODY
    spent = rights.spend(minimums, grants, origin, taker, request.amount)
    if spent is None:
        return Refusal.NO_RIGHTS, None
    if taker == origin:
        return None, None
    effect = Effect(request.key, Action.MOVE, Kind.BOUNDED, grants=tuple(spent))
    return None if taker else rights.shown(minimums, grants)[0] - request.amount, effect


def plan_item_insert(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    names = sorted(seen.elements[Kind.SEQUENCE])
    index = min(request.amount, len(names))
    gap = (names[index - 1] if index else None, names[index] if index < len(names) else None)
    return None, Effect(request.key, Action.WRITE, Kind.SEQUENCE, values=request.values, gap=gap)


def plan_item_change(request: Request, seen: View, now_ms: int, origin: int) -> tuple[Reply, Effect | None]:
    held = shown_items(seen.elements[Kind.SEQUENCE])
    removes = request.verb is Verb.ITEM_REMOVE
    if request.amount >= len(held):
        return None if removes else 0, None
    name, value = held[request.amount]
    if removes:
        return value, Effect(request.key, Action.REMOVE, Kind.SEQUENCE, names=(name,))
    return 1, Effect(request.key, Action.WRITE, Kind.SEQUENCE, names=(name,), values=request.values)


PLANNERS = {
    Verb.GET: plan_get,
    Verb.SET: plan_set,
    Verb.DELETE: plan_delete,
    Verb.INCREMENT: plan_increment,
    Verb.EXPIRE: plan_expire,
    Verb.PERSIST: plan_persist,
    Verb.ADD: plan_write,
    Verb.REMOVE: plan_remove,
    Verb.FIELD_SET: plan_write,
    Verb.FIELD_REMOVE: plan_remove,
    Verb.FIELD_INCREMENT: plan_field_increment,
    Verb.MULTI_SET: plan_register,
    Verb.FLAG_ENABLE: plan_register,
    Verb.FLAG_DISABLE: plan_disable,
    Verb.MAX_UPDATE: plan_extreme,
    Verb.MIN_UPDATE: plan_extreme,
    Verb.SKETCH_ADD: plan_sketch_add,
    Verb.SCORE_SET: plan_write,
    Verb.SCORE_REMOVE: plan_remove,
    Verb.SCORE_INCREMENT: plan_score_increment,
    Verb.SCORE_POP: plan_score_pop,
    Verb.BOUNDED_INCREMENT: plan_bounded_increment,
    Verb.BOUNDED_DECREMENT: plan_bounded_spend,
    Verb.BOUNDED_TRANSFER: plan_bounded_spend,
    Verb.ITEM_INSERT: plan_item_insert,
    Verb.ITEM_REMOVE: plan_item_change,
    Verb.ITEM_SET: plan_item_change,
}
