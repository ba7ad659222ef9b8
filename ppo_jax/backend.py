"""What is computed one way on CPUs and another way on accelerators, decided here alone.

An accelerator starts one kernel after the other. With small networks and environments each of them
is done in a few microseconds, about as long as it takes to start it, so that the number of kernels
decides: on an H200 an update of 2,048 CartPoles is 2,150 of them in 4.0 ms. A CPU starts an
operation in nanoseconds, and there the number of bytes decides.
"""

import jax


def launch_bound() -> bool:
    """Whether starting an operation costs about as much as doing it.

    Read while a program is traced. Where it is true (factors: first versions of these changes on an
    H200, CartPole, 2,048 x 32; the kernels of today are in benchmarks/results/kernels.csv):

    - each environment takes resets from a share of the pool of its own, and no sum over all
      environments says which are next (`ppo_jax.envs.vectorize`; 1.11 times as fast). On CPUs the
      sum costs nothing that can be measured.
    - four steps of a rollout are one iteration of the loop (`ppo_jax.rollout`; together with the
      pool 1.1 times as fast). On CPUs that only takes longer to compile, but for few environments.
    - what a step leaves is put together into one array (`ppo_jax.packed`), which is one kernel
      instead of one for each part. On CPUs it would be copied twice.
    - the compiler is told where no step has weight 0 (`ppo_jax.envs.vectorize`, `ppo_jax.sgd`), and
      leaves out the arithmetic with weights (1.03 times as fast). On CPUs it then fuses more than
      is good, and minibatches of 128 rows take longer.
    - the guard looks at small arrays together (`ppo_jax.guard`).
    - the means of a loss are one reduction of them stacked (`ppo_jax.losses.means`; 1.02 times as
      fast). On CPUs each is computed in the loop that computes its elements.
    """
    return jax.default_backend() != "cpu"
