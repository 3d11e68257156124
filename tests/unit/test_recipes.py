"""Recipes: names, files and replaced fields; what is wrong with one is said by field. Spaces of a search likewise."""

from pathlib import Path

import pytest

from infra.errors import UserError
from models.tasks.base import get_task
from ray_jobs import options
from ray_jobs.recipes import RECIPES
from ray_jobs.training.recipe import Recipe, nested, replaced, resolve_recipe
from ray_jobs.tuning import Span, read_space


@pytest.mark.parametrize("name", RECIPES)
def test_every_named_recipe_is_one(name: str) -> None:
    recipe = resolve_recipe(name, {})
    assert (
        recipe.model_dump() | RECIPES[name] | {"augmentation": recipe.augmentation.model_dump()} == recipe.model_dump()
    )


def test_fields_are_replaced_and_sections_keep_their_others() -> None:
    recipe = resolve_recipe("fs2k-best", options.fields(["epochs=3", "augmentation.flip=0", "patience=null"]))
    assert (recipe.epochs, recipe.augmentation.flip, recipe.patience) == (3, 0, None)
    assert recipe.augmentation.shift == RECIPES["fs2k-best"]["augmentation"]["shift"]
    again = replaced(recipe, nested({"augmentation.erase": 0.5}))
    assert (again.augmentation.erase, again.augmentation.flip, again.epochs) == (0.5, 0, 3)
    assert again.flat()["augmentation.erase"] == 0.5
    assert "patience" not in again.flat()


def test_a_file_is_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("backbone: resnet34\nema: 0.9\n")
    recipe = resolve_recipe(str(tmp_path / "own.yaml"), {})
    assert (recipe.backbone, recipe.ema, recipe.epochs) == ("resnet34", 0.9, Recipe().epochs)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (["epoch=3"], "no field 'epoch'; it has backbone"),
        (["augmentation.flop=1"], "no field 'augmentation.flop'; it has augmentation.flip, "),
        (["epochs=0"], "recipe field epochs: 0: Input should be greater than or equal to 1"),
        (["optimizer=adam"], "recipe field optimizer: 'adam'"),
        (["batch_size=4", "accumulate=8"], "accumulate 8 is more than batch_size 4"),
        (["epochs"], "--set epochs: give FIELD=VALUE"),
        (["epochs=[1"], "the value is no YAML"),
    ],
)
def test_a_wrong_field_is_named(items: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        resolve_recipe(None, options.fields(items))


def test_an_unknown_recipe_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe 'best'; known are attractiveness-published"):
        resolve_recipe("best", {})
    with pytest.raises(UserError, match="cannot be read"):
        resolve_recipe(str(tmp_path / "none.yaml"), {})
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="mapping of fields"):
        resolve_recipe(str(tmp_path / "list.yaml"), {})


@pytest.mark.parametrize(("text", "expected"), [("4", (None, 4)), ("2:8", (2, 8))])
def test_workers_are_a_number_or_a_range(text: str, expected: tuple[int | None, int]) -> None:
    assert options.workers(text) == expected


@pytest.mark.parametrize("text", ["0", "x", "3:", ":3", "4:2", "-1"])
def test_other_workers_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--workers"):
        options.workers(text)


def test_a_task_has_its_own_losses() -> None:
    with pytest.raises(UserError, match="fs2k has no loss 'mean_variance'"):
        get_task("fs2k").loss({}, None, kind="mean_variance")


def test_a_space_has_values_and_ranges(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}\nema: [0, 0.99]\n"
        "augmentation.shift: {low: 0, high: 0.1}\nbatch_size: {low: 16, high: 64}\n"
    )
    space = read_space(path)
    assert space["learning_rate"] == Span(low=1e-4, high=1e-2, log=True)
    assert space["ema"] == [0, 0.99]
    rate = space["learning_rate"].domain()
    assert all(1e-4 <= rate.sample() <= 1e-2 for _ in range(20))
    size = space["batch_size"].domain()
    assert all(isinstance(size.sample(), int) for _ in range(5))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: [1]", "no field 'learning_rat'"),
        ("epochs: {low: 3, high: 2}", "epochs: Value error, low 3 and high 2 are no range"),
        ("learning_rate: 0.1", "give [a, b] or {low: a, high: b}"),
        ("ema: [0, 2]", "recipe field ema: 2"),
        ("- 1", "mapping of recipe fields"),
    ],
)
def test_a_wrong_space_is_said_by_field(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_space(tmp_path / "space.yaml")
    assert words in str(error.value)
