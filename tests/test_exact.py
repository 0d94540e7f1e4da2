"""The sparse path computes what the chapter's dense graph computes."""

import os
import threading

import numpy as np
import pytest
from dense_a3c import DenseA3C
from in_process import GAME, InProcess, fed, new_locals

import a3c_pong
import pong_actor
from runtime.actors import PongActor
from runtime.cores import allowed_cores
from runtime.graph import make_callable, new_session
from runtime.optimizer import RowLog, RowRMSProp

SIZES = pong_actor.Sizes(20, 6400, 300, 300, 6)


@pytest.fixture(scope="module")
def rollouts():
    """Rollouts of real play, copied, with a game's end among them."""
    actor = PongActor(GAME, [1, 2], SIZES)
    rng = np.random.default_rng(0)
    actor.policy.kernel[...] = rng.normal(0, 0.1, actor.policy.kernel.shape)
    actor.policy.head_kernel[...] = rng.normal(0, 0.1, actor.policy.head_kernel.shape)
    played = []
    while len(played) < 150 or not any(r.terminal for r in played):
        played.append(copied(actor.play(20)))
    actor.close()
    return played


def copied(rollout):
    return pong_actor.Rollout(*(np.copy(x) for x in rollout[:4]), *rollout[4:])


def ends(rollout):
    """Whether the game ends, for each step of a rollout."""
    return [False] * (len(rollout.actions) - 1) + [rollout.terminal]


def dense(rollout):
    """The states of a rollout as [n + 1, 6400] float32."""
    states = np.zeros((len(rollout.states), 6400), np.float32)
    states[:, rollout.rows] = rollout.states
    return states


class Sparse:
    """The real networks of `a3c_pong` and a number of local copies, all pulled."""

    def __init__(self, tf, workers, settings, double=False, seed=3):
        self.settings = settings
        dtype = "float64" if double else "float32"
        run, (worker,) = InProcess(settings, 1, dtype, seed, play=False).build()
        self.globalnet, self.session, self.AC = run.globalnet, run.globalnet.session, worker.AC
        self.locals, self.policies = new_locals(self.AC, workers)
        for worker in range(workers):
            self.pull_global(worker)

    def update_global(self, worker, rollout, rewards, **others):
        returns = a3c_pong.lambda_returns(
            rewards, ends(rollout), self.settings.gamma, self.AC.lambda_
        )
        return self.AC.update_global(self.locals[worker], rollout, returns, **others)

    def pull_global(self, worker):
        self.AC.pull_global(self.locals[worker])

    def values(self):
        """Name -> array of the global weights."""
        return values_of(self.globalnet)

    def mean_squares(self):
        """The kernels' mean squares, decayed to the last update as the dense optimizer's are."""
        log, optimizer = self.globalnet.row_log, self.globalnet.kernel_train
        missed = log.updates - log.touched_by[:, np.newaxis]
        now = self.session.run(optimizer.mean_square) * optimizer.decay**missed
        return {"aw1": now[:, :300], "cw1": now[:, 300:]}


def values_of(globalnet):
    """Name -> array of the global weights."""
    params = globalnet.params
    return named(*globalnet.session.run(params.all()))


def named(kernel, *others):
    names = "ab1", "aw2", "ab2", "cb1", "cw2", "cb2"
    return {"aw1": kernel[:, :300], "cw1": kernel[:, 300:], **dict(zip(names, others))}


def assert_equal(sparse, reference):
    """Every array of weights and of decayed mean squares to 1e-6, relative.

    In double precision, every single number. In single precision, the array in the Euclidean norm:
    there a number is a difference of sums which float32 rounds by the size of what is summed, in
    another order here than there. So a number is held to 1e-5 of the larger of its own size and its
    array's root mean square; and in the rows never touched, where nothing is summed, to 1e-6 again.
    """
    weights, mean_squares = reference.global_values()
    touched = sparse.globalnet.row_log.touched_by > 0
    compared = ((sparse.values(), weights), (sparse.mean_squares(), mean_squares))
    for ours, theirs in compared:
        for name, expected in theirs.items():
            double = expected.dtype == np.float64
            assert ours[name].dtype == np.float64 or not double
            expected = expected.astype(np.float64)
            error, size = np.abs(ours[name] - expected), np.abs(expected)
            if double:
                assert (error <= 1e-6 * size).all(), name
            rms = np.sqrt(np.mean(np.square(expected)))
            assert np.sqrt(np.mean(np.square(error))) <= 1e-6 * rms, name
            assert (error <= 1e-5 * np.maximum(size, rms)).all(), name
            if len(expected) == 6400:
                assert (~touched).sum() > 3000
                # the dense decay ends at 1.07e-37: a tenth of it is no normal float32, and is 0
                assert (error[~touched] <= 1e-6 * size[~touched] + 1.1e-37).all(), name


