import inspect
import math
from functools import partial

import numpy
import pytest
import torch

from minigrad.errors import UserError
from minigrad.objectives import data
from minigrad.objectives.data import Data
from minigrad.objectives.network import Network, spirals


def network(load=data.digits, **changes) -> Network:
    arguments = {"activation": "tanh", "batch_size": 100, "seed": 0, "device": "cpu", "hidden": [8], **changes}
    return Network(load, **arguments)


def sum_of_columns(rows: int = 30) -> Data:
    inputs = numpy.random.default_rng(0).normal(5, 3, (rows, 4))
    return Data(inputs, 100 + 7 * inputs.sum(axis=1), classes=None, notes=["made for a test"])


def train(objective: Network, learning_rate: float, epochs: int) -> dict[str, float]:
    parameters = list(objective.parameters().values())
    for index in range(epochs * objective.batches_per_epoch):
        gradients = torch.autograd.grad(objective.loss(objective.batch(index)), parameters)
        with torch.no_grad():
            torch._foreach_sub_(parameters, gradients, alpha=learning_rate)
    return {tag: value.item() for tag, value in objective.judge().items()}


def test_a_third_of_every_class_is_held_out():
    objective = network()
    trained, held_out = (labels.bincount(minlength=10) for labels in (objective._targets, objective._test_targets))
    assert (int(trained.sum()), int(held_out.sum())) == (1198, 599)
    assert ((held_out / (trained + held_out) - 1 / 3).abs() < 0.01).all()


@pytest.mark.parametrize(("init", "deviation"), [("glorot", math.sqrt(2 / 264)), ("he", math.sqrt(2 / 64))])
def test_initial_weights_have_the_deviation_that_is_asked_for(init, deviation):
    first, last = network(hidden=[200], init=init).network
    assert first.weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert not first.bias.any()
    assert not last.bias.any()
    assert not torch.equal(first.weight, network(hidden=[200], init=init, seed=1).network[0].weight)
    assert torch.equal(first.weight, network(hidden=[200], init=init).network[0].weight)


def test_initial_weights_are_pytorchs_by_default():
    torch.manual_seed(0)
    expected = torch.nn.Linear(64, 8)
    first, _ = network().network
    assert torch.equal(first.weight, expected.weight)
    assert torch.equal(first.bias, expected.bias)


def test_an_unknown_initialisation_is_refused():
    with pytest.raises(UserError, match=r"objective\.init=lecun: expected one of torch, glorot, he"):
        network(init="lecun")


def test_a_regression_holds_out_a_third():
    objective = network(data.diabetes)
    assert (len(objective._targets), len(objective._test_targets)) == (294, 148)


def test_images_have_one_scale_and_it_comes_from_the_training_images_alone():
    objective = network()
    assert objective._inputs.mean().item() == pytest.approx(0, abs=1e-6)
    assert objective._inputs.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert objective._test_inputs.mean().item() != pytest.approx(0, abs=1e-6)
    assert len(objective.model.input_deviation.unique()) == 1


def test_every_column_has_its_own_scale_and_it_comes_from_the_training_part_alone():
    objective = network(data.diabetes, dtype=torch.float64)
    assert (objective._inputs.mean(dim=0).abs() < 1e-12).all()
    assert ((objective._inputs.std(dim=0, correction=0) - 1).abs() < 1e-12).all()
    assert (objective._test_inputs.mean(dim=0).abs() > 1e-4).all()
    assert objective._targets.mean().item() == pytest.approx(0, abs=1e-12)
    assert objective._targets.std(correction=0).item() == pytest.approx(1, abs=1e-12)
    assert abs(objective._test_targets.mean().item()) > 1e-4


def test_a_constant_column_becomes_zero_exactly():
    given = sum_of_columns()
    given.inputs[:, 2] = 0.1  # whose mean over 20 rows is rounded
    objective = network(lambda: given, batch_size=5)
    assert not objective._inputs[:, 2].any()
    assert objective.model.input_deviation[2] == 1


def test_an_epoch_gives_every_sample_at_most_once_and_each_its_own_order():
    objective = network()
    assert objective.batches_per_epoch == 11
    epochs = [
        torch.cat([objective.batch(index)[0] for index in range(first, first + objective.batches_per_epoch)])
        for first in (0, objective.batches_per_epoch)
    ]
    # No two images of the data set are equal.
    assert all(len(epoch.unique(dim=0)) == len(epoch) == 1100 for epoch in epochs)
    assert not torch.equal(*epochs)


