"""The working checkpoint's file: what goes in comes out, nobody else can open it, and it is whole or not there."""

import math
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from privads.training import working
from privads.training.working import CheckpointError, check_outside, check_place, read, remove, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "secret"
    folder.mkdir(mode=0o700)
    return folder / "run.ckpt"


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def same(left: Any, right: Any) -> bool:
    """Equality by value and by type, bit for bit in tensors; a NaN equals a NaN."""
    if isinstance(left, Tensor):
        flat = [one.detach().contiguous().reshape(-1).view(torch.uint8) for one in (left, right)]
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*flat)
    if isinstance(left, dict):
        # as lists: the order counts too
        return type(right) is dict and same(list(left.items()), list(right.items()))
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and (left == right or (left != left and right != right))


def test_every_kind_of_value_comes_back_as_it_was(path: Path) -> None:
    state: dict[Any, Any] = {
        "tensors": {
            "bfloat16": torch.tensor([1.5, -2.0, math.inf], dtype=torch.bfloat16),
            "no dimension": torch.tensor(7.0),
            "no element": torch.zeros(0, 3),
            "no element either": torch.zeros(0),
            "whole": torch.tensor([2**62, -1]),
            "truth": torch.tensor([True, False]),
            "bytes": torch.arange(5, dtype=torch.uint8),
            "double": torch.tensor([1 / 3], dtype=torch.float64),
            "not a number": torch.tensor([math.nan, -0.0]),
        },
        3: "a whole number's key",
        "3": "and the same as text",
        "numbers": [0, -(10**30), 1 / 3, 5e-324, -0.0, 1.0, math.inf, -math.inf, math.nan],
        "others": [True, False, None, "", "ε \ud800 \n", (), [], {}, (1, [2, (3.0,)])],
    }
    write(path, state)
    assert same(read(path), state)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
        lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.5}, {"params": p[1:]}]),
    ],
)
def test_an_optimizer_goes_on_as_if_nothing_had_happened(
    path: Path, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
) -> None:
    def fresh() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, make(list(model.parameters()))

    def step(model: nn.Linear, optimizer: torch.optim.Optimizer, times: int) -> None:
        for _ in range(times):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()

    straight, going = fresh()
    step(straight, going, 3)
    write(path, {"model": straight.state_dict(), "optimizer": going.state_dict()})
    step(straight, going, 3)

    model, optimizer = fresh()
    state = read(path)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    step(model, optimizer, 3)
    assert all(map(torch.equal, model.parameters(), straight.parameters()))
    assert set(state["optimizer"]["state"]) == {0, 1}


def test_tensors_that_share_memory_or_have_gaps_come_back_apart(path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"whole": base, "turned": base.T, "row": base[1], "again": base, "one for all": base[:1, :1].expand(5, 5)}
    write(path, state)
    found = read(path)
    assert same({name: one.contiguous() for name, one in state.items()}, found)
    found["whole"].zero_()
    assert torch.equal(found["again"], base)


def test_tensors_that_were_read_may_be_written_to_and_the_file_stays(path: Path) -> None:
    write(path, {"x": torch.ones(4)})
    read(path)["x"].zero_()
    assert torch.equal(read(path)["x"], torch.ones(4))