def assert_pulled(sparse, worker):
    """The local net and the actor's policy are the global net, bit for bit."""
    theirs, local = sparse.values(), sparse.locals[worker]
    for name, mine in named(local.kernel, *local.others).items():
        assert np.array_equal(mine, theirs[name]), name
    kernel, *others = sparse.policies[worker]
    for mine, name in zip((kernel[:, :300], *others), ("aw1", "ab1", "aw2", "ab2")):
        assert np.array_equal(mine, theirs[name]), name


def update_both(sparse, reference, worker, rollout):
    rewards = a3c_pong.learning_rewards(rollout, sparse.settings.lost_game_reward)
    states = dense(rollout)
    step = states[:-1], states[-1], rollout.actions, rewards, rollout.terminal
    sparse.update_global(worker, rollout, rewards)
    reference.update_global(worker, *step)


def pull_both(sparse, reference, worker):
    sparse.pull_global(worker)
    reference.pull_global(worker)
    assert_pulled(sparse, worker)


def both(tf, workers, double=False, **settings):
    settings = a3c_pong.Settings(**settings)
    sparse = Sparse(tf, workers, settings, double)
    return sparse, DenseA3C(tf, sparse.values(), workers, settings)


OTHERS = dict(lr_actor=5e-5, lr_critic=2e-4, gamma=0.99, beta=0.01)
OTHER_RMSPROP = dict(rmsprop_decay=0.99, rmsprop_epsilon=0.01, loss="sum")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, dict(double=True), dict(OTHERS, **OTHER_RMSPROP)], ids=str
)
def test_100_updates_equal_the_dense_graph(tf, rollouts, settings):
    sparse, reference = both(tf, 1, **settings)
    assert any(rollout.terminal for rollout in rollouts[:100])
    for rollout in rollouts[:100]:
        update_both(sparse, reference, 0, rollout)
        pull_both(sparse, reference, 0)
    assert_equal(sparse, reference)


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
def test_two_workers_interleaved_updates_equal_the_dense_graph(tf, rollouts, double):
    """Gradients of local weights that the other worker has overtaken, in an irregular order."""
    sparse, reference = both(tf, 2, double)
    order = np.random.default_rng(5)
    for rollout in rollouts[:100]:
        worker = int(order.integers(2))
        update_both(sparse, reference, worker, rollout)
        if order.random() < 0.6:
            pull_both(sparse, reference, worker)
    assert_equal(sparse, reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pull, calls",
    [("after", "update pull"), ("before", "pull update"), ("both", "pull update pull")],
)
def test_a_worker_pulls_when_it_is_told_to(tf, pull, calls):
    """A real worker's play and updates, repeated by the dense graph."""
    settings, played = a3c_pong.Settings(max_steps=1000, pull=pull, gamma=0.99, lr_actor=1e-3), []
    called = []

    def recorded(name, function):
        def call(*arguments):
            called.append(name)
            return function(*arguments)

        return call

    with InProcess(settings, seed=4) as launch:
        run, (worker,) = launch.build()
        reference, play = DenseA3C(tf, values_of(run.globalnet), 1, settings), worker.play

        def noted():
            kernel, _, _, head_bias = worker.actor.policy
            policy = kernel[:, :300].copy(), head_bias.copy()
            rollout = play()
            played.append((policy, copied(rollout)))
            return rollout

        worker.play, AC = noted, worker.AC
        AC.update_global = recorded("update", AC.update_global)
        AC.pull_global = recorded("pull", AC.pull_global)
        cores = allowed_cores()
        worker.work()
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        assert run.agent_steps == 1000
    pushed = [reference.global_values()[0]]
    for number, (policy, rollout) in enumerate(played):
        # of the weights after all updates, or after all but the last
        expected = pushed[max(0, number - (pull == "before"))]
        for mine, name in zip(policy, ("aw1", "ab2")):
            np.testing.assert_allclose(mine, expected[name], rtol=1e-4, atol=1e-6)
        states, rewards = dense(rollout), a3c_pong.learning_rewards(rollout, -20)
        if pull != "after":
            reference.pull_global(0)
        step = states[:-1], states[-1], rollout.actions, rewards, rollout.terminal
        reference.update_global(0, *step)
        if pull != "before":
            reference.pull_global(0)
        pushed.append(reference.global_values()[0])
    assert called == ["pull"] + calls.split() * len(played) and len(played) > 49
    moved = np.abs(pushed[-1]["ab2"] - pushed[-2]["ab2"]).max()
    assert moved > 1e-4  # so that an update more or less is seen
    for name, mine in values_of(run.globalnet).items():
        np.testing.assert_allclose(mine, pushed[-1][name], rtol=1e-4, atol=1e-6)