def test_a_batch_depends_on_the_seed_and_the_index_alone():
    first, second, other = network(), network(), network(seed=1)
    for index in (0, 5, 25):
        second.batch(index + 1)
        assert torch.equal(first.batch(index)[0], second.batch(index)[0])
        assert not torch.equal(first.batch(index)[0], other.batch(index)[0])


def test_a_batch_pairs_inputs_with_their_targets():
    objective = network(sum_of_columns, batch_size=4, dtype=torch.float64)
    inputs, targets = objective.batch(3)
    raw = inputs * objective.model.input_deviation + objective.model.input_mean
    expected = (100 + 7 * raw.sum(dim=1) - objective.model.target_mean) / objective.model.target_deviation
    torch.testing.assert_close(targets, expected)


def test_the_initial_parameters_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    first = network().parameters()
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    second, other = network().parameters(), network(seed=1).parameters()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["network.0.weight"], other["network.0.weight"])


def test_the_network_has_the_widths_that_were_asked_for():
    shapes = {name: tuple(parameter.shape) for name, parameter in network(hidden=[5, 7]).parameters().items()}
    assert shapes == {
        "network.0.weight": (5, 64),
        "network.0.bias": (5,),
        "network.1.weight": (7, 5),
        "network.1.bias": (7,),
        "network.2.weight": (10, 7),
        "network.2.bias": (10,),
    }
    assert [tuple(p.shape) for p in network(data.diabetes, hidden=[]).parameters().values()] == [(1, 10), (1,)]


