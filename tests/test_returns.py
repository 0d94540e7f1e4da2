"""Returns and rewards by hand."""

import numpy as np

from a3c_pong import discounted_returns, learning_rewards, moving
from pong_actor import Rollout


def rollout(rewards, terminal=False, truncated=False):
    return Rollout(None, None, None, np.array(rewards, np.float32), terminal, truncated)


def test_bootstrap_from_the_value_of_the_last_state():
    rewards, discounts = discounted_returns([0.0, 1.0, -1.0], False, 0.5)
    np.testing.assert_allclose(rewards, [0 + 0.5 * (1 + 0.5 * -1), 1 + 0.5 * -1, -1])
    np.testing.assert_allclose(discounts, [0.125, 0.25, 0.5])
    assert rewards.dtype == discounts.dtype == np.float32


def test_no_bootstrap_at_the_end_of_a_game():
    rewards, discounts = discounted_returns([1.0, 0.0, -20.0], True, 0.9)
    np.testing.assert_allclose(rewards, [1 + 0.81 * -20, 0.9 * -20, -20], rtol=1e-6)
    assert discounts.tolist() == [0, 0, 0]


def test_one_step():
    rewards, discounts = discounted_returns([1.0], False, 0.9)
    np.testing.assert_allclose([rewards, discounts], [[1], [0.9]])


def test_it_is_the_chapters_loop():
    rng = np.random.default_rng(1)
    buffer_r, v = rng.integers(-1, 2, 20).tolist(), 0.37
    v_s_, expected = v, []
    for r in buffer_r[::-1]:
        v_s_ = r + 0.9 * v_s_
        expected.append(v_s_)
    rewards, discounts = discounted_returns(buffer_r, False, 0.9)
    np.testing.assert_allclose(rewards + discounts * v, expected[::-1], rtol=1e-6)


def test_a_lost_games_last_point_counts_minus_20():
    assert learning_rewards(rollout([0, -1], terminal=True), -20.0) == [0, -20]
    assert learning_rewards(rollout([-1, -1], terminal=True), -5.0) == [-1, -5]


def test_other_last_points_count_as_they_are():
    assert learning_rewards(rollout([0, 1], terminal=True), -20.0) == [0, 1]  # won
    assert learning_rewards(rollout([0, -1]), -20.0) == [0, -1]  # the game goes on
    assert learning_rewards(rollout([0, -1], truncated=True), -20.0) == [0, -1]  # cut off
    assert learning_rewards(rollout([0, -1], terminal=True), None) == [0, -1]  # turned off


def test_the_moving_mean_is_the_chapters():
    assert moving(None, -39) == -39
    assert np.isclose(moving(-39, -21), 0.99 * -39 + 0.01 * -21)