def paddles_of_two_steps(rollout):
    """The first two steps of a rollout, without the ball: the rows between the paddles are 0."""
    at_the_sides = np.isin(rollout.rows % 80, (8, 9, 70, 71))
    assert at_the_sides.any()
    return pong_actor.Rollout(
        rollout.rows[at_the_sides],
        rollout.states[:3, at_the_sides],
        rollout.actions[:2],
        rollout.rewards[:2],
        False,
        False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
def test_rows_long_untouched_are_decayed_as_the_dense_ones(tf, rollouts, double):
    """After 1,000 updates their mean squares are below what single precision can hold."""
    untouched_for = 100 if double else 1000
    sparse, reference = both(tf, 1, double)
    for rollout in rollouts[:20]:
        update_both(sparse, reference, 0, rollout)
        pull_both(sparse, reference, 0)
    # with a pull after each, as a worker's: else a rollout's gradient is rounded the same way seven
    # times, and where it is next to nothing RMSProp makes that a step like any other
    for k in range(untouched_for + 20):
        update_both(sparse, reference, 0, paddles_of_two_steps(rollouts[k % len(rollouts)]))
        sparse.pull_global(0)
        reference.pull_global(0)
    untouched = sparse.globalnet.row_log.updates - sparse.globalnet.row_log.touched_by
    long_ago = (untouched > untouched_for) & (untouched < untouched_for + 40)
    assert long_ago.sum() > 100  # touched once, then not
    assert_equal(sparse, reference)
    for rollout in rollouts[:10]:  # and touched again
        update_both(sparse, reference, 0, rollout)
    assert_equal(sparse, reference)


def test_measuring_an_update_gives_its_figures_and_changes_nothing(tf, rollouts):
    plain, measured = (Sparse(tf, 1, a3c_pong.Settings()) for _ in range(2))
    for rollout in rollouts[:20]:
        rewards, policy = rollout.rewards.tolist(), measured.policies[0]
        layer = np.clip(dense(rollout)[:-1] @ policy.kernel[:, :300] + policy.bias, 0, 6)
        p = np.exp(layer @ policy.head_kernel + policy.head_bias)
        p /= p.sum(axis=1, keepdims=True)
        assert plain.update_global(0, rollout, rewards) is None
        figures = measured.update_global(0, rollout, rewards, measure=True)
        assert figures.keys() == {"policy_loss", "value_loss", "entropy", "gradient_norm"}
        assert figures["entropy"] == pytest.approx(-np.sum(p * np.log(p)) / len(p), rel=1e-3)
        assert all(figure > 0 for name, figure in figures.items() if name != "policy_loss")
        for sparse in plain, measured:
            sparse.pull_global(0)
        ours, theirs = (
            [*s.values().values(), *s.mean_squares().values()] for s in (plain, measured)
        )
        assert all(map(np.array_equal, ours, theirs))


@pytest.mark.slow
def test_learning_rates_fall_with_steps_or_with_the_score_and_beta_with_the_score(tf, rollouts):
    """Half annealed, or a recent score of 0, is as good as half the learning rates.

    The same holds for beta and a score of 0.
    """
    half = dict(lr_actor=0.5e-4, lr_critic=1e-4, beta=0.125)
    full = dict(lr_actor=1e-4, lr_critic=2e-4, beta=0.5, beta_power=2.0, anneal_steps=2000)
    cases = {  # settings, steps so far, games that ended 0 : 0 so far
        "half": (half, 0, 9),
        "half annealed": (full, 1000, 400),
        "annealed": (full, 2000, 400),
        "full": (full, 0, 0),
        "score 0": (full | dict(rate_power=1.0), 0, 400),
        "fallen early": (full | dict(rate_power=0.5, rate_falls_below=2.0), 0, 400),
        "not yet fallen": (full | dict(rate_power=9.0, rate_falls_below=0.4), 0, 400),
    }
    changes = {}
    for case, (settings, steps, games) in cases.items():
        sparse = Sparse(tf, 1, a3c_pong.Settings(**settings), double=True)
        globalnet = sparse.globalnet
        run = a3c_pong.Run(sparse.settings, globalnet)
        globalnet.T = steps
        for _ in range(games):
            run.count(0, ("W_0", 0, 0))
        lost = globalnet.lost
        del run.episodes[2:]
        run.look_back()
        assert globalnet.lost == pytest.approx(1 if games == 0 else 0.905)
        rollout = rollouts[3]
        returns = a3c_pong.lambda_returns(rollout.rewards, ends(rollout), 0.9, 1.0)
        before = sparse.values()
        globalnet.lost = lost
        sparse.AC.update_global(sparse.locals[0], rollout, returns)
        changes[case] = {name: value - before[name] for name, value in sparse.values().items()}
    for name, expected in changes["half"].items():
        for case, factor in (
            ("half annealed", 1), ("score 0", 1), ("fallen early", 1), ("not yet fallen", 2),
        ):  # fmt: skip
            change = changes[case][name] / factor
            np.testing.assert_allclose(change, expected, rtol=1e-4, atol=1e-12, err_msg=case)
        assert not changes["annealed"][name].any()
        assert np.abs(changes["full"][name] - expected).max() > 1e-6


def test_probability_zero_gives_no_nan(tf, rollouts):
    """The chapter's log(0) turns all weights into NaN."""
    sparse = Sparse(tf, 1, a3c_pong.Settings())
    certain = np.array([200, 0, 0, 0, 0, 0], np.float32)
    sparse.globalnet.params.heads["actor_network"][2].load(certain, sparse.session)
    sparse.pull_global(0)
    rollout = rollouts[0]._replace(actions=np.full_like(rollouts[0].actions, 3))
    feed = fed(sparse.AC, sparse.locals[0], rollout)
    assert sparse.session.run(sparse.AC.a_prob, feed)[0, 3] == 0
    sparse.update_global(0, rollout, [1.0] * len(rollout.actions))
    for name, values in sparse.values().items():
        assert np.isfinite(values).all(), name


def test_initial_weights_have_the_chapter_s_spread(tf):
    sparse = Sparse(tf, 1, a3c_pong.Settings())
    params = sparse.globalnet.params
    kernels = [params.kernel, *(head[1] for head in params.heads.values())]
    first, *heads = sparse.session.run(kernels)
    assert abs(first.std() - 0.1) < 0.001  # one cut at two deviations has 0.088
    assert np.allclose([head.std() for head in heads], 0.1, rtol=0.2)


def test_the_actors_policy_is_the_local_net_s(tf, rollouts):
    sparse = Sparse(tf, 1, a3c_pong.Settings())
    rollout = rollouts[40]
    sparse.update_global(0, rollout, [1.0] * len(rollout.actions))
    sparse.pull_global(0)
    player = pong_actor.Player(None, sparse.policies[0], 0)
    expected = sparse.session.run(sparse.AC.a_prob, fed(sparse.AC, sparse.locals[0], rollout))
    for state, probabilities in zip(rollout.states, expected):
        weights = np.exp(player.outputs(rollout.rows[state > 0].astype(np.int64)))
        np.testing.assert_allclose(weights / weights.sum(), probabilities, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away")
def test_no_more_threads_are_between_pull_and_push_than_there_are_cores(tf):
    """Six real workers on one core."""
    settings, cores = a3c_pong.Settings(max_steps=5000, pull="before", seed=1), allowed_cores()
    inside, most = set(), [0]

    def noted(function, *, enters):
        def call(*arguments):
            if enters:
                inside.add(threading.get_ident())
                most[0] = max(most[0], len(inside))
            result = function(*arguments)
            if not enters:
                inside.discard(threading.get_ident())
            return result

        return call

    os.sched_setaffinity(0, cores[:1])
    try:
        with InProcess(settings, workers=6) as launch:
            run, workers = launch.build()
            sync = workers[0].AC.sync
            sync.pull = noted(sync.pull, enters=True)
            sync.push = noted(sync.push, enters=False)
            for worker in workers:
                worker.begin()
                inside.clear()
            most[0] = 0
            threads = [threading.Thread(target=worker.work) for worker in workers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        os.sched_setaffinity(0, cores)
    assert run.agent_steps >= 5000
    assert most == [1]


def test_no_update_is_decayed_twice_under_contention(tf):
    """Four threads, overlapping rows, gradient 0: a mean square may miss a decay that another
    thread overwrote, but is never below what its number of updates allows.

    A thread that loses its core in the middle of an update overwrites what the others do until it
    is back. That spoils one race in ten, and one in four on one core or beside other work.
    """
    for _ in range(10):
        ratios, decay = race(tf)
        assert (ratios >= 1 - 1e-4).all()
        if np.median(ratios) < decay**-10:
            break
    assert np.median(ratios) < decay**-10  # and most were not lost


def race(tf):
    """(mean squares relative to what the numbers of updates allow, the decay of an update)."""
    graph, updates = tf.Graph(), 40
    with graph.as_default(), tf.variable_scope("race", use_resource=True):
        session = new_session()
        kernel = tf.get_variable("kernel", [6400, 400], initializer=tf.zeros_initializer())
        optimizer = RowRMSProp(kernel, np.full(400, 1e-4), 1.0, decay=0.9, epsilon=1e-10)
        log = RowLog(6400)
        rows = tf.placeholder(tf.int32, [None])
        push = optimizer.apply_gradients(tf.zeros([tf.shape(rows)[0], 400]), rows)
        update = make_callable(session, push, [rows])
        catch_up = optimizer.catch_up(session)
        session.run(tf.global_variables_initializer())

    def work(seed):
        chosen = np.random.default_rng(seed)
        for _ in range(updates):
            some = np.sort(chosen.choice(400, 100, replace=False)).astype(np.int32)
            log.begin_update(some, catch_up)
            update(some)

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.updates == 4 * updates
    mean_square = session.run(optimizer.mean_square)[:400]
    allowed = optimizer.decay ** log.touched_by[:400, np.newaxis]
    return mean_square / allowed, optimizer.decay


def test_a_pull_takes_what_others_changed_and_nothing_else():
    log = RowLog(6400)
    rows, now = log.changed_since(0)
    assert len(rows) == 6400  # the first pull copies the global net
    log.end_update(np.array([3, 5], np.int32))
    log.end_update(np.array([5, 9], np.int32))
    assert log.changed_since(now)[0].tolist() == [3, 5, 9]
    assert log.changed_since(now + 1)[0].tolist() == [5, 9]
    assert log.changed_since(now + 2)[0].tolist() == []


def test_the_public_way_to_a_callable_gives_the_same(tf):
    """Where TensorFlow's private way is missing."""
    with tf.Graph().as_default():
        session = new_session()
        x = tf.placeholder(tf.float32, [None])
        counter = tf.get_variable("n", initializer=0.0, use_resource=True)
        session.run(tf.global_variables_initializer())
        fetches = [2 * x, counter.assign_add(1.0).op, x + 1]
        fast = make_callable(session, fetches, [x])
        assert type(fast).__name__ == "_Callable"  # this TensorFlow has it

        class Public:
            make_callable = session.make_callable

        slow = make_callable(Public(), fetches, [x])
        value = np.array([1, 2], np.float32)
        for one, other in zip(fast(value), slow(value), strict=True):
            assert np.array_equal(one, other)
        assert session.run(counter) == 2
