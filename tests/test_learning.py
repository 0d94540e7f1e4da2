"""A learner that learns: real Pong frames, with rewards whose best policy and value are known."""

import os

import numpy as np
import pytest

import a3c_pong
import pong_actor

UP, DOWN = 2, 3


def wanted_actions(rollout):
    """For each step: DOWN where our paddle (columns 70, 71) is in the upper half, else UP."""
    paddle = np.isin(rollout.rows % 80, (70, 71))
    height = rollout.rows[paddle] // 80
    states = rollout.states[:-1, paddle]
    middle = states @ height / np.maximum(states.sum(axis=1), 1)
    return np.where(middle < 40, DOWN, UP)


def weights_after(steps, seed):
    """All global weights after a real worker has played and learned so many steps."""
    settings = a3c_pong.Settings(workers=1, max_steps=steps, seed=seed)
    actors = pong_actor.Actors("Pong-v0", seed, (20, 300, 6))
    actors.start("W_0")
    try:
        with a3c_pong.tf.Graph().as_default():
            run, session = a3c_pong.Run(settings), a3c_pong.new_session()
            (worker,) = a3c_pong.build(session, run, actors)
        cores = os.sched_getaffinity(0)
        worker.work()
        os.sched_setaffinity(0, cores)
        globalnet = worker.AC.globalAC
        return session.run([globalnet.kernel, *globalnet.a_params, *globalnet.c_params])
    finally:
        actors.close()


@pytest.mark.slow
def test_one_worker_and_a_seed_settle_every_weight():
    a3c_pong.load_tensorflow()
    first, again, other = (weights_after(4000, seed) for seed in (5, 5, 6))
    for one, same, different in zip(first, again, other):
        assert np.array_equal(one, same)
        assert not np.array_equal(one, different)


@pytest.mark.slow
def test_it_learns_what_to_do_where():
    """Reward 1 for the wanted action, 0 for others, gamma 0: a value of 1 and no doubt left.

    Guessing earns 1/6, and the best that is blind to the frame 1/2. Broken on purpose, a learner
    stayed below 0.45: with its rows in reverse order, its actions off by one step, the sign of the
    returns turned, or the pull left out.
    """
    a3c_pong.load_tensorflow()
    settings = a3c_pong.Settings(gamma=0.0, lr_actor=1e-3, lr_critic=1e-3, workers=1)
    actors = pong_actor.Actors("Pong-v0", 11, (20, 300, 6))
    actors.start("W_0")
    try:
        with a3c_pong.tf.Graph().as_default():
            run, session = a3c_pong.Run(settings), a3c_pong.new_session()
            (worker,) = a3c_pong.build(session, run, actors)
        worker._begin()
        earned, values = [], []
        for _ in range(2000):
            rollout = worker.actor.play(20)
            rewards = (rollout.actions == wanted_actions(rollout)).astype(float).tolist()
            earned.append(np.mean(rewards))
            returns = a3c_pong.discounted_returns(rewards, True, settings.gamma)
            feed = {worker.AC.rows: rollout.rows, worker.AC.s: rollout.states}
            if len(earned) > 1800:
                values.append(session.run(worker.AC.v, feed)[:-1, 0].mean())
            worker.AC.update_global(rollout, *returns)
            worker.AC.pull_global(worker.actor.policy)
    finally:
        actors.close()
    assert np.mean(earned[:100]) < 0.5
    assert np.mean(earned[-200:]) > 0.9
    assert abs(np.mean(values) - np.mean(earned[-200:])) < 0.1
