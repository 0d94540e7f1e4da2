"""The chapter's graph in tf.compat.v1, dense: the reference the sparse path is compared with.

Line by line the chapter's class, with matrix products for `tf.layers` (gone under Keras 3) and its
losses as they stand there, log(softmax) included.
"""

import numpy as np

GLOBAL = "globalnet"


class DenseA3C:
    """A graph of its own with the global net and local ones, started from given weights."""

    def __init__(self, tf, weights, workers, settings, num_actions=6, one_thread=True):
        """weights: name -> array, actor's `aw1 ab1 aw2 ab2` and critic's `cw1 cb1 cw2 cb2`.

        one_thread: whether TensorFlow computes on one thread, or chooses as in the chapter.
        """
        self.tf, self.weights, self.settings, self.num_actions = tf, weights, settings, num_actions
        self.dtype = weights["aw1"].dtype
        self.reduce = tf.reduce_sum if settings.loss == "sum" else tf.reduce_mean
        graph = tf.Graph()
        with graph.as_default(), tf.device("/cpu:0"):
            rmsprop = dict(decay=settings.rmsprop_decay, epsilon=settings.rmsprop_epsilon)
            self.actor_train = tf.train.RMSPropOptimizer(settings.lr_actor, **rmsprop)
            self.critic_train = tf.train.RMSPropOptimizer(settings.lr_critic, **rmsprop)
            self.globalnet = self._net(GLOBAL)
            self.locals = [self._local(f"W_{i}") for i in range(workers)]
            threads = dict(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
            config = tf.ConfigProto(**threads) if one_thread else None
            self.session = tf.Session(config=config)
            self.session.run(tf.global_variables_initializer())

    def _net(self, scope):
        tf = self.tf
        with tf.variable_scope(scope, use_resource=True):
            net = {k: tf.get_variable(k, initializer=w) for k, w in self.weights.items()}
            net["s"] = tf.placeholder(self.dtype, [None, 6400])
            l_a = tf.nn.relu6(net["s"] @ net["aw1"] + net["ab1"])
            net["a_prob"] = tf.nn.softmax(l_a @ net["aw2"] + net["ab2"])
            l_c = tf.nn.relu6(net["s"] @ net["cw1"] + net["cb1"])
            net["v"] = l_c @ net["cw2"] + net["cb2"]
        net["a_params"] = [net[k] for k in ("aw1", "ab1", "aw2", "ab2")]
        net["c_params"] = [net[k] for k in ("cw1", "cb1", "cw2", "cb2")]
        return net

    def _local(self, scope):
        tf, net, glob = self.tf, self._net(scope), self.globalnet
        net["a_his"] = tf.placeholder(tf.int32, [None])
        net["v_target"] = tf.placeholder(self.dtype, [None, 1])
        td = net["v_target"] - net["v"]
        net["c_loss"] = self.reduce(tf.square(td))
        taken = tf.one_hot(net["a_his"], self.num_actions, dtype=self.dtype)
        log_prob = tf.reduce_sum(tf.log(net["a_prob"]) * taken, axis=1, keepdims=True)
        entropy = -tf.reduce_sum(net["a_prob"] * tf.log(net["a_prob"] + 1e-5), 1, keepdims=True)
        net["a_loss"] = self.reduce(-(self.settings.beta * entropy + log_prob * td))
        net["a_grads"] = tf.gradients(net["a_loss"], net["a_params"])
        net["c_grads"] = tf.gradients(net["c_loss"], net["c_params"])
        net["push"] = [
            self.actor_train.apply_gradients(zip(net["a_grads"], glob["a_params"])),
            self.critic_train.apply_gradients(zip(net["c_grads"], glob["c_params"])),
        ]
        both = net["a_params"] + net["c_params"], glob["a_params"] + glob["c_params"]
        net["pull"] = [mine.assign(theirs).op for mine, theirs in zip(*both)]
        return net

    def update_global(self, worker, s, s_, actions, rewards, terminal):
        """The chapter's update from dense states s [n, 6400] and s_ [6400] after them."""
        net = self.locals[worker]
        v_s_ = 0 if terminal else self.session.run(net["v"], {net["s"]: s_[np.newaxis]})[0, 0]
        buffer_v_target = []
        for r in rewards[::-1]:
            v_s_ = r + self.settings.gamma * v_s_
            buffer_v_target.append(v_s_)
        buffer_v_target.reverse()
        feed = {net["s"]: s, net["a_his"]: actions, net["v_target"]: np.vstack(buffer_v_target)}
        self.session.run(net["push"], feed)

    def pull_global(self, worker):
        self.session.run(self.locals[worker]["pull"])

    def global_values(self):
        """Name -> array of the global weights, and of the RMSProps' mean squares of the kernels."""
        values = self.session.run({k: self.globalnet[k] for k in self.weights})
        slots = self.session.run(
            {
                "aw1": self.actor_train.get_slot(self.globalnet["aw1"], "rms"),
                "cw1": self.critic_train.get_slot(self.globalnet["cw1"], "rms"),
            }
        )
        return values, slots
