"""The structure of the notebooks; nbmake executes them, with their assertions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import documents
from ppo_jax import losses
from ppo_jax.advantages import discounted_returns
from ppo_jax.distributions import Bernoulli

NOTEBOOKS = sorted((documents.ROOT / "notebooks").glob("*.ipynb"))


def cells(notebook, kind):
    """The sources of the cells of a kind."""
    found = json.loads(notebook.read_text())["cells"]
    return ["".join(c["source"]) for c in found if c["cell_type"] == kind]


def test_the_notebooks_have_an_order():
    names = [path.name for path in NOTEBOOKS]
    assert names[-1] == "quickstart.ipynb"  # comes first, and has the name that pages link to
    assert [name[:2] for name in names[:-1]] == [f"{n:02}" for n in range(1, len(names))]
    for number, path in enumerate(NOTEBOOKS[:-1], 1):
        assert cells(path, "markdown")[0].startswith(f"# {number} · ")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_leads_its_reader(notebook):
    text = cells(notebook, "markdown")
    assert "**Before this notebook:**" in text[0] and "**After it:**" in text[0]
    assert sum("**You should see**" in cell for cell in text) >= 3
    exercises = next(cell for cell in text if "## Exercises" in cell)
    assert "<details><summary>Answers</summary>" in exercises and "</details>" in exercises


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_without_errors(notebook):
    """In order, in one session; warnings of one machine are not kept."""
    code = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in code] == [*range(1, len(code) + 1)]
    for output in (o for c in code for o in c["outputs"]):
        assert output["output_type"] != "error" and output.get("name") != "stderr"
    assert any("assert " in source for source in cells(notebook, "code"))


def test_the_gradient_by_hand_is_that_of_jax():
    """Notebook 04 computes the policy gradient in numpy; here with other numbers than in its game,
    and actions and advantages that have nothing to do with each other."""
    notebook = documents.ROOT / "notebooks/04_pong_from_pixels.ipynb"
    source = next(s for s in cells(notebook, "code") if "def policy_gradient" in s)
    by_hand = {"np": np}
    exec(source, by_hand)
    rng = np.random.default_rng(1)
    weights = by_hand["initial_weights"](rng, 12, 5)
    x, up = rng.standard_normal((30, 12)), rng.integers(0, 2, 30)
    reward = rng.choice([-1.0, 0.0, 1.0], 30, p=[0.1, 0.8, 0.1])
    returns = by_hand["returns_of_points"](reward, 0.9)
    assert 2 < np.count_nonzero(reward) < 28

    def loss(weights):
        log_odds = jnp.maximum(0.0, x @ weights["W1"].T) @ weights["w2"]
        log_prob = Bernoulli(log_odds[:, None]).log_prob(up[:, None])
        return losses.mean(losses.policy_gradient(log_prob, jnp.asarray(returns)))

    with jax.enable_x64(True):
        discount = 0.9 * jnp.asarray(reward == 0)
        expected = np.asarray(discounted_returns(jnp.asarray(reward), discount, 0.0))
        gradient = jax.tree.map(np.asarray, jax.grad(loss)(jax.tree.map(jnp.asarray, weights)))
    np.testing.assert_allclose(returns, expected, rtol=1e-12)
    found = by_hand["policy_gradient"](weights, x, up, returns)
    for name, value in gradient.items():
        np.testing.assert_allclose(found[name], -value, rtol=1e-9, atol=1e-12)
