import pytest

from minigrad import catalog
from minigrad.errors import UserError
from minigrad.objectives import OBJECTIVES
from minigrad.rules import RULES
from minigrad.schedules import SCHEDULES


def test_every_experiment_has_a_config_and_every_config_an_experiment():
    stems = {file.stem for file in (catalog.ROOT / "experiments").glob("*.py")}
    assert set(catalog.groups()["experiment"]) == stems


def test_every_option_names_an_entry_of_its_table():
    assert set(catalog.groups()["objective"]) == set(OBJECTIVES)
    assert set(catalog.groups()["rule"]) == set(RULES)
    assert set(catalog.groups()["schedule"]) == set(SCHEDULES)


@pytest.mark.parametrize("group", catalog.groups())
def test_every_option_is_described_in_one_line(group):
    assert all(catalog.describe(group, option) for option in catalog.groups()[group])


@pytest.mark.parametrize("stem", ["nothing", "../minigrad/train", "training.py", "", "__init__"])
def test_an_experiment_outside_the_folder_is_refused(stem):
    with pytest.raises(UserError, match=r"unknown experiment .* there are: backpropagation, chain_rule, .*, training$"):
        catalog.load_experiment(stem)


def test_an_experiment_is_imported_once():
    assert catalog.load_experiment("training") is catalog.load_experiment("training")
