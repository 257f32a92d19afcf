"""What `list`, `show` and `doctor` say, for everything that there is."""

import json

import pytest

from saccade.attention import ATTENTION
from saccade.catalogue import KINDS, all_equations, describe_name, diagnosis, list_kind
from saccade.data import data_root
from saccade.models import MODELS
from saccade.nn import NEURON
from saccade.train import list_recipes
from saccade.train.optim import OPTIMIZER
from saccade.train.schedule import SCHEDULE
from saccade.train.tasks import TASK


@pytest.mark.parametrize("kind", KINDS)
def test_everything_listed_has_a_line_about_it(kind: str):
    rows = list_kind(kind)
    assert rows
    assert all(row["name"] and row["about"] and "\n" not in row["about"] for row in rows)
    assert len({row["name"] for row in rows}) == len(rows)


def test_a_pattern_selects_and_an_unknown_kind_is_answered_with_the_nearest():
    assert [row["name"] for row in list_kind("models", "spik*_dvs")] == ["spikformer_2_256_dvs"]
    assert list_kind("models", "nothing*") == []
    with pytest.raises(ValueError, match=r"unknown kind 'model'; did you mean 'models'\?"):
        list_kind("model")


@pytest.mark.parametrize(
    "name",
    sorted({*ATTENTION, *NEURON, *TASK, *OPTIMIZER, *SCHEDULE, *list_recipes(), "spikformer"}),
)
def test_everything_can_be_shown(name: str):
    assert len(describe_name(name).splitlines()) > 2


def test_a_model_is_shown_with_its_structure_its_paper_and_its_results():
    text = describe_name("spikformer_8_512")
    for part in (
        "29,689,384",
        "73.38",
        "2209.15425",
        "[B, 3, 224, 224] shown for T=4 steps",
        "512 channels on a grid of 14 x 14 tokens",
        "8 x [ssa with 8 heads, MLP x4]",
        "linear to 1000 classes",
    ):
        assert part in text


def test_the_parameters_of_the_parts_add_up():
    lines = describe_name("spikformer_2_384").partition("Parameters\n")[2].splitlines()
    counts = {name: int(n.replace(",", "")) for name, n in (line.split() for line in lines[:4])}
    assert counts.pop("all") == sum(counts.values())
    assert set(counts) == {"stem", "blocks", "head"}


def test_an_attention_is_shown_with_its_equations_and_options():
    text = describe_name("ssa")
    assert "SSA-2" in text
    (options,) = [line for line in text.splitlines() if line.startswith("Options: ")]
    assert {"qkv_bias", "scale"} <= set(options.removeprefix("Options: ").split(", "))
    assert "arxiv.org/abs/2209.15425" in text


def test_a_part_of_training_is_shown_with_its_options():
    text = describe_name("muon")
    assert text.startswith("muon: Orthogonalised momentum")
    assert "Options: beta1, beta2, eps, iterations, matrix_decay, matrix_lr, momentum" in text
    assert "arXiv:2202.11946" in describe_name("tet")
    assert describe_name("constant").endswith("Options: none")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"nothing is called 'sssa'; did you mean 'ssa'\?"):
        describe_name("sssa")


def test_every_equation_is_declared_once():
    names = [equation.name for equation in all_equations()]
    assert len(set(names)) == len(names)
    assert {"SSA-1", "SSA-2", "SSA-3"} <= set(names)


def test_the_doctor_names_versions_hardware_data_and_fast_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("SACCADE_DATA", str(tmp_path / "nothing"))
    facts = diagnosis()
    assert json.loads(json.dumps(facts)) == facts
    assert {"saccade", "torch", "triton", "matplotlib"} <= set(facts["versions"])
    assert facts["hardware"]["device"] in ("cpu", "cuda")
    assert "not there yet" in facts["data"]["folder"]
    assert all(verdict for verdict in facts["fast paths (on each op's example)"].values())
    (tmp_path / "nothing").mkdir()
    assert diagnosis()["data"]["folder"] == f"{data_root()} (empty)"
    (tmp_path / "nothing" / "cifar10").mkdir()
    assert diagnosis()["data"]["folder"].endswith("(holds cifar10)")


def test_a_library_that_is_missing_is_named_with_what_installs_it(monkeypatch):
    from importlib import metadata

    found = metadata.version

    def version(name: str) -> str:
        if name in ("matplotlib", "triton"):
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(metadata, "version", version)
    versions = diagnosis()["versions"]
    assert versions["matplotlib"] == 'missing: pip install "saccade[report]"'
    assert versions["triton"].startswith("not installed")


@pytest.mark.parametrize("name", MODELS.list())
def test_every_model_names_a_source_that_can_be_cited(name: str):
    source = MODELS[name].source
    assert source.id.startswith(("arXiv:", "doi:"))
    assert source.bibtex().startswith("@")


def test_cite_prints_each_source_of_a_recipe_once():
    from saccade.catalogue import cite

    text = cite(["digits", "ssa", "tim_2_256_dvs"])
    assert text.count("@article{zhou2023spikformer,") == 1
    assert text.count("@article{shen2024tim,") == 1
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        cite(["digts"])
