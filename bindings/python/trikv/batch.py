"""Many steps at once: with a ring, all layers of a token at one doorbell."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from . import _abi
from .step import Floats, Step, append_attend_step, append_step, attend_step

if TYPE_CHECKING:
    from typing_extensions import Self

    from .session import Session


class Batch:
    """Made by Session.batch. Its steps are done in order when the block ends, and outputs hold
    nothing before; the first that fails is raised, and those after it are not done.

        with session.batch() as batch:
            outs = [batch.append_attend(i, k[i], v[i], q[i]) for i in range(session.n_layers)]
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._steps: list[tuple[int, Step]] = []

    def append(self, layer: int, k: ArrayLike, v: ArrayLike | None, *,
               positions: ArrayLike | None = None, dtype: str | None = None,
               token_ids: ArrayLike | None = None) -> None:
        """As Session.append."""
        g = self._session.geometry(layer)
        self._steps.append((_abi.STEP_APPEND,
                            append_step(g, layer, k, v, positions, dtype, token_ids)))

    def attend(self, layer: int, q: ArrayLike, *, positions: ArrayLike | None = None,
               dtype: str | None = None, out: Floats | None = None,
               lse: Floats | None = None) -> Floats:
        """As Session.attend."""
        g = self._session.geometry(layer)
        step, result = attend_step(g, layer, q, positions, dtype, out, lse)
        self._steps.append((_abi.STEP_ATTEND, step))
        return result

    def append_attend(self, layer: int, k: ArrayLike, v: ArrayLike | None, q: ArrayLike, *,
                      positions: ArrayLike | None = None, dtype: str | None = None,
                      out: Floats | None = None, lse: Floats | None = None,
                      token_ids: ArrayLike | None = None) -> Floats:
        """As Session.append_attend."""
        g = self._session.geometry(layer)
        step, result = append_attend_step(g, layer, k, v, q, positions, dtype, out, lse, token_ids)
        self._steps.append((_abi.STEP_APPEND_ATTEND, step))
        return result

    def run(self) -> None:
        """Do what was collected, now; then the batch is empty."""
        steps, self._steps = self._steps, []
        with self._session.client.lock:
            for kind, group in groupby(steps, key=itemgetter(0)):
                self._session.run_steps(kind, [step for _, step in group])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is None:
            self.run()
