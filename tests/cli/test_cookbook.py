"""`cm2 cookbook`: the recipes are listed, and copied without overwriting anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cm2_agent.cli.app import app
from tests.cli_runner import CliRunner

COOKBOOK = Path(__file__).parents[2] / "cookbook"


def cookbook(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["cookbook", *arguments])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result.stderr if code else result.stdout


def test_every_recipe_is_listed_with_its_title() -> None:
    recipes = json.loads(cookbook("list", "--json"))["recipes"]
    assert set(recipes) == {path.name for path in COOKBOOK.iterdir() if path.suffix in {".py", ".yaml", ".json"}}
    assert recipes["01_embed.py"] == "Embed: watch an agent that is not ours, and see every dialogue scored"
    assert all(title and not set("\n#") & set(title) for title in recipes.values())
    lines = cookbook("list").splitlines()
    assert [line.split()[0] for line in lines] == sorted(recipes)


@pytest.mark.parametrize("name", ["01_embed", "01_embed.py"])
def test_a_recipe_is_copied_into_a_new_folder(tmp_path: Path, name: str) -> None:
    target = tmp_path / "new" / "01_embed.py"
    assert cookbook("copy", name, str(target.parent)).strip() == str(target)
    assert target.read_bytes() == (COOKBOOK / "01_embed.py").read_bytes()
    assert json.loads(cookbook("copy", name, str(target.parent), "--json")) == {"file": str(target)}


def test_a_recipe_is_copied_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cookbook("copy", "airline.yaml") == "airline.yaml\n"
    assert (tmp_path / "airline.yaml").read_bytes() == (COOKBOOK / "airline.yaml").read_bytes()


def test_a_file_of_the_user_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "01_embed.py").write_text("mine = True\n")
    assert "has other content" in cookbook("copy", "01_embed", str(tmp_path), code=2)
    assert (tmp_path / "01_embed.py").read_text() == "mine = True\n"


def test_a_recipe_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    assert "03_train.py" in cookbook("copy", "99_none", str(tmp_path), code=2)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert "cannot write" in cookbook("copy", "01_embed", str(tmp_path / "file"), code=2)
