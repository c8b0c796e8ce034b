"""Where a layer shows what it computes inside to whoever looks (`train.health`), and to nobody otherwise.

Costs: while nobody looks, one comparison with None in Python, and in a compiled block a guard on it and no
code. A look must run uncompiled: it changes that guard. What is shown is the tensor itself, of the dtype in
which the layer computes; an observer keeps no reference and changes nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

Observer = Callable[..., None]
"""Called with the name of what is shown, one of those below, and what belongs to it:

- "attention": query, key, plan, as `attention.attend` has them.
- "hidden": (..., units), what a feed-forward layer's last map reads.
- "expert_hidden": (pairs, units) of a mixture's experts, sorted by expert, and the `grouped.Groups`.
- "recurrence": rate (batch, length, channels); a (channels, ...) or None, of which rate * a is the log of the
  decay at each token, or the rate itself; and the state that the rows leave.
"""

_observer: Observer | None = None


def show(name: str, *parts: Any) -> None:
    """Let the observer, if there is one, see something."""
    if _observer is not None:
        _observer(name, *parts)


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Within it everything that layers show goes to `observer`; of two the inner one sees it."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before
