"""The configurations that all contestants are measured on."""

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Configuration:
    """An environment and the hyperparameters of PPO, described independently of the project.

    Attributes:
        name: name of the configuration, a key of CONFIGURATIONS.
        num_envs: number of parallel environments of one agent.
        num_steps: number of steps of each environment per update.
        env: name of the environment in Gymnasium.
        agents: number of independent agents trained at once, each with its own environments.
        network: "mlp" for fully connected layers only; "minatar" for a 3x3 convolution with 16
            channels, stride 1 and no padding before them. Actor and critic share no layers.
        hidden: widths of the fully connected layers.
        activation: activation after the convolution and each hidden layer, "tanh" or "relu".
        epochs: number of passes over the samples of an update.
        minibatches: number of minibatches per epoch, with one step of Adam each.
        learning_rate: learning rate of Adam, which is constant.
        gamma: discount factor γ.
        gae_lambda: λ of generalised advantage estimation.
        clip_eps: clip range of the ratio.
        entropy_coef: coefficient of the entropy bonus.
        value_coef: coefficient of the value loss.
        max_grad_norm: maximum gradient norm.
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
        """The number of environment steps in one update of all agents."""
        return self.num_envs * self.num_steps * self.agents

    @property
    def minibatch_size(self) -> int:
        """The number of transitions in one gradient step of one agent."""
        return self.num_envs * self.num_steps // self.minibatches

    def to_json(self) -> str:
        """The configuration as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Configuration":
        """The configuration in a line of JSON from `to_json`; missing fields get their defaults."""
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
    # Sizes that only an accelerator can use efficiently.
    Configuration("cartpole-8192x32", 8192, 32),
    Configuration("cartpole-32768x32", 32768, 32),
    Configuration("cartpole-131072x32", 131072, 32),
    Configuration("cartpole-8192x32-h256", 8192, 32, hidden=(256, 256, 256)),
    Configuration("cartpole-4x128-a256", 4, 128, agents=256),
    _breakout("breakout-2048x32", 2048, 32),
    _breakout("breakout-64x128-a256", 64, 128, agents=256),
)
CONFIGURATIONS: dict[str, Configuration] = {each.name: each for each in _ALL}
