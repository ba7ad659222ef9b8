"""Hyperparameters of published work, by name. Options that are not listed keep their defaults."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # microsoft/DeepSpeedExamples, applications/DeepSpeed-Chat: dschat/rlhf/ppo_trainer.py and
    # training/step3_rlhf_finetuning/training_scripts/opt/single_node/run_1.3b.sh. Its decay rates
    # of Adam and its cosine schedule are not included.
    "deepspeed_chat": {
        "kl_coef": 0.1,  # ppo_trainer.py: kl_ctl
        "reward_clip": 5.0,  # ppo_trainer.py: clip_reward_value
        "clip_eps": 0.2,  # ppo_trainer.py: cliprange
        "value_clip_eps": 0.2,  # ppo_trainer.py: cliprange_value
        "gamma": 1.0,  # ppo_trainer.py: gamma
        "gae_lambda": 0.95,  # ppo_trainer.py: lam
        "value_coef": 1.0,  # ppo_trainer.py: separate losses and optimisers of actor and critic
        "whiten_advantages": False,  # ppo_trainer.py: get_advantages_and_returns
        "epochs": 1,  # README of step 3: more epochs were unstable
        "minibatches": 1,  # README of step 3: the generation batch is the training batch
        "learning_rate": 9.65e-6,  # run_1.3b.sh: Actor_Lr
        "critic_rate": 0.518,  # run_1.3b.sh: Critic_Lr 5e-6
        "max_new_tokens": 256,  # run_1.3b.sh: max_answer_seq_len
        "critic": "reward",  # main.py: the critic starts from the reward model
    },
    # Ouyang et al. 2022, Training Language Models to Follow Instructions with Human Feedback,
    # appendix C; values with the comment "ours" are not in the paper
    "instructgpt": {
        "kl_coef": 0.02,  # C.4: KL reward coefficient
        "gamma": 1.0,  # C.4: no discount
        "gae_lambda": 0.95,  # ours
        "clip_eps": 0.2,  # C.4: PPO clip ratio
        "value_clip_eps": 0.2,  # ours
        "temperature": 1.0,  # C.4: sampling temperature
        "num_prompts": 512,  # C.4: batch size
        "minibatches": 8,  # C.4: minibatches of 64
        "epochs": 1,  # C.4: a single inner epoch
        "learning_rate": 9e-6,  # C.4: of the value functions of 1.3B and 6B; here of the actor too
        "anneal": False,  # C.4: constant; its warm-up over ten updates is not included
        "max_new_tokens": 1024,  # C: responses of at most 1k tokens
        "critic": "reward",  # C.4: the value function is initialised from the reward model
    },
    # Huang et al. 2024, The N+ Implementation Details of RLHF with PPO (TL;DR):
    # the arguments of summarize_from_feedback_details/ppo.py
    "n_plus": {
        "kl_coef": 0.05,  # ppo.kl_coef
        "gamma": 1.0,  # ppo.gamma
        "gae_lambda": 0.95,  # ppo.lam
        "clip_eps": 0.2,  # ppo.cliprange
        "value_clip_eps": 0.2,  # ppo.cliprange_value
        "value_coef": 0.1,  # ppo.vf_coef
        "epochs": 4,  # ppo.noptepochs
        "minibatches": 1,  # ppo.nminibatches
        "num_prompts": 512,  # batch_size
        "learning_rate": 3e-6,  # lr
        "adam_eps": 1e-5,  # eps
        "max_grad_norm": float("inf"),  # gradients are not clipped
        "temperature": 0.7,  # task.temperature
        "max_new_tokens": 53,  # task.response_length
        "missing_eos_score": -1.0,  # task.penalty_reward_value
        "whiten_advantages": True,  # once per rollout
        "critic": "reward",  # the critic starts from the reward model
    },
    # Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences: launch.py and
    # train_policy.py of openai/lm-human-preferences, sentiment
    "lm_human_preferences": {
        "kl_coef": 0.15,  # launch.py: rewards.kl_coef
        "kl_target": 6.0,  # launch.py: adaptive_kl.target
        "kl_horizon": 10_000.0,  # train_policy.py: AdaptiveKLParams.horizon
        "gamma": 1.0,  # train_policy.py: PpoHParams.gamma
        "gae_lambda": 0.95,  # train_policy.py: PpoHParams.lam
        "clip_eps": 0.2,  # train_policy.py: PpoHParams.cliprange
        "value_clip_eps": 0.2,  # train_policy.py: PpoHParams.cliprange_value
        "value_coef": 0.1,  # train_policy.py: PpoHParams.vf_coef
        "epochs": 4,  # train_policy.py: PpoHParams.noptepochs
        "minibatches": 1,  # launch.py: nminibatches
        "num_prompts": 512,  # launch.py: batch_size
        "learning_rate": 1e-5,  # launch.py: lr
        "adam": "tensorflow",  # the optimiser is that of TensorFlow 1
        "adam_eps": 1e-5,  # train_policy.py: epsilon
        "max_grad_norm": float("inf"),  # train_policy.py: gradients are not clipped
        "temperature": 0.7,  # launch.py: policy.temperature
        "max_new_tokens": 24,  # launch.py: response_length
        "whiten_rewards": True,  # train_policy.py: PpoHParams.whiten_rewards
        "critic": "shared",  # policy.py: the value head is on the policy's trunk
    },
}
