"""Returns and rewards by hand."""

import numpy as np
import pytest

from a3c_pong import lambda_returns, learning_rewards
from pong_actor import Rollout
from runtime.run import moving


def rollout(rewards, terminal=False, truncated=False):
    return Rollout(None, None, None, np.array(rewards, np.float32), terminal, truncated)


def returns(rewards, values, ends=(), gamma=0.5, lambda_=1.0):
    """The returns of `lambda_returns`, from the values [n + 1] of the states; ends: their steps."""
    ended = [step in ends for step in range(len(rewards))]
    of_rewards, weights = lambda_returns(rewards, ended, gamma, lambda_)
    return of_rewards + weights @ np.array(values[1:], float)


NO_VALUES = [7, 7, 7]  # of the states before the last: the chapter's returns do not ask for them


def test_bootstrap_from_the_value_of_the_last_state():
    last = -1 + 0.5 * 8
    expected = [0 + 0.5 * (1 + 0.5 * last), 1 + 0.5 * last, last]
    np.testing.assert_allclose(returns([0.0, 1.0, -1.0], [*NO_VALUES, 8]), expected)


def test_no_bootstrap_at_the_end_of_a_game():
    expected = [1 + 0.81 * -20, 0.9 * -20, -20]
    np.testing.assert_allclose(returns([1, 0, -20], [*NO_VALUES, 8], {2}, 0.9), expected)


def test_a_rollout_of_one_step():
    np.testing.assert_allclose(returns([1.0], [7, 8], gamma=0.9), [1 + 0.9 * 8])
    np.testing.assert_allclose(returns([1.0], [7, 8], {0}, 0.9), [1])


def test_it_is_the_chapters_loop():
    rng = np.random.default_rng(1)
    buffer_r, v = rng.integers(-1, 2, 20).tolist(), rng.normal(size=21)
    v_s_, expected = v[-1], []
    for r in buffer_r[::-1]:
        v_s_ = r + 0.9 * v_s_
        expected.append(v_s_)
    np.testing.assert_allclose(returns(buffer_r, v, gamma=0.9), expected[::-1], rtol=1e-12)


# Five steps by hand, gamma 0.5: the one-step targets and the n-step returns of the Q methods.
REWARDS, VALUES = [1, 0, -1, 0, 1], [90, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    "ends, one_step, n_step",
    [
        (set(), [2, 2, 2, 4, 6], [1.125, 0.25, 0.5, 3, 6]),
        ({4}, [2, 2, 2, 4, 1], [0.8125, -0.375, -0.75, 0.5, 1]),
        ({2}, [2, 2, -1, 4, 6], [0.75, -0.5, -1, 3, 6]),
    ],
    ids=["no end", "an end after the rollout", "an end in its middle"],
)
def test_the_targets_of_five_steps(ends, one_step, n_step):
    np.testing.assert_allclose(returns(REWARDS, VALUES, ends, lambda_=0.0), one_step)
    np.testing.assert_allclose(returns(REWARDS, VALUES, ends, lambda_=1.0), n_step)


def test_less_the_values_they_are_generalized_advantage_estimation():
    """Its own recursion, A_t = delta_t + gamma lambda A_{t+1}, cut at ends."""
    rng = np.random.default_rng(2)
    rewards, values, ended = rng.normal(size=50), rng.normal(size=51), {7, 8, 30}
    advantage, expected = 0.0, []
    for t in reversed(range(50)):
        after = 0 if t in ended else 1
        delta = rewards[t] + 0.97 * after * values[t + 1] - values[t]
        advantage = delta + 0.97 * 0.95 * after * advantage
        expected.append(advantage)
    advantages = returns(rewards, values, ended, 0.97, 0.95) - values[:-1]
    np.testing.assert_allclose(advantages, expected[::-1], rtol=1e-10)


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
