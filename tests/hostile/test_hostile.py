"""Every command and the Python interface on hostile input: a row of hostile/corpus.py each."""

import pytest

from hostile import corpus, fixtures
from hostile.rows import judge


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return fixtures.make(tmp_path_factory.mktemp("fixtures"))


def test_there_are_enough_rows_of_each_command():
    names = [str(row) for row in corpus.ROWS]
    assert len(names) >= 300
    assert len(set(names)) == len(names), sorted(name for name in set(names) if names.count(name) > 1)


@pytest.mark.parametrize("row", corpus.ROWS, ids=str)
def test_row(row, made, tmp_path):
    broken = judge(row, tmp_path / "box", made)
    assert not broken, "\n".join(broken)
