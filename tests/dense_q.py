"""The chapter's three Q methods in tf.compat.v1, dense, the targets step by step: a reference."""

import numpy as np


class DenseQ:
    """One worker's graph, with the target network, started from given weights."""

    def __init__(self, tf, weights, target, settings):
        """weights, target: lists of arrays, the kernels and biases of the two layers."""
        self.settings = settings
        with tf.Graph().as_default():
            self.s = tf.placeholder(weights[0].dtype, [None, 6400])
            self.a_his, self.y = tf.placeholder(tf.int32, [None]), tf.placeholder(self.s.dtype)
            self.weights, self.q = self._net(tf, weights)
            self.target, self.target_q = self._net(tf, target)
            taken = tf.one_hot(self.a_his, 6, dtype=self.s.dtype)
            loss = tf.reduce_sum(tf.square(self.y - tf.reduce_sum(self.q * taken, axis=1)))
            self.train = tf.train.RMSPropOptimizer(settings.lr_q, epsilon=settings.rmsprop_epsilon)
            self.push = self.train.minimize(loss, var_list=self.weights)
            self.refresh = [old.assign(new) for old, new in zip(self.target, self.weights)]
            self.session = tf.Session()
            self.session.run(tf.global_variables_initializer())

    def _net(self, tf, weights):
        kernel, bias, head_kernel, head_bias = variables = [
            tf.Variable(array, use_resource=True) for array in weights
        ]
        return variables, tf.nn.relu6(self.s @ kernel + bias) @ head_kernel + head_bias

    def targets(self, states, actions, next_action, rewards, terminal):
        """states [n + 1, 6400]; the y of the pseudo-code, step by step."""
        q, gamma = self.session.run(self.target_q, {self.s: states}), self.settings.gamma
        n = len(actions)
        if self.settings.method == "n-step-q":
            R, y = 0.0 if terminal else q[n].max(), []
            for r in rewards[::-1]:
                R = r + gamma * R
                y.append(R)
            return y[::-1]
        y = []
        for t in range(n):
            if t == n - 1 and terminal:
                y.append(rewards[t])
            elif self.settings.method == "one-step-q":
                y.append(rewards[t] + gamma * q[t + 1].max())
            else:
                then = actions[t + 1] if t < n - 1 else next_action
                y.append(rewards[t] + gamma * q[t + 1, then])
        return y

    def update(self, states, actions, next_action, rewards, terminal):
        y = self.targets(states, actions, next_action, rewards, terminal)
        self.session.run(self.push, {self.s: states[:-1], self.a_his: actions, self.y: np.array(y)})

    def values(self):
        """The weights, and the first kernel's mean square."""
        slot = self.train.get_slot(self.weights[0], "rms")
        return self.session.run([*self.weights, slot])