def test_what_stands_in_the_file_is_safetensors_and_json(path: Path) -> None:
    write(path, {"x": torch.ones(4), "step": 7})
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("0"), torch.ones(4))
        assert file.metadata()["state"] == '{"mapping": [["x", {"tensor": 0}], ["step", 7]]}'


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (print, r"state\['inner'\]\[0\] is of type builtins.builtin_function_or_method"),
        (object(), "builtins.object"),
        (torch.Generator(), "torch.*Generator"),
        (np.random.default_rng(), "Generator"),
        (np.int64(3), "numpy.int64"),
        (np.zeros(3), "numpy.ndarray"),
        (b"bytes", "builtins.bytes"),
        ({1, 2}, "builtins.set"),
        (1j, "builtins.complex"),
        ({(1, 2): 3}, "has the key"),
        ({True: 3}, "has the key True"),
        (torch.eye(2).to_sparse(), "dense"),
        (torch.zeros(2, device="meta"), "with their values"),
        (torch.zeros(2, dtype=torch.complex64), "real numbers"),
    ],
)
def test_anything_else_is_refused_and_nothing_is_written(path: Path, value: object, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        write(path, {"inner": [value]})
    assert "\n" not in str(caught.value)
    assert list(path.parent.iterdir()) == []


# A secret


def modes_while_writing(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(mode of the folder, mode of the file) of the draft, before the library writes to it and after."""
    seen = []

    def spied(tensors: Any, file: Path, metadata: Any) -> None:
        for writing in (lambda: None, lambda: save_file(tensors, file, metadata)):
            writing()
            seen.append((stat.S_IMODE(file.parent.stat().st_mode), stat.S_IMODE(file.stat().st_mode)))

    monkeypatch.setattr(working, "save_file", spied)
    write(path, {"x": torch.ones(4)})
    return seen


def is_secret(modes: list[tuple[int, int]]) -> bool:
    return all(folder == 0o700 for folder, _ in modes) and modes[0][1] == 0o600


def test_nobody_else_can_open_it_from_its_first_byte(
    path: Path, open_umask: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_secret(modes_while_writing(path, monkeypatch))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_planted_fault_a_draft_that_others_can_open_is_seen(
    path: Path, open_umask: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(dir: Path, prefix: str, suffix: str) -> str:  # noqa: A002 - the name that tempfile.mkdtemp has
        made = dir / f"{prefix}x{suffix}"
        made.mkdir()
        return str(made)

    monkeypatch.setattr("tempfile.mkdtemp", careless)
    assert not is_secret(modes_while_writing(path, monkeypatch))


def test_a_library_that_makes_a_file_of_its_own_mode_does_not_matter(
    path: Path, open_umask: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_rename(tensors: Any, file: Path, metadata: Any) -> None:
        other = file.with_suffix(".new")
        save_file(tensors, other, metadata)
        other.chmod(0o666)
        other.replace(file)

    monkeypatch.setattr(working, "save_file", by_rename)
    write(path, {"x": torch.ones(4)})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666])
def test_a_file_that_others_can_open_is_not_read(path: Path, mode: int) -> None:
    write(path, {"x": torch.ones(4)})
    path.chmod(mode)
    with pytest.raises(CheckpointError, match=f"others can open .* which is a secret .mode {mode:04o}"):
        read(path)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o770, 0o777, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(path: Path, mode: int) -> None:
    path.parent.chmod(mode)
    with pytest.raises(CheckpointError, match="others can write to .* chmod go-w"):
        write(path, {"x": torch.ones(4)})
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_is_missing_is_made_for_its_owner_alone(tmp_path: Path, open_umask: None) -> None:
    path = tmp_path / "new" / "run.ckpt"
    write(path, {})
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_another_users_folder_and_file_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, {"x": torch.ones(4)})
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(CheckpointError, match="belongs to another user"):
        read(path)
    if path.stat().st_uid:  # root's folders are as safe as one's own
        with pytest.raises(CheckpointError, match="belongs to another user"):
            check_place(path)


def test_a_symbolic_link_in_its_place_is_refused(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    write(target, {"x": torch.ones(4)})
    path.symlink_to(target)
    for act in (lambda: write(path, {}), lambda: read(path), lambda: remove(path)):
        with pytest.raises(CheckpointError, match="symbolic link"):
            act()
    assert torch.equal(read(target)["x"], torch.ones(4))


def test_a_file_that_is_something_else_is_not_written_over(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(CheckpointError, match="in the way"):
        write(path, {})
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="in the way"):
        write(path, {})


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write the working checkpoint"):
        check_place(tmp_path / "file" / "run.ckpt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="in the way"):
        check_place(tmp_path / "folder")


@pytest.mark.parametrize("inside", ["run", "run/x.ckpt", "run/deep/x.ckpt", "other/../run/x.ckpt", "link/x.ckpt"])
def test_a_checkpoint_inside_the_run_folder_is_refused(tmp_path: Path, inside: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("run")
    with pytest.raises(CheckpointError, match="handed out"):
        check_outside(tmp_path / inside, tmp_path / "run")


@pytest.mark.parametrize("outside", ["x.ckpt", "running/x.ckpt", "run.ckpt", "run/../x.ckpt"])
def test_a_checkpoint_beside_the_run_folder_is_fine(tmp_path: Path, outside: str) -> None:
    (tmp_path / "run").mkdir()
    check_outside(tmp_path / outside, tmp_path / "run")


# Whole or not there


def test_a_newer_checkpoint_takes_the_place_of_the_older(path: Path) -> None:
    write(path, {"step": 1})
    write(path, {"step": 2})
    assert read(path) == {"step": 2}
    assert list(path.parent.iterdir()) == [path]


def killed_in_the_middle(tensors: Any, file: Path, metadata: Any) -> None:
    save_file(tensors, file, metadata)
    file.write_bytes(file.read_bytes()[:-5])
    raise KeyboardInterrupt


def failing(*_: Any) -> None:
    raise OSError("no space left on device")


@pytest.mark.parametrize(
    ("where", "what", "error"),
    [
        ("privads.training.working.save_file", killed_in_the_middle, KeyboardInterrupt),
        ("privads.training.working._sync", failing, OSError),
        ("os.replace", failing, OSError),
    ],
)
def test_a_write_that_ends_on_the_way_leaves_the_old_checkpoint_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: str, what: Any, error: type[BaseException]
) -> None:
    write(path, {"step": 1, "x": torch.ones(4)})
    monkeypatch.setattr(where, what)
    with pytest.raises(error):
        write(path, {"step": 2, "x": torch.zeros(4)})
    assert same(read(path), {"step": 1, "x": torch.ones(4)})
    assert list(path.parent.iterdir()) == [path]


def test_planted_fault_a_write_in_place_loses_the_old_checkpoint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, {"step": 1, "x": torch.ones(4)})

    def in_place(tensors: Any, file: Path, metadata: Any) -> None:
        killed_in_the_middle(tensors, path, metadata)

    monkeypatch.setattr(working, "save_file", in_place)
    with pytest.raises(KeyboardInterrupt):
        write(path, {"step": 2, "x": torch.zeros(4)})
    path.chmod(0o600)
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)


def test_the_bytes_are_on_the_disk_before_the_name_is_and_the_name_before_write_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    sync, replace = working._sync, os.replace

    def noted_sync(one: Path) -> None:
        done.append(f"sync {one.name}")
        sync(one)

    def noted_replace(one: Path, two: Path) -> None:
        done.append("rename")
        replace(one, two)

    monkeypatch.setattr(working, "_sync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write(path, {})
    assert done == ["sync run.ckpt", "rename", "sync secret"]


def test_remove_leaves_nothing_not_even_a_killed_writers_draft(path: Path) -> None:
    write(path, {"step": 1})
    other = path.parent / "run.ckpt2"
    write(other, {"step": 1})
    draft = path.parent / f".{path.name}-killed.draft"
    draft.mkdir(mode=0o700)
    (draft / path.name).write_text("half")
    remove(path)
    assert list(path.parent.iterdir()) == [other]
    remove(path)  # there is none any more
    remove(path.parent / "nowhere" / "run.ckpt")


# Damage


def test_every_changed_bit_is_found(path: Path) -> None:
    write(path, {"x": torch.tensor([1.0, 2.0]), "y": [torch.tensor(3, dtype=torch.int16), 0.1, None]})
    whole = path.read_bytes()
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << (place % 8)
        path.write_bytes(broken)
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_cut_file_is_found(path: Path, kept: int) -> None:
    write(path, {"x": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)


def test_planted_fault_without_the_checksum_damage_is_not_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "_checksum", lambda tree, tensors: "")
    write(path, {"x": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert not torch.equal(read(path)["x"], torch.ones(100))


def test_another_format_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "FORMAT", "2")
    write(path, {})
    monkeypatch.setattr(working, "FORMAT", "1")
    with pytest.raises(CheckpointError, match="has format 2 and this version of privads reads 1"):
        read(path)


def test_what_is_no_checkpoint_is_refused_in_one_line(path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the working checkpoint .*: No such file"):
        read(path)
    path.mkdir()
    with pytest.raises(CheckpointError, match="is not a file"):
        read(path)
    path.rmdir()
    save_file({"x": torch.ones(2)}, path)
    path.chmod(0o600)
    with pytest.raises(CheckpointError, match="not a working checkpoint of privads"):
        read(path)
    path.write_text("text")
    with pytest.raises(CheckpointError, match="damaged or no working checkpoint"):
        read(path)


def test_a_large_table_is_written_without_a_second_copy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library is given is the memory of the table itself."""
    table = torch.ones(1000, 16)
    given: list[Tensor] = []

    def spied(tensors: dict[str, Tensor], file: Path, metadata: Any) -> None:
        given.extend(tensors.values())
        save_file(tensors, file, metadata)

    monkeypatch.setattr(working, "save_file", spied)
    write(path, {"table": nn.Parameter(table)})
    assert given[0].data_ptr() == table.data_ptr()
