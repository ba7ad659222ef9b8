"""Hyperparameters of published work, by name. What is not named keeps its default."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # microsoft/DeepSpeedExamples, applications/DeepSpeed-Chat: dschat/rlhf/ppo_trainer.py and
    # training/step3_rlhf_finetuning/training_scripts/opt/single_node/run_1.3b.sh
    "deepspeed_chat": {
        "kl_coef": 0.1,  # ppo_trainer.py: kl_ctl
        "reward_clip": 5.0,  # ppo_trainer.py: clip_reward_value
        "clip_eps": 0.2,  # ppo_trainer.py: cliprange
        "value_clip_eps": 0.2,  # ppo_trainer.py: cliprange_value
        "gamma": 1.0,  # ppo_trainer.py: gamma
        "gae_lambda": 0.95,  # ppo_trainer.py: lam
        "value_coef": 1.0,  # ppo_trainer.py: actor and critic have a loss and an optimiser each
        "whiten_advantages": False,  # ppo_trainer.py: get_advantages_and_returns
        "epochs": 1,  # README of step 3: more were unstable
        "minibatches": 1,  # README of step 3: the generation batch is the training batch
        "learning_rate": 9.65e-6,  # run_1.3b.sh: Actor_Lr
        "critic_rate": 0.518,  # run_1.3b.sh: Critic_Lr 5e-6
        "max_new_tokens": 256,  # run_1.3b.sh: max_answer_seq_len
        "critic": "reward",  # main.py: the critic starts from the reward model
    },
    # Ouyang et al. 2022, Training Language Models to Follow Instructions with Human Feedback,
    # appendix C.4
    "instructgpt": {
        "kl_coef": 0.02,  # C.4: KL reward coefficient
        "gamma": 1.0,  # C.4: no discount
        "gae_lambda": 0.95,  # C.4
        "clip_eps": 0.2,  # C.4: PPO clip ratio
        "value_clip_eps": 0.2,  # C.4: the same for the value function
        "temperature": 1.0,  # C.4: sampling temperature
        "num_prompts": 512,  # C.4: batch size
        "minibatches": 8,  # C.4: minibatches of 64
        "epochs": 1,  # C.4: a single inner epoch
        "critic": "reward",  # C.1: the value function is initialised from the reward model
    },
    # Huang et al. 2024, The N+ Implementation Details of RLHF with PPO (TL;DR), table of
    # hyperparameters, and the code beside it (summarize_from_feedback_details/ppo.py)
    "n_plus": {
        "kl_coef": 0.05,
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "clip_eps": 0.2,
        "value_clip_eps": 0.2,
        "value_coef": 0.1,
        "epochs": 4,
        "minibatches": 1,
        "num_prompts": 512,
        "learning_rate": 3e-6,
        "adam_eps": 1e-5,
        "temperature": 0.7,
        "max_new_tokens": 53,
        "missing_eos_penalty": 1.0,  # there the score becomes −1; here 1 is subtracted
        "whiten_advantages": True,
        "critic": "reward",
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
        "adam": "tensorflow",  # TensorFlow 1's
        "adam_eps": 1e-5,  # train_policy.py: epsilon
        "temperature": 0.7,  # launch.py: policy.temperature
        "max_new_tokens": 24,  # launch.py: response_length
        "whiten_rewards": True,  # train_policy.py: PpoHParams.whiten_rewards
        "critic": "shared",  # policy.py: the value head is on the policy's trunk
    },
}
