"""The README says what is so."""

import dataclasses
import pathlib
import re

from runtime import command_line as settings

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def section(title):
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def table(title):
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_settings_table_is_the_dataclass():
    expected = [
        [f"`{settings.option(f.name)}`", f"`{settings.shown(f.default)}`", f.metadata["help"]]
        for f in dataclasses.fields(settings.Settings)
    ]
    assert table("Settings") == expected


def test_every_departure_has_a_reason_and_a_test_that_exists():
    rows = table("Departures from the chapter")
    assert len(rows) > 10
    for chapter, here, why, test in rows:
        assert chapter and here and why, test
        named = re.findall(r"`(test_\w+\.py)`", test)
        assert named and all((ROOT / "tests" / name).exists() for name in named), test
        code = "".join((ROOT / "tests" / name).read_text() for name in named)
        for function in re.findall(r"`(test_\w+)`", test):
            assert f"def {function}(" in code, function


def test_every_file_and_picture_it_shows_is_there():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in path or (ROOT / path).exists(), path
