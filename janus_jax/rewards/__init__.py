"""Rewards: functions that score generated images, registered in `REWARDS`. RL and best of N use them."""

from janus_jax.rewards.base import REWARDS, Reward, make_reward, register_reward
from janus_jax.rewards.weighted import RewardConfig, RewardValues, WeightedRewards

__all__ = [
    "REWARDS",
    "Reward",
    "RewardConfig",
    "RewardValues",
    "WeightedRewards",
    "make_reward",
    "register_reward",
]
