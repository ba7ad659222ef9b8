"""What all contestants are measured on: one dataclass, named instances, JSON."""

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One problem and one size of PPO, in words that every contestant can translate.

    Attributes:
        name: key in CONFIGURATIONS.
        num_envs: environments of one agent, in parallel.
        num_steps: steps of each environment per update.
        env: Gymnasium's name of the environment.
        agents: independent agents trained at once, each with its own environments.
        network: "mlp", or "minatar": one 3x3 convolution with 16 channels, stride 1, no padding,
            then flattened. Actor and critic share nothing.
        hidden: widths of the fully connected layers.
        activation: after the convolution and each hidden layer, "tanh" or "relu".
        epochs: passes over the samples of an update.
        minibatches: parts of each pass, one step of Adam each.
        learning_rate: of Adam, constant.
        gamma: discount.
        gae_lambda: of generalised advantage estimation.
        clip_eps: range of the clipped ratio.
        entropy_coef: weight of the entropy bonus.
        value_coef: weight of the value loss.
        max_grad_norm: the gradient is clipped to it.
    """

    name: str
    num_envs: int
    num_steps: int
    env: str = "CartPole-v1"
    agents: int = 1
    network: str = "mlp"
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 2.5e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_eps: float = 0.2
    entropy_coef: float = 0.01
    value_coef: float = 0.5
    max_grad_norm: float = 0.5

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one update of all agents."""
        return self.num_envs * self.num_steps * self.agents

    @property
    def minibatch_size(self) -> int:
        """Transitions of one step of Adam of one agent."""
        return self.num_envs * self.num_steps // self.minibatches

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Configuration":
        """The configuration `to_json` wrote; fields left out have their defaults."""
        values = json.loads(text)
        if "hidden" in values:
            values["hidden"] = tuple(values["hidden"])
        return cls(**values)


def _breakout(name: str, num_envs: int, num_steps: int, agents: int = 1) -> Configuration:
    return Configuration(
        name,
        num_envs,
        num_steps,
        env="Breakout-MinAtar",
        agents=agents,
        network="minatar",
        activation="relu",
    )


_ALL = (
    Configuration("cartpole-4x128", 4, 128),
    Configuration("cartpole-64x128", 64, 128),
    Configuration("cartpole-2048x32", 2048, 32),
    Configuration("pendulum-64x128", 64, 128, env="Pendulum-v1"),
    _breakout("breakout-64x128", 64, 128),
    Configuration("cartpole-4x128-a16", 4, 128, agents=16),
    Configuration("cartpole-4x128-a128", 4, 128, agents=128),
    Configuration("cartpole-4x128-a2048", 4, 128, agents=2048),
    # Sizes that only an accelerator fills.
    Configuration("cartpole-8192x32", 8192, 32),
    Configuration("cartpole-32768x32", 32768, 32),
    Configuration("cartpole-131072x32", 131072, 32),
    Configuration("cartpole-8192x32-h256", 8192, 32, hidden=(256, 256, 256)),
    Configuration("cartpole-4x128-a256", 4, 128, agents=256),
    _breakout("breakout-2048x32", 2048, 32),
    _breakout("breakout-64x128-a256", 64, 128, agents=256),
)
CONFIGURATIONS: dict[str, Configuration] = {each.name: each for each in _ALL}
