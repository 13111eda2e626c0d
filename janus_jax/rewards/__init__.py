"""Rewards: functions that score generated images, registered in `REWARDS`. RL and best of N use them."""

from janus_jax.rewards.base import REWARDS, Reward, RewardFailed, checked, make_reward, register_reward
from janus_jax.rewards.clip import CLIPReward, HPSReward
from janus_jax.rewards.http import HTTPReward
from janus_jax.rewards.self_reward import SelfReward
from janus_jax.rewards.weighted import RewardConfig, RewardValues, WeightedRewards

__all__ = [
    "REWARDS",
    "CLIPReward",
    "HPSReward",
    "HTTPReward",
    "Reward",
    "RewardConfig",
    "RewardFailed",
    "RewardValues",
    "SelfReward",
    "WeightedRewards",
    "checked",
    "make_reward",
    "register_reward",
]
