"""`Parties`: those among whom a server trains, however they are reached."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from federation.plan import FederatedPlan
from federation.sums import UserSums, Weights
from federation.task import Task
from privads.logs.schema import Schema

if TYPE_CHECKING:
    from federation.canaries import Watch


class Parties(Protocol):
    """Those who train, and how they are reached.

    `federation.server.serve` calls ``check`` before the charge, then ``open``, ``restore`` where a run goes on, and for
    each round ``sums``; `SparseParties` are asked ``named`` before it. Parties that see to it that at most the plan's
    ``silos`` silos use one user's rows (`federation.identity`) say so by an attribute ``limited`` that is true.
    """

    @property
    def schema(self) -> Schema:
        """Of the rows of all of them."""
        ...

    @property
    def silos(self) -> int:
        """How many silos there are."""
        ...

    @property
    def backend(self) -> str:
        """How they are reached, in words."""
        ...

    @property
    def not_covered(self) -> tuple[str, ...]:
        """What reaching them in this way leaves open, for the report."""
        ...

    @property
    def split(self) -> str:
        """Which rows are trained on, in words."""
        ...

    @property
    def features(self) -> Any:
        """The fitted transforms by which rows are read, if any."""
        ...

    def check(self) -> None:
        """Refuse what cannot work, before anything is charged; reads no row."""
        ...

    def open(self, task: Task, plan: FederatedPlan, *, insecure_seed: int | None, secure: bool) -> None:
        """Get ready for the first round; from here on rows may be read."""
        ...

    def sums(self, number: int, weights: Mapping[str, Tensor], *, clip_norm: float) -> Iterable[UserSums]:
        """Yields the clipped sums of round ``number``, from 1, of a cohort that starts at ``weights``."""
        ...

    def standing(self) -> Mapping[str, Any]:
        """Returns what a resume needs to know of the parties, as a working checkpoint can hold it."""
        ...

    def restore(self, standing: Mapping[str, Any]) -> None:
        """Go on from what `standing` was, after `open`."""
        ...


@runtime_checkable
class SparseParties(Parties, Protocol):
    """Parties that tell which rows of tables their users read: for plans of table_noise "lazy" and "adafest".

    Under "adafest" a round is one message each way, and the sums that come back hold ``touched``, the counts of who
    reads each row (``LocalTraining(..., counting=True)``). Under "lazy" parties say what they will read before they are
    sent any of it, and a round is two messages each way. First ``named``: every silo draws its cohort and answers with
    the rows that its users' rows name. The server settles the noise that those rows owe and keeps them on the disk.
    Then ``sums``: the silos are sent those rows (`federation.sums.SentRows`) beside the other parameters, the cohort
    that was drawn trains on them, and the answers are sums of rows and values. A silo must not be sent rows that only
    others named: which those are is private. Who wants a whole table names all of its rows. A silo that does not answer
    the second message is missing from the sum, like any other; one that did not answer the first takes no part in it.
    """

    def named(self, number: int) -> Mapping[str, Tensor]:
        """Returns, per table that is trained, ids (n,) of the rows that round ``number`` reads: each once, ascending.

        Answers from elsewhere must have been checked: whole numbers, of rows that the table has.
        """
        ...

    def sums(self, number: int, weights: Weights, *, clip_norm: float) -> Iterable[UserSums]:
        """Yields the clipped sums of the cohort whose rows were named. weights: of tables, those rows."""
        ...


@runtime_checkable
class PlantedParties(Parties, Protocol):
    """Parties among whose users canaries can be put, see `federation.canaries`."""

    def plant(self, watch: "Watch") -> None:
        """Have what `open` makes hold this audit's canaries."""
        ...
