"""What is built holds what is in the checkout: the wheel, the sdist and the wheel made of the sdist.

Nothing is downloaded: the build runs with the installed setuptools, and what is built is looked into without installing
its dependencies again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ("cookbook", "graphs", "rewards", "trainers")
FOLDERS = {"cm2_agent": "cm2_agent", **{f"cm2_agent/{folder}": folder for folder in OUTSIDE}}
LITTER = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "runs", "*.db*")
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(checkout: Path, kind: str, out: Path) -> Path:
    """Build as pip does, with `setuptools.build_meta` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{kind}", str(out)],
        cwd=checkout,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.split()[-1]


def package_files(checkout: Path) -> set[str]:
    """The package's files by their place in a wheel; the wings lie beside it and are not read through the links."""
    return {
        f"{package}/{path.relative_to(checkout / folder).as_posix()}"
        for package, folder in FOLDERS.items()
        for path in (checkout / folder).rglob("*")
        if path.is_file()
        and path.suffix != ".png"  # pictures of the documents
        and "__pycache__" not in path.parts
        and not is_wing(path.relative_to(checkout))
    }


def is_wing(path: Path) -> bool:
    return path.parts[0] == "cm2_agent" and "/".join(path.parts[:2]) in FOLDERS


def wheel_files(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, since building leaves files behind."""
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=LITTER)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    return build(checkout, "wheel", checkout.parent)


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    return build(checkout, "sdist", checkout.parent)


def test_the_wheel_holds_every_file_of_the_package(checkout: Path, wheel: Path) -> None:
    """A sub-package that `packages` of pyproject.toml does not name, or a data file of a kind it does not name, is
    missing here."""
    expected = package_files(checkout)
    assert {"cm2_agent/py.typed", "cm2_agent/rewards/__init__.py", "cm2_agent/libraries/grounding.yaml"} <= expected
    assert "cm2_agent/rewards/certificate/attacks/echo.yaml" in expected
    assert {"cm2_agent/cookbook/01_embed.py", "cm2_agent/cookbook/checklist.schema.json"} <= expected
    assert sorted(expected - wheel_files(wheel)) == []
    assert sorted(wheel_files(wheel) - expected) == []


def test_the_wheel_of_the_sdist_is_the_same(checkout: Path, wheel: Path, sdist: Path) -> None:
    unpacked = checkout.parent / "unpacked"
    shutil.unpack_archive(sdist, unpacked)
    (source,) = unpacked.iterdir()
    assert wheel_files(build(source, "wheel", unpacked)) == wheel_files(wheel)


def test_the_wheel_runs_beside_a_users_own_modules(wheel: Path, tmp_path: Path) -> None:
    """Unpacked elsewhere it is what gets imported, and a user's `rewards.py` stays the user's."""
    site, app = tmp_path / "site", tmp_path / "app"
    zipfile.ZipFile(wheel).extractall(site)
    app.mkdir()
    (app / "rewards.py").write_text("mine = True\n")
    code = "\n".join(
        [
            "import rewards, cm2_agent, cm2_agent.rewards, cm2_agent.graphs, cm2_agent.trainers",
            "assert rewards.mine",
            (
                "print(*(module.__file__ for module in (cm2_agent, cm2_agent.rewards, cm2_agent.graphs,"
                " cm2_agent.trainers)))"
            ),
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=app,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [Path(place).relative_to(site).parts[0] for place in done.stdout.split()] == ["cm2_agent"] * 4


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert archive.read(entry).decode().split() == ["[console_scripts]", "cm2", "=", "cm2_agent.cli:main"]
        (licence,) = (name for name in archive.namelist() if name.endswith("LICENSE"))
        assert b"Apache License" in archive.read(licence)


def test_what_is_pinned_is_what_is_asked_for() -> None:
    """constraints.txt names one version each, torch exactly; nothing in it is a range, an address or a path."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    assert pins["torch"] == "2.13.0"
    assert all(version.replace(".", "").isalnum() for version in pins.values())
    assert "certifi" not in pins
