from minigrad.autodiff.nodes import in_order


def test_in_order_visits_each_once_and_keeps_the_order_of_the_inputs():
    inputs = {"d": ["b", "c"], "b": ["a"], "c": ["a"], "a": []}
    assert list(in_order(["d"], inputs.__getitem__)) == ["d", "b", "c", "a"]
