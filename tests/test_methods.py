"""The chapter's four methods: what differs between them."""

import dataclasses
import threading

import numpy as np
import pytest
from dense_q import DenseQ
from in_process import GAME, InProcess
from test_exact import SIZES, Sparse, copied, dense

import a3c_pong
from runtime.actors import PongActor

Q_METHODS = "one-step-q", "one-step-sarsa", "n-step-q"


@pytest.fixture(scope="module")
def rollouts():
    """Rollouts of real play with an action chosen ahead, one with the end of a game among them."""
    actor = PongActor(GAME, [1, 2], SIZES, ahead=True)
    rng = np.random.default_rng(0)
    for weights in (actor.policy.kernel, actor.policy.head_kernel):
        weights[...] = rng.normal(0, 0.1, weights.shape)
    played = []
    while len(played) < 30 or not played[-1].terminal:
        played.append(copied(actor.play(20)))
    actor.close()
    return played[-30:] + played[:30]


def q_values(sparse, params):
    return sparse.session.run(params.all())


@pytest.mark.slow
@pytest.mark.parametrize("method", Q_METHODS)
def test_updates_equal_a_dense_graph_with_targets_step_by_step(tf, rollouts, method):
    """In double precision, every number of 60 updates; with a target network that falls behind."""
    settings = a3c_pong.Settings(method=method, gamma=0.9, lr_q=0.001)
    sparse = Sparse(tf, 1, settings, double=True)
    params, target = sparse.globalnet.params, sparse.globalnet.target
    rng = np.random.default_rng(4)
    for variable in target.kernel, target.heads["q_network"][1]:
        variable.load(rng.normal(0, 0.1, variable.shape), sparse.session)
    start, behind = q_values(sparse, params), q_values(sparse, target)
    assert not np.array_equal(start[0], behind[0])
    reference = DenseQ(tf, start, behind, settings)
    for number, rollout in enumerate(rollouts):
        rewards = a3c_pong.learning_rewards(rollout, -20.0)
        sparse.update_global(0, rollout, rewards)
        sparse.pull_global(0)
        step = rollout.actions, rollout.next_action, rewards, rollout.terminal
        reference.update(dense(rollout), *step)
        if number == 40:
            sparse.globalnet.refresh_target()
            reference.session.run(reference.refresh)
    assert any(rollout.terminal for rollout in rollouts)
    log, optimizer = sparse.globalnet.row_log, sparse.globalnet.kernel_train
    missed = log.updates - log.touched_by[:, np.newaxis]
    mean_square = sparse.session.run(optimizer.mean_square) * optimizer.decay**missed
    ours = [*q_values(sparse, params), mean_square]
    for mine, theirs, first in zip(ours, reference.values(), [*start, np.ones(1)]):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)
        assert np.abs(theirs - first).max() > 1e-3  # it has learned something


def test_epsilons_are_drawn_as_in_the_paper():
    network, settings = a3c_pong.OneStepQ, a3c_pong.Settings(seed=7)
    finals = [network.exploration(settings, number, 3.0)(10**9) for number in range(4000)]
    values, counts = np.unique(np.round(finals, 6), return_counts=True)
    assert values.tolist() == [0.01, 0.1, 0.5]
    for share, expected in zip(counts / 4000, (0.3, 0.4, 0.3)):
        assert abs(share - expected) < 5 * np.sqrt(0.25 / 4000)
    again = [network.exploration(settings, number, 3.0)(10**9) for number in range(100)]
    settings = a3c_pong.Settings(seed=8)
    other = [network.exploration(settings, number, 3.0)(10**9) for number in range(100)]
    assert again == finals[:100] != other


def test_epsilon_falls_from_1_over_4_million_frames():
    for number in range(20):
        settings = a3c_pong.Settings(seed=1)
        epsilon = a3c_pong.NStepQ.exploration(settings, number, frames_per_step=4.0)
        final = epsilon(1_000_000)
        assert epsilon(0) == 1
        assert np.isclose(epsilon(500_000), (1 + final) / 2)
        assert epsilon(999_000) > final == epsilon(2_000_000)


def test_a3c_draws_from_its_policy():
    settings = a3c_pong.Settings(seed=1)
    assert a3c_pong.ActorCriticNetwork.exploration(settings, 0, 3.0)(12345) is None


@pytest.mark.slow
@pytest.mark.parametrize("number, late", [(1, 20), (4, 700)])  # others may count in between
def test_the_target_is_refreshed_once_each_I_target_steps(tf, number, late):
    """Real workers, real games; the copies are counted, and the last is what it should be."""
    settings = a3c_pong.Settings(method="one-step-q", max_steps=7_100, target_steps=700, seed=1)
    with InProcess(settings, workers=number) as launch:
        run, workers = launch.build()
        globalnet, session = run.globalnet, run.globalnet.session
        kernels = globalnet.target.kernel, globalnet.params.kernel
        assert np.array_equal(*session.run(kernels))  # from the beginning
        refresh, at = globalnet.refresh_target, []

        def counted():
            at.append(run.agent_steps)
            refresh()

        globalnet.refresh_target = counted
        threads = [threading.Thread(target=worker.work) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(at) == run.agent_steps // 700 >= 10
    for boundary, step in enumerate(sorted(at), 1):
        assert boundary * 700 <= step < boundary * 700 + late
    assert not np.array_equal(*session.run(kernels))


def test_every_method_is_an_option():
    (field,) = [f for f in dataclasses.fields(a3c_pong.Settings) if f.name == "method"]
    assert set(field.type.__args__) == set(a3c_pong.METHODS)
