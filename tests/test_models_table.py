"""docs/models.md says what the zoo shows."""

from __future__ import annotations

import re

import pytest

from . import models_table
from .zoo import ZOO


def test_the_document_lists_the_classes_of_the_zoo_and_no_failure():
    text = models_table.DOCUMENT.read_text()
    assert set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE)) == {type(make().model).__name__ for make in ZOO.values()}
    assert "FAILS" not in text
    assert text.startswith(models_table.TEXT)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_document_is_what_the_checks_give():
    assert models_table.document(models_table.rows()) == models_table.DOCUMENT.read_text()


def test_a_failure_is_written_as_one():
    assert models_table._verdict(2e-5, 1e-5) == "FAILS (2.0e-05)"
    assert models_table._verdict(3e-8, 1e-5) == "< 1e-5"
    assert models_table._verdict(3e-5, 1e-4) == "< 1e-4"
    assert models_table._verdict(9e-6, 1e-5) == "< 1e-5"
