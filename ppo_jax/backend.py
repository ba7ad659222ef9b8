"""The only place that distinguishes CPUs from accelerators.

An accelerator executes one kernel after the other. With small networks and environments a kernel
takes a few microseconds, about as long as starting it, so that the number of kernels determines the
speed. A CPU starts an operation within nanoseconds, and the number of bytes determines the speed.
"""

import jax


def launch_bound() -> bool:
    """Whether starting an operation takes about as long as executing it.

    The function is called while a program is traced. If it returns True, programs differ as follows
    (the numbers of kernels are in benchmarks/results/kernels.csv):

    - Each environment takes initial states from its own part of the pool, without a sum over all
      environments (`ppo_jax.envs.vectorize`). On CPUs the sum costs nothing measurable.
    - Four steps of a rollout form one iteration of the loop (`ppo_jax.rollout`). On CPUs this only
      increases the compilation time, except with few environments.
    - The outputs of a step are packed into one array (`ppo_jax.packed`), which takes one kernel
      instead of one for each output. On CPUs they would be copied twice.
    - The program shows the compiler where no step has weight 0 (`ppo_jax.envs.vectorize`,
      `ppo_jax.sgd`), so that it removes the arithmetic with weights. On CPUs the compiler then
      fuses too many operations, and small minibatches take longer.
    - The guard checks small arrays together (`ppo_jax.guard`).
    - The means of a loss are stacked into one reduction (`ppo_jax.losses.means`). On CPUs each mean
      is computed in the loop that computes its elements.
    """
    return jax.default_backend() != "cpu"
