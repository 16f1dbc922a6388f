"""What a rank of a run may be asked, and what a process alone is."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minigrad import catalog, ranks
from minigrad.data_parallel import DataParallel
from minigrad.errors import UserError
from minigrad.interruption import Interrupted, Request, SharedRequest
from minigrad.objectives import Network
from minigrad.objectives.data import wine
from minigrad.ranks import ALONE, RankLost, Ranks, joined
from minigrad.train import main
from runs import last_checkpoint, resume, run, summary

pytestmark = pytest.mark.usefixtures("pictures_unseen")


@pytest.fixture
def one_rank(monkeypatch):
    """Let this process be what torchrun starts with --nproc-per-node=1."""
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_process_alone_exchanges_nothing():
    flags = torch.tensor([0, 1])
    ALONE.unite(flags)
    assert flags.tolist() == [0, 1]
    assert ALONE.of_first(lambda: 3) == ALONE.on_each(lambda: 3) == ALONE.highest(3)() == 3
    assert ALONE.gathered("x") == ["x"]
    assert (ALONE.is_first, ALONE.is_alone, ALONE.size) == (True, True, 1)


def test_one_rank_has_the_results_of_one_process(one_rank, monkeypatch):
    recipe = ["objective=wine", "steps=12", "batch_size=9", "precision=float64"]
    run("ranked", *recipe)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    run("alone", *recipe)
    for a, b in zip(
        *(last_checkpoint(name)["trainer"]["parameters"].values() for name in ("ranked", "alone")), strict=True
    ):
        assert torch.equal(a, b)
    assert summary("ranked")["test/loss"] == summary("alone")["test/loss"]


def test_ranks_leave_in_good_order_after_a_mistake(one_rank):
    with pytest.raises(UserError, match="a mistake"), joined(5) as own:
        own.of_first(lambda: refuse("a mistake"))
    with pytest.raises(UserError, match="another"), joined(5) as own:
        own.on_each(lambda: refuse("another"))
    with joined(5) as own:
        assert own.gathered(7) == [7]
    assert not torch.distributed.is_initialized()


def refuse(words):
    raise UserError(words)


@pytest.mark.parametrize(
    "words", ["[/gloo/pair.cc] Connection reset by peer", "Application timeout caused pair closure"]
)
def test_an_error_of_the_connection_says_that_a_rank_is_lost(one_rank, words):
    whole = f"^another rank has ended, has not answered for 5 seconds, or does something else: {re.escape(words)}$"
    with pytest.raises(RankLost, match=whole), joined(5):
        raise RuntimeError(f"{words}. This is typically caused by a remote worker")
    torch.distributed.destroy_process_group()


def test_an_error_in_a_collective_says_so_too(one_rank):
    of_no_collective = torch.zeros(1, dtype=torch.uint16)
    with pytest.raises(RankLost, match="does something else: Invalid scalar type"), joined(5) as own:
        own.unite(of_no_collective)
    torch.distributed.destroy_process_group()


def test_another_error_stays_what_it_is(one_rank):
    with pytest.raises(RuntimeError, match="mat1 and mat2"), joined(5):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_ranks_honour_a_request_after_the_same_step(one_rank):
    with joined(5) as own:
        request = Request()
        shared = SharedRequest(request, own)
        assert not shared.made()
        request.number = 15
        assert not shared.made()  # what the step before knew
        assert shared.made()
        with pytest.raises(Interrupted) as interrupted:
            shared.honour()
    assert interrupted.value.exit_code == 143


def test_a_request_in_the_last_moment_is_honoured_too(one_rank):
    with joined(5) as own:
        request = Request()
        shared = SharedRequest(request, own)
        shared.made()
        request.number = 2
        with pytest.raises(Interrupted):
            shared.honour()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["experiment=exactness"], "this experiment runs in one process: start it without torchrun"),
        (["objective=parabola"], "objective=parabola has no batches to divide among ranks; start it without torchrun"),
        (["-m", "seed=0,1"], "a sweep runs in one process: start it without torchrun"),
        (["device=cuda:1"], "device=cuda:1: each of several ranks has a GPU of its own; use device=cuda"),
        (["rank_timeout=0"], "rank_timeout=0.0: expected a finite number above 0"),
        (["rank_timeout=1e9"], "rank_timeout=1000000000.0: expected a week at most"),
    ],
)
def test_what_ranks_cannot_do_is_said(one_rank, capsys, command, words):
    assert main(command) == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
def test_a_gpu_for_each_rank_is_asked_for(one_rank, capsys):
    assert main(["device=cuda"]) == 2
    assert "this machine has 0 GPUs, and rank 0 needs one of its own; use device=cpu" in capsys.readouterr().err


def test_nothing_is_remembered_unless_torchrun_restarts(one_rank, monkeypatch):
    assert ranks.remembered() is None
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert ranks.remembered() is None


def test_a_rank_with_other_data_than_the_first_is_refused(one_rank, monkeypatch, capsys):
    experiment = catalog.load_experiment("training")
    monkeypatch.setattr(experiment, "is_same", lambda described, model: False)
    assert main(["objective=wine", "steps=5", "run_dir=here"]) == 2
    assert "a rank has other data than the first; every machine has to read the same" in capsys.readouterr().err
    assert not Path("here").exists()


def test_a_batch_too_small_for_the_ranks_is_refused_before_anything_is_computed():
    objective = Network(wine, "tanh", batch_size=1, seed=0, device="cpu", hidden=[4])
    with pytest.raises(UserError, match="a batch has 1 samples, fewer than the 2 ranks; use a larger batch_size"):
        DataParallel(objective, Ranks(rank=0, size=2), accumulate=1)


def test_a_run_of_before_there_were_ranks_is_resumed():
    run("here", "objective=wine", "steps=5")
    config = Path("here", "config.yaml")
    config.write_text(config.read_text().replace("rank_timeout: 600.0\n", ""))
    assert "rank_timeout" not in config.read_text()
    assert resume("here", "steps=8")["steps"] == 8
    assert resume("here", "steps=9", "rank_timeout=5")["steps"] == 9


@pytest.mark.parametrize("execution", ["graph", "compile"])
def test_several_ranks_make_their_steps_eagerly(execution):
    config = SimpleNamespace(execution=execution)
    with pytest.raises(
        UserError, match=f"execution={execution}: a step of several ranks is made eagerly; leave it out"
    ):
        catalog.load_experiment("training").Config.new_shared(config, None, SimpleNamespace(is_alone=False))
