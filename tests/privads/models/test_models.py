"""`build`: from a run's [model] table to a model, or one clear line."""

import pytest

from privads.config import ConfigError
from privads.models import DCN, MODELS, Logistic, build
from tests.privads.models.samples import random_batch, schema


@pytest.mark.parametrize("name", MODELS)
def test_every_model_keeps_the_contract(name: str) -> None:
    facts = schema()
    model = build(name, facts)
    outputs = model(random_batch(facts, 4))
    assert {task: logit.shape for task, logit in outputs.items()} == {"click": (4,), "buy": (4,)}
    assert list(outputs) == list(facts.tasks)


def test_settings_reach_the_model_and_rebuild_it() -> None:
    model = build("dcn", schema(), {"dim": 3, "tower": [5, 4]})
    assert isinstance(model, DCN)
    assert model.settings == {"dim": 3, "crosses": 2, "tower": [5, 4]}
    again = build("dcn", schema(), model.settings)
    assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]
    assert isinstance(build("logistic", schema(), {}), Logistic)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dcm", {}, "model.name 'dcm' is unknown; did you mean 'dcn'?; known: " + ", ".join(MODELS)),
        ("dcn", {"dims": 3}, "model 'dcn' has no setting 'dims'; did you mean 'dim'?"),
        ("dcn", {"schema": 3}, "model 'dcn' has no setting 'schema'; known: dim, crosses, tower"),
        ("logistic", {"dim": 3}, "model 'logistic' has no setting 'dim'; known: none"),
        ("dcn", {"dim": "8"}, "model 'dcn': dim must be of the form 4, got '8'"),
        ("dcn", {"dim": True}, "model 'dcn': dim must be of the form 4, got True"),
        ("dcn", {"tower": 64}, "model 'dcn': tower must be a list of whole numbers, such as [8], got 64"),
        ("dcn", {"tower": ["a"]}, "model 'dcn': tower must be a list of whole numbers, such as [8], got ('a',)"),
    ],
    ids=str,
)
def test_an_unknown_name_or_setting_is_one_clear_line(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(name, schema(), settings)
    assert str(caught.value) == message
