"""Measurements of ppo_jax on an accelerator, by one command: `python -m benchmarks.accelerator`.

The measurements are tasks, in the order in which they are made; each leaves one or more rows.

tasks      the record of a task, and all of them in order
checks     training to a full return, resuming, agreement with the CPU
control    peak rates of the device; environment steps per second
language   PPO on decoders: tokens per second
peers      PureJaxRL and Rejax on some of the same tasks
learning   what 64 seeds learn, with intervals
profile    the parts of one update
roofline   peak rates, and the least work of a program
worker     the process that measures; session: the one that keeps time and writes the rows
report     the table and the figure of docs/accelerators.md
"""
