"""The list of mutations matches the source code; `python -m benchmarks.mutations` applies them."""

import csv
from pathlib import Path

import pytest

from benchmarks import mutations

ALL = mutations.mutations()


def test_each_mutation_is_of_one_place_and_names_a_test():
    assert len(ALL) >= 40
    with mutations.FILE.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(ALL)  # all names are different
    for mutation in ALL.values():
        text = (mutations.ROOT / mutation.file).read_text()
        assert text.count(mutation.old) == 1, mutation
        assert mutation.new != mutation.old and bool(mutation.test) != bool(mutation.survives)
        if mutation.test:
            file, _, test = mutation.test.partition("::")
            assert f"def {test.partition('[')[0]}(" in (mutations.ROOT / file).read_text(), mutation


@pytest.mark.slow
def test_a_mutation_is_noticed_and_the_code_as_it_is_is_not():
    mutation = ALL["L2"]
    assert mutations.notices(mutation) == mutations.FAILED
    same = mutations.dataclasses.replace(mutation, new=mutation.old)
    assert mutations.notices(same) == mutations.PASSED


def test_a_text_that_is_not_there_once_is_refused(tmp_path):
    module = Path("module.py")
    (tmp_path / module).write_text("a a")
    mutation = mutations.Mutation("x", str(module), "a", "b", "", "")
    with pytest.raises(ValueError, match="2 times"):
        mutation.apply(tmp_path)
