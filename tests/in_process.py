"""A run's networks and workers in the tests' own process."""

import dataclasses

import numpy as np

import a3c_pong
import pong_actor
from runtime.actors import Actors
from runtime.global_network import GlobalNetwork
from runtime.launch import Launch

GAME = pong_actor.Game("Pong-v0", num_actions=6, frames_per_step=3.0)


class InProcess(Launch):
    """The start of a run that leaves no folder, with any number of workers.

    At the end of a `with` its actors are gone.
    """

    folder = output = None

    def __init__(self, settings, workers=1, dtype="float32", seed=None, play=True):
        """play: whether actors are started; else there are only their workers' networks."""
        self.settings = dataclasses.replace(settings, seed=settings.seed if seed is None else seed)
        self.workers, self.dtype, self.play = workers, dtype, play
        self.actors, self.notices = None, []

    def __enter__(self):
        return self

    def start_actors(self, units, policy_units, ahead):
        settings = self.settings
        inputs = 6400 * settings.frames
        steps = settings.global_iteration_update
        sizes = pong_actor.Sizes(steps, inputs, units, policy_units, GAME.num_actions)
        self.actors = Actors(GAME, settings.seed, sizes, ahead)
        for number in range(self.workers):
            if self.play:
                self.actors.start(f"W_{number}")
            else:
                self.actors[f"W_{number}"] = None
        return self.actors

    def global_network(self, session):
        return GlobalNetwork(session, self.settings, self.dtype)

    def build(self):
        """Build a graph of its own; return the `Run` and the workers."""
        a3c_pong.load_tensorflow()
        with a3c_pong.tf.Graph().as_default():
            return a3c_pong.build(self)


def new_locals(AC, number):
    """Return local copies, as many as asked for, and their policies, which no actor plays."""
    inputs, dtype = AC.globalnet.inputs, AC.globalnet.dtype
    shapes = (inputs, AC.UNITS), (300,), (300, 6), (6,)
    policies = [
        pong_actor.PolicyWeights(*(np.zeros(shape, dtype) for shape in shapes))
        for _ in range(number)
    ]
    return [AC.globalnet.local_copy(policy) for policy in policies], policies


def fed(AC, local, rollout):
    """Return what gives the states of a rollout, and a local copy, to the network."""
    params = AC.params.all()
    states = {AC.feeds.rows: rollout.rows, AC.s: rollout.states}
    return states | dict(zip(params, local.values(rollout.rows)))
