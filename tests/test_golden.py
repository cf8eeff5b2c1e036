"""Reports of the saved vmcores: no change goes unseen. They say what is, not what is right:
that is tested against the real ksmd elsewhere."""

from __future__ import annotations

import json

import jsonschema
import pytest

from tests.golden import FOLDER, NAMES, difference, rendered
from tests.test_report import SCHEMA, document, report


@pytest.mark.parametrize("name", NAMES)
def test_the_report_is_as_accepted(name: str) -> None:
    found = [difference(file, text) for file, text in rendered(name).items()]
    if any(found):
        pytest.fail(
            "the report has changed; look at it, and accept it with scripts/golden --accept\n"
            + "".join(found),
            pytrace=False,
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_report_keeps_to_the_schema(name: str) -> None:
    made = json.loads((FOLDER / f"{name}.json").read_text())
    made["run"] = document(report())["run"]
    jsonschema.Draft202012Validator(SCHEMA).validate(made)


def test_every_golden_report_has_its_vmcore() -> None:
    files = {path.name for path in FOLDER.iterdir()}
    assert files == {f"{name}.{kind}" for name in NAMES for kind in ("txt", "json")}
