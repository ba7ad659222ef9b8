"""The zoo: small trained agents in the package, each with a card that it can be verified by.

`agents/` has the weights and the cards, `ppo_jax.runs.cards` reads them, and `verify` compares an
agent, or an agent that is trained again, with its card.
"""
