"""A run that is killed goes on from its last round, pays for what was released twice and for nothing else."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet
import pytest
import torch
from torch import Tensor

from accounting import mechanisms
from accounting.accountant import epsilon
from accounting.budget import BudgetExceeded
from federation import server
from federation.plan import FederatedPlan
from federation.population import Members
from federation.run import FederatedRun
from federation.server import federate
from federation.sums import SentRows, UserSums
from federation.task import Task
from privads.logs.logs import Logs
from privads.models import Logistic
from privads.training import working
from privads.training.fit import Checkpoint
from privads.training.working import CheckpointError
from tests.federation.helpers import USERS, logs, plan, private_logs, twin
from tests.privads.training.helpers import new_ledger

LIMIT = 200.0


class KilledError(BaseException):
    """Stands for the end of a process: nothing catches it."""


class Dying:
    """Parties whose process ends while round ``at`` is under way; what they were sent is kept."""

    def __init__(self, log: Logs, at: int, after: int = 0) -> None:
        self.inner, self.at, self.after, self.sent = Members(log), at, after, {}
        self.schema, self.silos, self.split, self.features = log.schema, 1, "all rows", None
        self.backend, self.not_covered = "this process", ()
        self.check, self.open = self.inner.check, self.inner.open
        self.standing, self.restore = self.inner.standing, self.inner.restore

    def sums(self, number: int, weights: Mapping[str, Tensor], *, clip_norm: float) -> Iterator[UserSums]:
        self.sent[number] = {name: one.clone() for name, one in weights.items()}
        found = list(self.inner.sums(number, weights, clip_norm=clip_norm))
        if number == self.at:
            raise KilledError
        yield from found


def task_of(log: Logs) -> Task:
    torch.manual_seed(0)
    return Task(model=Logistic(log.schema), local_learning_rate=0.5, rows_per_user=3)


def serve(log: Logs, found: FederatedPlan, parties: Any, **settings: Any) -> FederatedRun:
    return server.serve(task_of(log), parties, found, **settings)


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_killed_run_goes_on_from_the_last_round_under_its_own_charge(at: int, tmp_path: Path) -> None:
    log, found = private_logs(tmp_path), plan(clip_quantile=0.5)
    ledger = new_ledger(tmp_path, epsilon=LIMIT)
    file = tmp_path / "kept" / "round"
    dying = Dying(log, at)
    with pytest.raises(KilledError):
        serve(log, found, dying, ledger=ledger, checkpoint=Checkpoint(path=file))
    again = Dying(log, 0)
    run = serve(log, found, again, ledger=ledger, checkpoint=Checkpoint(path=file, resume=True))
    assert run.rounds_done == found.rounds
    assert min(again.sent) == at  # rounds before it are not repeated
    for name, one in again.sent[at].items():
        assert torch.equal(one, dying.sent[at][name])  # who listens learns nothing new of it
    assert [one.state for one in ledger.history("small")] == ["committed"]
    assert not file.exists()


def test_every_round_is_on_the_disk_before_the_next_one_begins(tmp_path: Path) -> None:
    log, found = private_logs(tmp_path), plan()
    file = tmp_path / "kept" / "round"

    class Looking(Dying):
        def sums(self, number: int, weights: Mapping[str, Tensor], *, clip_norm: float) -> Iterator[UserSums]:
            kept = working.read(file)
            assert kept["done"] == number - 1
            assert all(torch.equal(kept["weights"][name], one) for name, one in weights.items())
            return super().sums(number, weights, clip_norm=clip_norm)

    run = serve(
        log, found, Looking(log, 0), ledger=new_ledger(tmp_path, epsilon=LIMIT), checkpoint=Checkpoint(path=file)
    )
    assert run.rounds_done == found.rounds


def test_a_second_process_on_the_same_checkpoint_pays_for_the_rest(tmp_path: Path) -> None:
    log, found = private_logs(tmp_path), plan()
    ledger = new_ledger(tmp_path, epsilon=LIMIT)
    file, copy = tmp_path / "kept" / "round", tmp_path / "kept" / "copy"
    with pytest.raises(KilledError):
        serve(log, found, Dying(log, 3), ledger=ledger, checkpoint=Checkpoint(path=file))
    copy.write_bytes(file.read_bytes())
    copy.chmod(0o600)
    for path in (file, copy):
        run = serve(log, found, Members(log), ledger=ledger, checkpoint=Checkpoint(path=path, resume=True))
        assert run.rounds_done == found.rounds
    assert len(ledger.history("small")) == 2


def test_where_going_on_costs_more_than_is_left_the_run_ends_and_keeps_its_model(tmp_path: Path) -> None:
    log, found = private_logs(tmp_path), plan()
    ledger = new_ledger(tmp_path, epsilon=found.spent.upper * 1.01)
    file, copy = tmp_path / "kept" / "round", tmp_path / "kept" / "copy"
    dying = Dying(log, 3)
    with pytest.raises(KilledError):
        serve(log, found, dying, ledger=ledger, checkpoint=Checkpoint(path=file))
    copy.write_bytes(file.read_bytes())
    copy.chmod(0o600)
    serve(log, found, Members(log), ledger=ledger, checkpoint=Checkpoint(path=file, resume=True))
    ended = serve(log, found, Members(log), ledger=ledger, checkpoint=Checkpoint(path=copy, resume=True))
    assert ended.rounds_done == 2
    now = dict(ended.model.named_parameters())
    assert all(torch.equal(now[name], one) for name, one in dying.sent[3].items())
    assert len(ledger.history("small")) == 1


def test_a_repeated_round_of_local_noise_is_charged_again(tmp_path: Path) -> None:
    log, found = private_logs(tmp_path), plan(neighbors="replace", mechanism="local", participations=2)
    ledger = new_ledger(tmp_path, epsilon=LIMIT, neighbors="replace")
    file = tmp_path / "kept" / "round"
    with pytest.raises(KilledError):
        serve(log, found, Dying(log, 3), ledger=ledger, checkpoint=Checkpoint(path=file))
    run = serve(log, found, Members(log), ledger=ledger, checkpoint=Checkpoint(path=file, resume=True))
    first, again = ledger.history("small")
    assert "round 3" in again.purpose
    assert 0 < again.epsilon < first.epsilon
    assert run.resumptions[0].entry == again.id
    assert [first.state, again.state] == ["committed", "committed"]


def test_the_report_counts_what_users_sent_in_a_round_that_was_lost(tmp_path: Path) -> None:
    """Everyone sends one update in round 1, and one more after the server was killed: noise 3, replaced users."""
    log, found = private_logs(tmp_path), plan(neighbors="replace", mechanism="local", participations=1, cohort=USERS)
    ledger, file = new_ledger(tmp_path, epsilon=LIMIT, neighbors="replace"), tmp_path / "kept" / "round"
    with pytest.raises(KilledError):
        serve(log, found, Dying(log, 1), ledger=ledger, checkpoint=Checkpoint(path=file))
    run = serve(log, found, Members(log), ledger=ledger, checkpoint=Checkpoint(path=file, resume=True))
    report = run.report()
    twice = mechanisms.repeated(mechanisms.gaussian(noise_multiplier=3.0), 2)
    assert report.guarantee is not None
    assert report.guarantee.epsilon == run.epsilon.upper == epsilon(twice, delta=1e-5, neighbors="replace").upper
    assert report.guarantee.epsilon > found.spent.upper
    assert any("more than 2 updates" in one.text for one in report.assumptions)


def test_how_often_users_sent_an_update_survives_the_server(tmp_path: Path) -> None:
    log, found = private_logs(tmp_path), plan(neighbors="replace", mechanism="local", participations=1, cohort=200)
    ledger = new_ledger(tmp_path, epsilon=LIMIT, neighbors="replace")
    file = tmp_path / "kept" / "round"
    with pytest.raises(KilledError):
        serve(log, found, Dying(log, 4), ledger=ledger, checkpoint=Checkpoint(path=file))
    resumed = Dying(log, 0)
    serve(log, found, resumed, ledger=ledger, checkpoint=Checkpoint(path=file, resume=True))
    (sent,) = resumed.standing()["sent"]
    assert int(sent.max()) == 1  # of the rounds that were kept, and those after


def changed(log: Logs) -> Logs:
    """Returns the log after its first user has gone, and another one has come, as last."""
    table = pyarrow.parquet.read_table(log.path)
    first = table["user"][0]
    rest = table.filter(pyarrow.compute.not_equal(table["user"], first))
    user = pyarrow.array(["new"])
    one = table.slice(0, 1).set_column(table.schema.get_field_index("user"), "user", user)
    path = Path(log.path).with_name("changed.parquet")
    pyarrow.parquet.write_table(pyarrow.concat_tables([rest, one]), path)
    return Logs(path, log.schema)


def test_what_users_have_sent_is_not_counted_for_others(tmp_path: Path) -> None:
    log, found = private_logs(tmp_path), plan(neighbors="replace", mechanism="local", participations=1)
    ledger, file = new_ledger(tmp_path, epsilon=LIMIT, neighbors="replace"), tmp_path / "kept" / "round"
    with pytest.raises(KilledError):
        serve(log, found, Dying(log, 3), ledger=ledger, checkpoint=Checkpoint(path=file))
    other = changed(log)
    with pytest.raises(CheckpointError, match="users are not those"):
        serve(other, found, Members(other), ledger=ledger, checkpoint=Checkpoint(path=file, resume=True))


def test_who_has_come_or_gone_decides_nothing_where_no_user_is_counted(tmp_path: Path) -> None:
    log, ledger, file = private_logs(tmp_path), new_ledger(tmp_path, epsilon=LIMIT), tmp_path / "kept" / "round"
    with pytest.raises(KilledError):
        serve(log, plan(), Dying(log, 3), ledger=ledger, checkpoint=Checkpoint(path=file))
    assert not working.read(file)["parties"]["sent"]  # nor does the file say who took part
    table = pyarrow.parquet.read_table(log.path)
    fewer = table.filter(pyarrow.compute.not_equal(table["user"], table["user"][0]))
    pyarrow.parquet.write_table(fewer, tmp_path / "fewer.parquet")
    rest = Logs(tmp_path / "fewer.parquet", log.schema)
    run = serve(rest, plan(), Members(rest), ledger=ledger, checkpoint=Checkpoint(path=file, resume=True))
    assert run.rounds_done == plan().rounds


@pytest.mark.parametrize("first", [True, False])
def test_a_report_does_not_claim_of_all_rounds_what_held_after_a_resume_alone(first: bool, tmp_path: Path) -> None:
    log, ledger, file = private_logs(tmp_path), new_ledger(tmp_path, epsilon=LIMIT), tmp_path / "kept" / "round"

    @contextlib.contextmanager
    def dying(_: FederatedPlan) -> Iterator[Callable[[int], None]]:
        def show(_: int) -> None:
            raise KilledError

        yield show

    before, after = (Members([log, log], shared_units=one) for one in (first, not first))
    with pytest.raises(KilledError):
        serve(log, plan(), before, ledger=ledger, checkpoint=Checkpoint(path=file), progress=dying)
    with pytest.raises(CheckpointError, match="shared_units"):
        serve(log, plan(), after, ledger=ledger, checkpoint=Checkpoint(path=file, resume=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: {"plan": plan(rounds=6)}, "another rounds"),
        (lambda log: {"task": Task(model=Logistic(log.schema), local_learning_rate=0.6, rows_per_user=3)}, "another"),
        (lambda _: {"optimizer": lambda weights: torch.optim.SGD(weights, lr=2.0)}, "another step"),
        (lambda _: {"optimizer": lambda weights: torch.optim.Adam(weights, lr=1.0)}, "another optimizer"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    log, ledger = private_logs(tmp_path), new_ledger(tmp_path, epsilon=LIMIT)
    file = tmp_path / "kept" / "round"
    with pytest.raises(KilledError):
        serve(log, plan(), Dying(log, 2), ledger=ledger, checkpoint=Checkpoint(path=file))
    given = {"plan": plan(), "task": task_of(log), **change(log)}
    kept = Checkpoint(path=file, resume=True)
    with pytest.raises(CheckpointError, match=message):
        federate(given.pop("task"), log, given.pop("plan"), ledger=ledger, checkpoint=kept, **given)
    assert len(ledger.history("small")) == 1


def test_a_checkpoint_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    log, ledger = private_logs(tmp_path), new_ledger(tmp_path, epsilon=LIMIT)
    file = tmp_path / "kept" / "round"
    with pytest.raises(KilledError):
        serve(log, plan(), Dying(log, 2), ledger=ledger, checkpoint=Checkpoint(path=file))
    with pytest.raises(CheckpointError, match="resume it"):
        federate(task_of(log), log, plan(), ledger=ledger, checkpoint=Checkpoint(path=file))
    with pytest.raises(ValueError, match="leave out every"):
        federate(task_of(log), log, plan(), ledger=ledger, checkpoint=Checkpoint(path=file, every=2, resume=True))


def test_users_of_silos_are_drawn_alike_wherever_the_silo_is(tmp_path: Path) -> None:
    log = logs(tmp_path)
    runs = [federate(task_of(log), [log, log], twin(cohort=20), insecure_seed=3) for _ in range(2)]
    first, second = (dict(one.model.named_parameters()) for one in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


# Tables that owe noise


class Lazily(Dying):
    """Parties that name rows, whose process ends in round ``at``: while they name rows, as they are sent any, or after
    they answered. What they were sent is kept, and what was on the disk then."""

    def __init__(self, log: Logs, at: int, stage: str, file: Path) -> None:
        super().__init__(log, at)
        self.stage, self.file = stage, file

    def named(self, number: int) -> Mapping[str, Tensor]:
        if number == self.at and self.stage == "naming":
            raise KilledError
        return self.inner.named(number)

    def sums(self, number: int, weights: Mapping[str, Any], *, clip_norm: float) -> Iterator[UserSums]:
        kept = working.read(self.file)
        for name, one in weights.items():  # what leaves the server is on the disk, and owes nothing there
            if isinstance(one, SentRows):
                assert torch.equal(kept["weights"][name][one.ids], one.values)
                assert (kept["owed"][name]["settled"][one.ids] == kept["owed"][name]["debt"]["steps"]).all()
            else:
                assert torch.equal(kept["weights"][name], one)
        self.sent[number] = dict(weights)
        if number == self.at and self.stage == "sent":
            raise KilledError
        yield from self.inner.sums(number, weights, clip_norm=clip_norm)
        if number == self.at and self.stage == "answered":
            raise KilledError


def nothing_is_repeated(folder: Path, at: int, stage: str) -> bool:
    """Whether a run that was killed and goes on sends each row of a round, and all other weights, as it did before."""
    log, found = private_logs(folder), plan(table_noise="lazy", cohort=20, rounds=6, clip_quantile=0.5)
    ledger, file = new_ledger(folder, epsilon=LIMIT), folder / "kept" / "round"
    dying = Lazily(log, at, stage, file)
    with pytest.raises(KilledError):
        serve(log, found, dying, ledger=ledger, checkpoint=Checkpoint(path=file))
    again = Lazily(log, 0, stage, file)
    run = serve(log, found, again, ledger=ledger, checkpoint=Checkpoint(path=file, resume=True))
    assert run.rounds_done == found.rounds
    assert min(again.sent) == at - (stage == "naming")  # whose answers had reached no one but the server
    assert [one.state for one in ledger.history("small")] == ["committed"]
    return all(same(dying.sent[number], again.sent[number]) for number in dying.sent.keys() & again.sent.keys())


def same(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    for name, sent in one.items():
        if not isinstance(sent, SentRows):
            if not torch.equal(sent, two[name]):
                return False
            continue
        both = sorted(set(sent.ids.tolist()) & set(two[name].ids.tolist()))
        assert both  # of two cohorts of about 20 users
        rows = torch.tensor(both)
        if not torch.equal(sent.at(rows), two[name].at(rows)):
            return False
    return True


@pytest.mark.parametrize(
    ("at", "stage"), [(1, "sent"), (1, "answered"), (4, "naming"), (4, "sent"), (4, "answered"), (6, "answered")]
)
def test_a_server_killed_anywhere_sends_no_row_with_other_noise(at: int, stage: str, tmp_path: Path) -> None:
    assert nothing_is_repeated(tmp_path, at, stage)


def test_rows_that_are_settled_after_they_were_kept_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = server.settle

    def unkept(owed: Any, named: Any, randomness: Any) -> None:
        """Settles what is sent and leaves on the disk what was before."""
        before = copy.deepcopy(owed)
        own(owed, named, randomness)
        monkeypatch.setattr(
            server,
            "_packed",
            lambda state, *rest: packed(
                dataclasses.replace(
                    state,
                    owed=before,
                    weights={**state.weights, **{name: one.weight for name, one in before.items()}},
                ),
                *rest,
            ),
        )

    packed = server._packed
    monkeypatch.setattr(server, "settle", unkept)
    monkeypatch.setattr(Lazily, "sums", unlooking)
    assert not nothing_is_repeated(tmp_path, 4, "sent")


def unlooking(self: Any, number: int, weights: Mapping[str, Any], *, clip_norm: float) -> Iterator[UserSums]:
    self.sent[number] = dict(weights)
    if number == self.at:
        raise KilledError
    yield from self.inner.sums(number, weights, clip_norm=clip_norm)


def test_a_second_copy_of_tables_that_owe_noise_pays_for_all_rounds_or_shows_nothing(tmp_path: Path) -> None:
    """Both would draw the noise of rounds before the checkpoint, each its own: two releases of the same sums."""
    log, found = private_logs(tmp_path), plan(table_noise="lazy")
    ledger = new_ledger(tmp_path, epsilon=found.spent.upper * 2.5)
    file, other, third = (tmp_path / "kept" / name for name in ("round", "other", "third"))
    with pytest.raises(KilledError):
        serve(log, found, Lazily(log, 4, "sent", file), ledger=ledger, checkpoint=Checkpoint(path=file))
    for one in (other, third):
        one.write_bytes(file.read_bytes())
        one.chmod(0o600)
    for one in (file, other):
        run = serve(log, found, Members(log), ledger=ledger, checkpoint=Checkpoint(path=one, resume=True))
    first, again = ledger.history("small")
    assert again.epsilon == pytest.approx(first.epsilon)
    assert any("all rounds were charged again" in text for text in run.report().with_status("enforced"))
    assert "steps 1 to 5" in again.purpose
    with pytest.raises(BudgetExceeded):
        serve(log, found, Members(log), ledger=ledger, checkpoint=Checkpoint(path=third, resume=True))
    assert len(ledger.history("small")) == 2


def test_a_run_that_is_killed_as_it_resumes_can_be_resumed_again_for_nothing(tmp_path: Path) -> None:
    log, found = private_logs(tmp_path), plan(table_noise="lazy")
    ledger, file = new_ledger(tmp_path, epsilon=LIMIT), tmp_path / "kept" / "round"
    with pytest.raises(KilledError):
        serve(log, found, Lazily(log, 3, "sent", file), ledger=ledger, checkpoint=Checkpoint(path=file))
    with pytest.raises(KilledError):  # before anything is named or sent
        serve(
            log,
            found,
            Lazily(log, 3, "naming", file),
            ledger=ledger,
            checkpoint=Checkpoint(path=file, resume=True),
        )
    run = serve(log, found, Members(log), ledger=ledger, checkpoint=Checkpoint(path=file, resume=True))
    assert run.rounds_done == found.rounds
    assert len(ledger.history("small")) == 1


def test_the_last_model_is_flushed_and_on_the_disk_before_it_is_handed_out(tmp_path: Path) -> None:
    log, ledger, file = private_logs(tmp_path), new_ledger(tmp_path, epsilon=LIMIT), tmp_path / "kept" / "round"
    found = plan(table_noise="lazy", cohort=1)
    run = serve(log, found, Members(log), ledger=ledger, checkpoint=Checkpoint(path=file, keep=True))
    kept = working.read(file)
    for name, one in run.model.named_parameters():
        assert torch.equal(kept["weights"][name], one)
    assert all((one["settled"] == found.rounds).all() for one in kept["owed"].values())
    again = serve(log, found, Members(log), ledger=ledger, checkpoint=Checkpoint(path=file, resume=True))
    for name, one in again.model.named_parameters():
        assert torch.equal(kept["weights"][name], one)
