"""Train an agent on Pong for a few minutes and write an animation of one of its games.

    python watch_pong.py

The first call trains. Later calls load the agent from its run directory and only play.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import ppo_jax

# Images of 28x28 pixels make a step cheap. The easy opponent follows the ball slowly.
PONG = ("size=28", "frames=3", "difficulty=easy", "credit=point")


def train(run_dir, total_timesteps):
    """Train from the preset "pong", whose learning rate decays over six million steps."""
    config = ppo_jax.config.make(
        preset="pong", env_args=PONG, total_timesteps=total_timesteps, anneal_timesteps=6e6
    )
    ppo_jax.run(config, run_dir, eval_episodes=0)


def main():
    """Train if there is no run yet, then play eight games and write one of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run-dir", type=Path, default=Path("../runs/watch_pong"))
    parser.add_argument("--total-timesteps", type=float, default=2e6)
    parser.add_argument("--gif", type=Path, default=Path("../pong.gif"))
    options = parser.parse_args()
    if not (options.run_dir / "config.json").exists():
        train(options.run_dir, options.total_timesteps)
    command = [sys.executable, "-m", "ppo_jax.evaluate", str(options.run_dir)]
    sys.exit(subprocess.call([*command, "--episodes", "8", "--gif", str(options.gif)]))


if __name__ == "__main__":
    main()
