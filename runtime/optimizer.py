"""The optimizer of the kernel over the pixels, row by row, and the log of its rows."""

import threading

import numpy as np

from runtime.graph import make_callable, tf


class RowRMSProp:
    """TensorFlow 1's RMSProp for one kernel, which touches only the rows that got a gradient.

    Mean squares start at one, and epsilon stands inside the root. The dense optimizer decays the
    mean square of every row at every update. It does nothing else to a row without a gradient, as
    momentum is 0. So a row that is touched again is first multiplied by `decay ** missed`, where
    `missed` is the number of updates without it. The numbers are the dense optimizer's, and only
    the rows touched cost time. TensorFlow's sparse RMSProp does not decay the rows it passes over.
    Keras' RMSProp starts at zero and has epsilon outside the root. Both are other optimizers.

    Workers update side by side without waiting for each other, as the chapter's do. If two of them
    read, compute and write the same row at once, one of the two updates of that row is lost. That
    is the chapter's race too, and it is left as it is. But a row's mean square and its update
    number must change together, or the row would be decayed twice or not at all. So both change
    under the lock of the `RowLog`. The update itself, which follows, holds no lock.
    """

    def __init__(self, kernel, learning_rates, scale, decay, epsilon):
        """Create the mean squares in the current variable scope.

        Args:
            kernel: the global variable, [inputs, units].
            learning_rates: [units] floats.
            scale: a number or a scalar tensor that multiplies the rates.
            decay, epsilon: RMSProp's two numbers.
        """
        self.kernel, self.dtype = kernel, kernel.dtype.base_dtype
        if len(set(learning_rates)) == 1:  # a scalar is multiplied four times as fast as a row
            learning_rates = learning_rates[0]
        # float32, as in the dense optimizer: powers of the double 0.9 would drift from its
        self.learning_rates = tf.cast(np.float32(learning_rates) * scale, self.dtype)
        self.decay = float(np.float32(decay))
        self.epsilon = float(np.float32(epsilon))
        ones = tf.ones(kernel.shape, self.dtype)
        self.mean_square = tf.get_variable("mean_square", initializer=ones, trainable=False)

    def catch_up(self, session):
        """Return a function of rows [n] int32 and missed [n] int64 that decays their mean squares.

        missed: the number of updates that each row has missed.
        """
        rows, factors = tf.placeholder(tf.int32, [None]), tf.placeholder(self.dtype, [None, 1])
        run = make_callable(session, [self.decay_rows(rows, factors)], [rows, factors])
        dtype = self.dtype.as_numpy_dtype

        def catch_up(rows, missed):
            run(rows, (self.decay ** missed[:, np.newaxis]).astype(dtype))

        return catch_up

    def decay_rows(self, rows, factors):
        """Return an operation that multiplies the mean squares of rows [n] by factors [n, 1]."""
        decayed = tf.gather(self.mean_square, rows) * factors
        return tf.scatter_update(self.mean_square, rows, decayed).op

    def apply_gradients(self, g, rows):
        """Return the operations of one update.

        Args:
            g: the gradient of the kernel's rows, [U, units].
            rows: [U] int32, rows that have caught up with the updates they missed.
        """
        old = tf.gather(self.mean_square, rows)
        mean_square = self.decay * old + (1 - self.decay) * tf.square(g)
        step = self.learning_rates * g * tf.math.rsqrt(mean_square + self.epsilon)
        return [
            tf.scatter_update(self.mean_square, rows, mean_square).op,
            tf.scatter_update(self.kernel, rows, tf.gather(self.kernel, rows) - step).op,
        ]


class RowLog:
    """The number of the update that last touched each row of the kernel, and when it was done."""

    def __init__(self, inputs):
        """Start with no update. inputs: the number of rows."""
        self.lock = threading.Lock()
        self.updates = 0
        self.touched_by = np.zeros(inputs, np.int64)  # number of the update
        self.clock = 1  # 0 is the time of a worker that has never pulled: its first pull takes all
        self.changed_at = np.full(inputs, self.clock)  # by that clock

    def begin_update(self, rows, catch_up):
        """Give an update of rows [U] int32 its number, and decay rows that missed earlier updates.

        catch_up: the function that `RowRMSProp.catch_up` returns.
        """
        with self.lock:
            missed = self.updates - self.touched_by[rows]
            self.updates += 1
            self.touched_by[rows] = self.updates
            late = missed > 0
            catch_up(rows[late], missed[late])

    def end_update(self, rows):
        """Note that the new weights of rows [U] are in place.

        A pull before this call may copy a half-written row. The later time makes the next pull
        copy it again.
        """
        with self.lock:
            self.clock += 1
            self.changed_at[rows] = self.clock

    def changed_since(self, time):
        """Return the rows that changed after that time, [n] int32, and the time now."""
        with self.lock:
            return (self.changed_at > time).nonzero()[0].astype(np.int32), self.clock