def test_the_parameters_are_the_models():
    objective = network()
    named = dict(objective.model.named_parameters())
    assert named.keys() == objective.parameters().keys()
    assert all(named[name] is parameter for name, parameter in objective.parameters().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("load", [data.wine, data.diabetes])
def test_the_model_maps_raw_inputs_as_the_network_maps_scaled_ones(load, dtype):
    objective = network(load, dtype=dtype)
    raw = objective._inputs * objective.model.input_deviation + objective.model.input_mean
    predicted, outputs = objective.model(raw), objective.network(objective._inputs)
    if objective.model.classes is None:
        model = objective.model
        outputs = outputs.squeeze(-1) * model.target_deviation + model.target_mean
    torch.testing.assert_close(predicted, outputs)
    # And in the data's own units: those of the file, not of the training part.
    given = load()
    predicted = objective.model(torch.tensor(given.inputs, dtype=dtype))
    assert predicted.shape == ((178, 3) if load is data.wine else (442,))
    assert predicted.dtype == dtype


def test_the_model_takes_inputs_of_any_dtype_and_loses_no_digits_of_float64():
    inputs = 1e9 + numpy.random.default_rng(0).integers(0, 100, (30, 1)).astype(numpy.float64)
    objective = network(lambda: Data(inputs, inputs[:, 0], classes=None), batch_size=5)
    moments = objective.model.input_mean.double(), objective.model.input_deviation.double()
    scaled = ((torch.tensor(inputs) - moments[0]) / moments[1]).float()
    expected = objective.network(scaled).squeeze(-1) * objective.model.target_deviation + objective.model.target_mean
    assert torch.equal(objective.model(torch.tensor(inputs)), expected)
    assert objective.model(torch.tensor(inputs, dtype=torch.int64)).dtype == torch.float32


def test_a_regression_learns_what_it_is_shown_in_its_own_units():
    objective = network(sum_of_columns, batch_size=5, hidden=[])
    assert train(objective, learning_rate=0.1, epochs=100)["test/r2"] > 0.999
    given = sum_of_columns()
    predicted = objective.model(torch.tensor(given.inputs, dtype=torch.float32)).detach().numpy()
    numpy.testing.assert_allclose(predicted, given.targets, rtol=1e-3)


def test_spirals_are_told_apart_by_hidden_layers_and_not_without():
    make = partial(spirals, "tanh", 32, 0, "cpu", samples=600, noise=0.02, arms=2)
    assert train(make(hidden=[32, 32]), learning_rate=0.3, epochs=100)["test/accuracy"] > 0.95
    assert train(make(hidden=[]), learning_rate=0.3, epochs=20)["test/accuracy"] < 0.8


def test_spirals_are_made_from_the_seed_of_the_run():
    first, second, other = (
        spirals("tanh", 32, seed, "cpu", hidden=[4], samples=60, noise=0.1, arms=3) for seed in (0, 0, 1)
    )
    assert torch.equal(first._inputs, second._inputs)
    assert not torch.equal(first._inputs, other._inputs)


def test_everything_is_in_the_dtype_that_was_asked_for():
    single, double = network(data.diabetes), network(data.diabetes, dtype=torch.float64)
    assert all(tensor.dtype == torch.float64 for tensor in (*double.batch(0), *double.model.state_dict().values()))
    for name, parameter in single.parameters().items():
        assert torch.equal(parameter.double(), double.parameters()[name])
    assert double.loss(double.batch(0)).dtype == torch.float64
    torch.testing.assert_close(single.loss(single.batch(0)).double(), double.loss(double.batch(0)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("load", [data.wine, data.diabetes])
def test_the_loss_is_in_float32_where_autocast_made_the_output_bfloat16(load):
    objective = network(load)
    inputs, targets = objective.batch(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = objective.network(inputs)
        loss = objective.loss((inputs, targets))
    assert (outputs.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    if load is data.wine:
        expected = torch.nn.functional.cross_entropy(outputs.float(), targets)
    else:
        expected = torch.nn.functional.mse_loss(outputs.float().squeeze(-1), targets)
    assert torch.equal(loss, expected)


def test_a_loss_of_equal_logits_is_the_logarithm_of_the_classes():
    objective = network(hidden=[])
    for parameter in objective.parameters().values():
        parameter.data.zero_()
    assert objective.loss(objective.batch(0)).item() == pytest.approx(numpy.log(10))


@pytest.mark.parametrize(("load", "quality"), [(data.breast_cancer, "test/accuracy"), (data.diabetes, "test/r2")])
def test_judging_records_no_graph(load, quality):
    judged = network(load).judge()
    assert set(judged) == {"test/loss", quality}
    assert not any(value.requires_grad for value in judged.values())
    assert all(value.shape == () for value in judged.values())


def test_accuracy_and_r2_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, r2_score

    classified = network()
    guessed = classified.network(classified._test_inputs).argmax(dim=1)
    assert classified.judge()["test/accuracy"].item() == pytest.approx(
        accuracy_score(classified._test_targets, guessed), abs=1e-6
    )
    regressed = network(data.diabetes, dtype=torch.float64)
    predicted = regressed.network(regressed._test_inputs).squeeze(-1).detach()
    assert regressed.judge()["test/r2"].item() == pytest.approx(r2_score(regressed._test_targets, predicted), abs=1e-12)


def test_a_batch_larger_than_the_training_part_is_all_of_it_and_says_so():
    objective = network(batch_size=9999)
    assert objective.notes == ["batch_size=9999: there are 1198 training samples; every batch is all of them"]
    assert objective.batches_per_epoch == 1
    first, second = objective.batch(0)[0], objective.batch(1)[0]
    assert len(first) == 1198
    assert torch.equal(first.unique(dim=0), second.unique(dim=0))


def test_the_datas_notes_come_first():
    assert network(sum_of_columns, batch_size=20).notes == ["made for a test"]
    assert network(sum_of_columns, batch_size=21).notes == [
        "made for a test",
        "batch_size=21: there are 20 training samples; every batch is all of them",
    ]


def test_options_are_found_where_the_loader_is_bound():
    parameters = inspect.signature(partial(Network, data.wine), eval_str=True).parameters
    options = {name: p.annotation for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert options == {"hidden": list[int], "init": str}
    assert [name for name in parameters if name not in options] == [
        *("activation", "batch_size", "seed", "device", "dtype")
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": [8, 0]}, "objective.hidden=[8, 0]: expected widths of at least 1"),
        ({"batch_size": 0}, "batch_size=0: expected an integer from 1 on"),
        ({"batch_size": -1}, "batch_size=-1: expected an integer from 1 on"),
    ],
)
def test_what_cannot_be_is_refused_before_the_data_are_read(change, message):
    with pytest.raises(UserError) as refusal:
        network(lambda: pytest.fail("the data were read"), **change)
    assert str(refusal.value) == message


@pytest.mark.parametrize(("value", "part", "count"), [(0, "training", 20), (1, "held-out", 10)])
def test_a_part_without_two_values_of_the_target_is_refused(value, part, count):
    from sklearn.model_selection import train_test_split

    # One part has nothing but 3, the other has two values.
    held_out = train_test_split(numpy.arange(30), test_size=1 / 3, random_state=0)[1]
    targets = numpy.where(numpy.isin(numpy.arange(30), held_out) == value, 3.0, numpy.arange(30))
    given = Data(sum_of_columns().inputs, targets, classes=None)
    with pytest.raises(UserError) as refusal:
        network(lambda: given)
    assert str(refusal.value) == (
        f"seed=0: the target is 3 in all {count} {part} samples, which tells nothing; use another seed or more data"
    )
